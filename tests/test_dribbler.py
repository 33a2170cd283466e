"""The bot that carries the puck past the other player: shots that are free, games that differ."""

import numpy as np
import pytest

from dribbler import BANK, Dribbler, clearance
from matches import play_match
from opponents import load


def test_it_beats_the_strong_bot_and_scores_at_once():
    result = play_match(load("dribbler", 40), load("strong", 40, seed=1), 40)
    wins, _, losses = result.counts()
    assert wins > 2 * losses + 5
    wins, _, losses = result.counts(result.we_started)
    assert wins > losses + 3


def test_how_far_somebody_is_from_a_shots_way():
    assert clearance(0, 0, 0, 2, 0.5) == pytest.approx(0.5)  # straight ahead
    assert clearance(0, 0, 0, -2, 0.5) == pytest.approx(np.hypot(2, 0.5))  # he is behind
    assert clearance(0, 0, BANK, 2.15, BANK / 2) == pytest.approx(0)  # where it meets the wall
    assert clearance(0, 0, BANK, 4.3, 0) == pytest.approx(0)  # and where it arrives from there


def held(other_y):
    """What it sees with the puck at its racket in the middle, the other one before it."""
    observation = np.zeros(18, np.float32)
    observation[[6, 7, 16]] = 1.5, other_y, 1
    return observation


def test_it_shoots_past_the_other_one():
    player = Dribbler(0)
    player.targets = [-1.0, 1.0]
    for other_y in (0.4, -0.4):
        turn = player.act(held(other_y))[2]
        assert np.sign(turn) == -np.sign(other_y)  # a positive angle is a shot to positive y
        assert player.act(held(other_y))[3] == 1  # the last moment in which it can


def test_games_differ_and_a_seed_repeats_them():
    guarding = np.zeros(18, np.float32)
    guarding[[0, 12, 13]] = -2.5, 2, 0.2

    def first_actions(seed, games=5):
        player, found = Dribbler(seed), []
        for _ in range(games):
            found.append(player.act(guarding))
            player.reset()
        return np.array(found)

    assert (first_actions(1) == first_actions(1)).all()
    assert len(np.unique(first_actions(1), axis=0)) == 5
    assert abs(first_actions(2)).max() <= 1
