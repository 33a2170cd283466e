"""Matches: counts, balance, reproducibility, and the command line."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_config

import evaluate as evaluate_module
from dreamer import Dreamer
from evaluate import Result, evaluate, evaluate_return, find_agent, main, play_games
from opponents import load
from utils import UserError, wilson_interval


class BotAgent:
    """A bot that is asked like an agent."""

    def __init__(self, name, games, frame_skip=1):
        self.config = make_config(hockey__frame_skip=frame_skip)
        self.bot = load(name, games, seed=5)

    def player(self):
        return self

    def act(self, observations, deterministic=False, plan=False):
        return self.bot.act(observations)


@pytest.fixture(scope="module")
def agent():
    torch.manual_seed(0)
    return Dreamer(make_config(hockey__frame_skip=4), 18, 4)


@pytest.fixture(scope="module")
def saved(agent, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "latest.safetensors"
    agent.save(path)
    return path


def test_counts_and_rates_by_hand():
    winner = np.array([1, 1, 1, 0, -1, -1, 0, 1])
    result = Result("strong", winner, np.array([True] * 4 + [False] * 4))
    assert result.counts() == (4, 2, 2) and result.win_rate() == 0.5
    assert result.counts(result.we_started) == (3, 1, 0)
    expected = {"wins": 0.5, "draws": 0.25, "losses": 0.25, "games": 8}
    assert result.metrics() == {f"evaluation/strong/{k}": v for k, v in expected.items()}
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


def test_the_better_bot_wins_from_whichever_side():
    for ours, theirs, better in (("strong", "random", 1), ("random", "strong", -1)):
        result = play_games(BotAgent(ours, 40), load(theirs, 40), 40)
        wins, draws, losses = result.counts()
        assert wins + draws + losses == 40
        assert better * (wins - losses) > 8


def test_sides_and_starts_are_balanced_and_games_are_normal(monkeypatch):
    tables = []
    original = evaluate_module.HockeyGames

    def spy(*arguments, **options):
        tables.append(original(*arguments, **options))
        return tables[-1]

    monkeypatch.setattr(evaluate_module, "HockeyGames", spy)
    result = play_games(BotAgent("weak", 8, frame_skip=10), load("weak", 8), 8)
    (table,) = tables
    pairs = list(zip(table.side.tolist(), result.we_started.tolist(), strict=True))
    assert all(pairs.count(pair) == 2 for pair in set(pairs)) and len(set(pairs)) == 4
    assert table.reward_kind == "sparse"
    assert np.array_equal(result.winner, table.winner)


def test_one_seed_reproduces_and_another_differs(agent):
    def play(seed):
        results = evaluate(agent, ["weak", "strong", "random"], 12, seed)
        return np.concatenate([result.winner for result in results])

    random_state = torch.get_rng_state()
    first = play(1)
    assert torch.equal(random_state, torch.get_rng_state())  # training is not disturbed
    torch.rand(3)
    assert np.array_equal(first, play(1))
    assert not all(np.array_equal(first, play(seed)) for seed in (2, 3))


def test_planning_changes_what_is_played(agent):
    plain, planned = (
        play_games(agent, load("weak", 4), 4, seed=3, plan=plan) for plan in (False, True)
    )
    assert plain.we_started.tolist() == planned.we_started.tolist()
    policy = agent.player(), agent.player()
    rows = np.random.default_rng(0).normal(size=(4, 18))
    assert not np.array_equal(
        policy[0].act(rows, deterministic=True), policy[1].act(rows, plan=True)
    )


def test_evaluating_does_not_disturb_the_agents_own_games(agent):
    agent.act(np.zeros((3, 18), np.float32))
    before = [part.clone() for part in agent.memory]
    evaluate(agent, ["weak"], 2)
    assert all(torch.equal(*pair) for pair in zip(before, agent.memory, strict=True))
    agent.reset()


def test_the_return_of_any_other_environment():
    class Episodes:
        """Three episodes of 2, 3 and 4 steps with reward 1 each, then noise."""

        def reset(self, seed=None):
            self.step_number = 0
            return np.zeros((3, 18), np.float32), {}

        def step(self, action):
            self.step_number += 1
            lengths = np.array([2, 3, 4])
            reward = np.where(self.step_number <= lengths, 1.0, 100.0)
            done, is_late = self.step_number == lengths, np.array([False, True, False])
            return np.zeros((3, 18), np.float32), reward, done & ~is_late, done & is_late, {}

    agent = Dreamer(make_config(), 18, 4)
    assert evaluate_return(agent, Episodes()) == 3.0


def test_find_agent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run/latest", "run/best", "checkpoints/champion", "checkpoints/run/best"):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(UserError, match="There is no agent"):
            find_agent(path)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
        assert find_agent(path) == path
        assert path.stem == "champion" or find_agent(path.parent) == path
    assert find_agent("champion") == Path("checkpoints/champion.safetensors")
    assert find_agent("run") == Path("run/best.safetensors")  # a path goes first
    (tmp_path / "run").rename("elsewhere")
    assert find_agent("run") == Path("checkpoints/run/best.safetensors")
    with pytest.raises(UserError, match="'chmpion'.*checkpoints/ has champion, run"):
        find_agent("chmpion")


def test_the_command_line_prints_one_line_per_opponent(saved, capsys):
    command = ["--against", "weak", "random", str(saved), "--games", "4", "--seed", "3"]
    assert main([str(saved), *command]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(":")[0].strip() for line in lines]
    assert names == ["weak", "random", "latest"]
    assert all(re.search(r"4 games, \d won, \d drawn, \d lost", line) for line in lines)
    assert main([str(saved.parent), *command]) == 0  # the folder of the run will do
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["missing.safetensors"], "missing.safetensors"),
        (["{saved}", "--against", "nobody"], "nobody"),
        (["{saved}", "--against", "gone.safetensors"], "gone.safetensors"),
        (["{saved}", "--games", "0"], "--games"),
        (["{saved}", "--seed", "-1"], "--seed"),
        (["."], "."),
        (["{pendulum}"], "pendulum"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(saved, tmp_path, capsys, arguments, word):
    other = tmp_path / "pendulum.safetensors"
    Dreamer(make_config(), 3, 1).save(other)
    arguments = [text.format(saved=saved, pendulum=other) for text in arguments]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert word in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("arguments", [[], ["x", "--games", "many"], ["x", "--nonsense"]])
def test_wrong_arguments_leave_with_status_2(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_runs_are_compared_on_one_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    head = "gradient_steps,environment_steps,minutes,evaluation/weak/wins,evaluation/weak/games"
    for seed in (0, 1):
        Path(f"a_seed{seed}.csv").write_text(f"{head}\n10,100,1,0.{seed + 2},8\n20,200,2,0.5,8\n")
    assert main(["--compare", "a_seed0.csv", "a_seed1.csv"]) == 0
    assert Path("plots/compare.html").exists() and "compare.html" in capsys.readouterr().out
    assert main(["--compare", "a_seed0.csv", "none.csv"]) == 2
    assert capsys.readouterr().err == "evaluate.py: There is no file none.csv.\n"
