"""What looks at finished runs: films, dreams, curves, the league, the competition."""
