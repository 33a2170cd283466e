"""Somebody's own code as a player: wherever one can be named, and every mistake in one sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
from tiny import quicken, run, tiny_config

import evaluate
import main
import play
from extras import film
from extras.league import find_players, play_league
from extras.tournament import Contestant
from hockey_wrapper import HockeyGames
from machine import Stop
from opponents import called, load
from utils import UserError, one_line

GOOD = """
import numpy as np
import neighbour

class MyBot:
    made = []

    def __init__(self):
        self.games = 0
        self.made.append(self)

    def reset(self):
        self.games += 1

    def act(self, observation):
        assert observation.shape == (18,)
        return [1, 0, neighbour.TURN, self.games % 2]
"""
README = Path(main.__file__).with_name("README.md")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quicken(monkeypatch)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    Path("neighbour.py").write_text("TURN = -0.5")
    Path("mine.py").write_text(GOOD)


def own(body, name="bad"):
    """The player `name.py:Bot`, whose class has this body."""
    Path(f"{name}.py").write_text("class Bot:\n    " + body)
    return f"{name}.py:Bot"


def games_against(opponent, count=2, settings=None):
    return HockeyGames(settings or tiny_config().hockey, count, lambda: opponent)


# ---------------------------------------------------------------------------- plays everywhere


def test_each_game_has_an_object_of_its_own_which_is_asked_every_frame():
    opponent = load("mine.py:MyBot", games=3)
    assert opponent.name == called("mine.py:MyBot") == called(Path("a/mine.py:MyBot")) == "MyBot"
    opponent.reset()
    opponent.reset([1])
    rows = np.zeros((2, 18), np.float32)
    expected = [[1, 0, -0.5, 0], [1, 0, -0.5, 1]]  # the games so far, modulo two
    assert opponent.act(rows, [1, 2]).tolist() == expected
    assert opponent.act(rows[0]).tolist() == expected[1]
    table = games_against(load(str(Path("mine.py").resolve()) + ":MyBot", 2))
    table.reset(seed=0)
    *_, info = table.step(np.zeros((2, 4)))
    assert info["opponent_action"].tolist() == [expected[1]] * 2 and info["opponent"][0] == "MyBot"


def test_evaluate_and_the_league_take_it(capsys):
    run(gradient_steps=2, opponents__files="[]", opponents__files_share=0)
    capsys.readouterr()
    agent = "checkpoints/tiny/latest.safetensors"
    assert evaluate.main([agent, "--against", "mine.py:MyBot", "--games", "4"]) == 0
    assert "MyBot: 4 games" in capsys.readouterr().out
    assert evaluate.main("mine.py:MyBot --against random weak --games 4 --seed 2".split()) == 0
    assert evaluate.main("random --against mine.py:MyBot --games 4".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["random", "weak", "MyBot"]
    Path("other").mkdir()
    Path("other/mine.py").write_text(GOOD)
    players = find_players(["mine.py:MyBot", "random", "other/mine.py:MyBot"])
    assert list(players) == ["mine.py:MyBot", "random", "other/mine.py:MyBot"]
    league = play_league(find_players(["mine.py:MyBot", "random"]), 4)
    assert set(league.names) == {"MyBot", "random"}


def test_it_is_watched_and_competes(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(play, "save_video", lambda match, *_: shown.extend(match.frames()))
    monkeypatch.setattr(film, "AFTER_GAME", 0)
    assert play.main("watch mine.py:MyBot weak --games 1 --video x.mp4".split()) == 0
    assert capsys.readouterr().out.startswith("MyBot ") and len(shown) > 10
    assert Contestant(load("mine.py:MyBot")).act(np.zeros(18)) == [1, 0, -0.5, 0]


def test_training_plays_against_it_and_goes_on_after_a_crash():
    keys = {"opponents__files": "[mine.py:MyBot]", "opponents__files_share": 0.5}
    assert run(crash_after=60, **keys) == 60
    training = main.Training(tiny_config(**keys, resume="true"))
    before = training.agent.gradient_steps
    assert 0 < before < 12
    assert main.main(tiny_config(**keys, resume="true"), Stop())
    header, *rows = Path("metrics/tiny.csv").read_text().splitlines()
    shares = [row.split(",")[header.split(",").index("opponents/MyBot")] for row in rows]
    assert float(shares[-1]) > 0.2


def test_the_example_of_the_readme_plays():
    text = README.read_text(encoding="utf-8").partition("    # mine.py\n")[2]
    example = re.match(r"(    .*\n|\n)*?(?=    python)", text)[0]
    Path("readme.py").write_text(re.sub(r"^    ", "", example, flags=re.M))
    table = games_against(load("readme.py:MyBot", 2))
    table.reset(seed=0)
    for _ in range(5):
        table.step(np.zeros((2, 4)))


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("gone.py:MyBot", "gone.py:MyBot: there is no file gone.py; own code is path.py:Class"),
        ("mine.py", "mine.py: there is no class named; own code is path.py:Class"),
        ("mine.py:Other", "mine.py has no class 'Other'"),
        ("mine.py:neighbour", "mine.py has no class 'neighbour'"),
    ],
)
def test_what_is_not_there_is_said(spec, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        load(spec)


@pytest.mark.parametrize(
    "body, expected",
    [
        ("def step(self): pass", "bad.py:Bot needs a method act(self, observation)"),
        ("def __init__(self, x): pass\n    act = 1", "needs a method act"),
        (
            "def __init__(self, x): pass\n    def act(self, x): pass",
            "bad.py:Bot: Bot() failed: TypeError: .*'x'",
        ),
        ("def act(self, x) return 1", "bad.py failed: SyntaxError: .*line 2"),
        ("import no_such_package", "bad.py failed: ModuleNotFoundError: .*no_such_package"),
        ("raise SystemExit(3)", "bad.py failed: SystemExit: 3 (bad.py, line 2)"),
    ],
)
def test_a_class_that_is_no_player_is_named(body, expected):
    expected = re.escape(expected).replace(r"\.\*", ".*")
    with pytest.raises(UserError, match=expected) as caught:
        load(own(body))
    assert one_line(caught.value) == str(caught.value)


@pytest.mark.parametrize(
    "body, expected",
    [
        ("def act(self, x): return 1 / 0", "failed: ZeroDivisionError: division by zero (bad.py"),
        ("def act(self, x): return [0, 0, 0]", "returned actions"),
        ("def act(self, x): return None", "returned actions"),
        ("def act(self): return [0] * 4", "failed: TypeError"),
        ("def act(self, x): return [0, 0, 0, 7]", "actions are within [-1, 1]"),
        ("def act(self, x): return [0, 0, 0, float('nan')]", "actions are within [-1, 1]"),
        ("def act(self, x): return 0\n    def reset(self): oops", "failed: NameError: name 'oops'"),
    ],
)
@pytest.mark.parametrize("where", ["games", "match", "league", "tournament"])
def test_what_fails_while_playing_is_named(where, body, expected):
    spec = own(body, f"bad_{where}")
    with pytest.raises(UserError, match=f"The player 'Bot' .*{re.escape(expected)[:40]}"):
        if where == "games":
            table = games_against(load(spec, 2))
            table.reset(seed=0)
            table.step(np.zeros((2, 4)))
        elif where == "match":
            for _ in film.Match([load("weak"), load(spec)], 1).frames():
                pass
        elif where == "league":
            play_league(find_players([spec, "weak"]), 4)
        else:
            player = Contestant(load(spec))
            player.player.reset()
            player.act(np.ones(18))


def test_a_mistake_on_the_command_line_is_one_line(capsys):
    spec = own("def act(self, x): return 1 / 0")
    assert play.main(["watch", "weak", spec, "--video", "x.mp4"]) == 2
    assert play.main(["watch", "weak", "gone.py:Bot"]) == 2
    assert evaluate.main(["--league", "weak", spec]) == 2
    assert evaluate.main([spec]) == 2
    assert evaluate.main(["gone.py:Bot"]) == 2
    assert main.command_line(["run=x", "opponents.files=[gone.py:Bot]"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 6


# ---------------------------------------------------------------------------- names


def test_files_of_equal_names_are_counted_apart():
    from test_opponents import make_agent, make_pool

    files = ["a/same/best.safetensors", "b/same/best.safetensors", "snapshot_0000001.safetensors"]
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        make_agent().save(file)
    Path("other.py").write_text(GOOD)
    files += ["mine.py:MyBot", "other.py:MyBot"]
    pool = make_pool(files=f"[{','.join(files)}]", files_share=1.0)
    assert {pool.choose().name for _ in range(200)} == set(files)
    pool.start(1)
    for file in files:
        pool.record(pool.fixed[file].name, 1)
    assert pool.metrics(0) == {f"opponents/{file}": 0.2 for file in sorted(files)}
