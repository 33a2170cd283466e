"""Matches: counts, balance, reproducibility, the score by which the best agent is kept."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from conftest import make_config

import matches
from dreamer import Dreamer
from environments import make_environments
from machine import Stop, Stopped
from matches import Result, episode_returns, evaluate, play_games, play_match, wilson_interval
from opponents import OpponentPool, PerGame, load

HOCKEY = make_config(hockey__frame_skip=4).hockey


@pytest.fixture(scope="module")
def agent():
    torch.manual_seed(0)
    return Dreamer(make_config(hockey__frame_skip=4), 18, 4)


def test_counts_and_rates_by_hand():
    winner = np.array([1, 1, 1, 0, -1, -1, 0, 1])
    result = Result("strong", winner, np.array([True] * 4 + [False] * 4))
    assert result.counts() == (4, 2, 2) and result.win_rate() == 0.5
    assert result.counts(result.we_started) == (3, 1, 0)
    expected = {"wins": 0.5, "draws": 0.25, "losses": 0.25, "games": 8}
    assert result.metrics("strong") == {f"evaluation/strong/{k}": v for k, v in expected.items()}
    assert list(result.metrics("oldest"))[0] == "evaluation/oldest/wins"
    low, high = wilson_interval(0.5, 8)
    text = str(result)
    assert "8 games, 4 won, 2 drawn, 2 lost" in text and "\n" not in text
    assert f"[{low:.1%}, {high:.1%}]" in text
    assert "we start: 3/1/0" in text and "they start: 1/1/2" in text


@pytest.mark.parametrize(
    ("winner", "standing"),
    [([1, -1, 0], 1), ([1, 1, -1], 1), ([1, -1, -1], 0.5), ([0, -1, 0], 0), ([0, 0, 0], 1)],
)
def test_who_wins_as_often_as_it_loses_holds_its_own(winner, standing):
    assert Result("oldest", np.array(winner), np.zeros(3, bool)).standing() == standing


def test_a_turned_result_is_the_other_sides():
    result = Result("strong", np.array([1, 1, 0, -1]), np.array([True, False, True, False]))
    other = result.turned("me")
    assert other.opponent == "me" and other.counts() == (1, 1, 2)
    assert other.counts(other.we_started) == (1, 0, 1)
    assert str(other.turned("strong")) == str(result)


def test_the_better_bot_wins_from_whichever_side():
    for ours, theirs, better in (("strong", "random", 1), ("random", "strong", -1)):
        every_frame = make_config(hockey__frame_skip=1).hockey
        result = play_games(load(ours, 40, seed=5).act, load(theirs, 40), 40, every_frame)
        wins, draws, losses = result.counts()
        assert wins + draws + losses == 40
        assert better * (wins - losses) > 8


def test_sides_and_starts_are_balanced_and_games_are_normal(monkeypatch):
    tables = []
    original = matches.HockeyGames

    def spy(*arguments, **options):
        tables.append(original(*arguments, **options))
        return tables[-1]

    monkeypatch.setattr(matches, "HockeyGames", spy)
    settings = make_config(hockey__frame_skip=10, hockey__modes__defense=1.0).hockey
    result = play_games(load("weak", 8, seed=5).act, load("weak", 8), 8, settings)
    (table,) = tables
    pairs = list(zip(table.side.tolist(), result.we_started.tolist(), strict=True))
    assert all(pairs.count(pair) == 2 for pair in set(pairs)) and len(set(pairs)) == 4
    assert table.reward_kind == "sparse"
    assert {env.mode.name for env in table.current} == {"NORMAL"}
    assert np.array_equal(result.winner, table.winner)


def test_one_seed_reproduces_and_another_differs(agent):
    def play(seed):
        player, seen = agent.player(), []

        def act(rows):
            seen.append(rows)
            return player.act(rows, deterministic=True)

        play_games(act, load("strong", 4, seed), 4, HOCKEY, seed)
        return np.stack(seen)

    random_state = torch.get_rng_state()
    first = play(1)
    assert torch.equal(random_state, torch.get_rng_state())  # training is not disturbed
    torch.rand(3)
    assert np.array_equal(first, play(1))
    assert not np.array_equal(first, play(2))


class Counting:
    """A player that notes how many frames it was asked in each of its games."""

    def __init__(self):
        self.frames = []

    def reset(self):
        self.frames.append(0)

    def act(self, observation):
        self.frames[-1] += 1
        return np.zeros(4)


def test_both_players_of_a_match_hear_of_each_game_and_are_asked_each_frame():
    sides = [[Counting() for _ in range(4)] for _ in range(2)]
    one, two = (PerGame(players) for players in sides)
    for matches_played in (1, 2):
        assert len(play_match(one, two, 4, seed=3).winner) == 4
        assert all(len(player.frames) == matches_played for side in sides for player in side)
    assert [one.frames for one in sides[0]] == [two.frames for two in sides[1]]
    assert all(min(player.frames) > 20 for side in sides for player in side)


def test_the_return_of_any_other_environment():
    class Episodes:
        """Three episodes of 2, 3 and 4 steps with reward 1 each, then noise."""

        single_action_space = gymnasium.spaces.Box(-1, 1, (4,))

        def reset(self, seed=None):
            self.step_number = 0
            return np.zeros((3, 18), np.float32), {}

        def step(self, action):
            self.step_number += 1
            lengths = np.array([2, 3, 4])
            reward = np.where(self.step_number <= lengths, 1.0, 100.0)
            done, is_late = self.step_number == lengths, np.array([False, True, False])
            return np.zeros((3, 18), np.float32), reward, done & ~is_late, done & is_late, {}

        def close(self):
            self.is_closed = True

    episodes = Episodes()
    assert episode_returns(lambda rows: np.zeros((3, 4)), episodes).tolist() == [2, 3, 4]
    assert episodes.is_closed


# ---------------------------------------------------------------------------- evaluations


def test_an_evaluation_has_no_more_processes_than_the_training(monkeypatch):
    keys = {"environment": "Pendulum-v1", "environments": 2, "evaluation_games": 5}
    keys |= {"dreamer__observation_scale": [], "dreamer__switches": [], "wrappers__time_limit": 5}
    counts, returns = [], []

    def make(config, count):
        counts.append(count)
        return make_environments(make_config(**keys), count)

    monkeypatch.setattr(matches, "make_environments", make)
    for vectorization in ("sync", "async"):
        config = make_config(**keys, vectorization=vectorization)
        torch.manual_seed(0)
        returns.append(evaluate(Dreamer(config, 3, 1), config, None, Stop())[1])
    assert counts == [5, 2, 2, 1]
    assert returns[0] == pytest.approx(returns[1])  # the same five episodes


def hockey_pool(config):
    return OpponentPool(config.opponents, config.environments)


def test_an_evaluation_disturbs_nothing_and_reproduces(agent):
    config = make_config(hockey__frame_skip=10, evaluation_games=4)
    pool = hockey_pool(config)
    agent.act(np.zeros((3, 18), np.float32))
    before = [part.clone() for part in agent.memory]
    torch.manual_seed(4)
    found = [evaluate(agent, config, pool, Stop()) for _ in range(2)]
    drawn = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(torch.rand(3), drawn)
    assert found[0] == found[1] and found[0][0]["evaluation/strong/games"] == 4
    assert all(torch.equal(*pair) for pair in zip(before, agent.memory, strict=True))
    agent.reset()


@pytest.mark.parametrize(
    ("oldest", "score"), [([1, 1, -1, 0], 0.75), ([1, 0, -1, -1], 0.5), ([0, 0, 0, 0], 0.75)]
)
def test_the_score_is_the_worst_case(agent, monkeypatch, oldest, score):
    winner = {"weak": [1, 1, 1, 1], "strong": [1, 1, 1, -1], "oldest": oldest}
    pool = SimpleNamespace(rivals=lambda games, seed: {name: name for name in winner})

    def play(act, rival, games, settings, seed):
        assert settings.frame_skip == 1  # it decides every frame, as in any match
        assert settings.game == "built-in" and act(np.zeros((games, 18))).shape == (games, 4)
        return Result("?", np.array(winner[rival]), np.zeros(4, bool))

    monkeypatch.setattr(matches, "play_games", play)
    metrics, found, shown = evaluate(agent, make_config(), pool, Stop())
    assert found == score
    assert metrics["evaluation/oldest/losses"] == oldest.count(-1) / 4
    assert shown == {"weak": "100%", "strong": "75%"}


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_other_environments_are_scored_by_their_return(monkeypatch):
    config, counts, real = make_config("pendulum.yml", evaluation_games=3), [], make_environments
    monkeypatch.setattr(
        matches, "make_environments", lambda config, n: counts.append(n) or real(config, n)
    )
    pendulum = Dreamer(config, 3, 1)
    metrics, score, shown = evaluate(pendulum, config, None, Stop())
    assert metrics == {"evaluation/return": score} and -2000 < score < 0
    assert shown == {"return": f"{score:.1f}"} and pendulum.memory is None and counts == [3]


def test_a_signal_breaks_an_evaluation_off(agent, monkeypatch):
    config, stop, decisions = make_config(evaluation_games=4), Stop(), []
    player = agent.player()

    def act(observations, **options):
        decisions.append(len(observations))
        stop.requested = len(decisions) == 3
        return np.zeros((len(observations), 4))

    monkeypatch.setattr(agent, "player", lambda: player)
    monkeypatch.setattr(player, "act", act)
    with pytest.raises(Stopped):
        evaluate(agent, config, hockey_pool(config), stop)
    assert len(decisions) == 3
