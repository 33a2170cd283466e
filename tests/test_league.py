"""The league: fair pairs, names, ratings, worst cases, its page, and the command line."""

import base64
import gzip
import json
import re
import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import make_config

import evaluate as evaluate_module
from dreamer import Dreamer
from evaluate import Result, main, play_games
from league import League, find_players, play_league, rate
from opponents import AgentOpponent, load
from plots import write_league


def games(wins, draws, losses):
    """A `Result` against somebody, with these counts."""
    winner = np.repeat([1, 0, -1], [wins, draws, losses])
    return Result("?", winner, np.arange(len(winner)) % 4 < 2)


@pytest.fixture
def cycle():
    """A League by hand: a beats b, b beats c, c beats a; d draws all its games."""
    played = {("a", "b"): games(6, 2, 2), ("b", "c"): games(7, 1, 2), ("c", "a"): games(3, 7, 0)}
    played |= {(name, "d"): games(0, 10, 0) for name in "abc"}
    for (_, opponent), result in played.items():
        result.opponent = opponent
    return League(played, rate(played))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three agents: two of one name, one of a bot's name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for number, (name, frame_skip) in enumerate((("a/best", 3), ("b/best", 2), ("c/weak", 1))):
        torch.manual_seed(number)
        agent = Dreamer(make_config(hockey__frame_skip=frame_skip), 18, 4)
        agent.save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def bots():
    """A league of the scripted bots, 80 games per pair."""
    return play_league(find_players(["random", "weak", "strong"]), 80, seed=1)


def test_the_better_bot_stands_above(bots):
    assert bots.names[0] == "strong" and bots.rating("strong") > bots.rating("random")
    wins, draws, losses = bots.result("strong", "random").counts()
    assert wins + draws + losses == 80 and wins > losses
    assert "strong" in bots.hard_counters("random") and not bots.hard_counters("strong")


def test_both_sides_tell_the_same(bots):
    for one, other in permutations(bots.names, 2):
        wins, draws, losses = bots.result(one, other).counts()
        assert bots.result(other, one).counts() == (losses, draws, wins)
        assert bots.result(one, other).opponent == other
        turned = bots.result(other, one)
        assert np.array_equal(bots.result(one, other).we_started, ~turned.we_started)


def test_who_is_named_first_makes_no_difference():
    first, second = (
        play_league([load(name) for name in names], 120).result("weak", "random")
        for names in (("weak", "random"), ("random", "weak"))
    )
    for one, other in ((first, second), (second, first)):
        low, high = one.interval()
        assert low < other.win_rate() < high
    assert not np.array_equal(first.winner, second.winner)  # other games, or it proves nothing


def test_sides_and_starts_are_balanced(monkeypatch):
    tables = []
    original = evaluate_module.HockeyGames

    def spy(*arguments, **options):
        tables.append(original(*arguments, **options))
        return tables[-1]

    monkeypatch.setattr(evaluate_module, "HockeyGames", spy)
    play_league(find_players(["weak", "strong", "random"]), 8)
    assert len(tables) == 3
    for table in tables:
        pairs = list(zip(table.side.tolist(), table.we_start.tolist(), strict=True))
        assert all(pairs.count(pair) == 2 for pair in set(pairs)) and len(set(pairs)) == 4


def test_agents_play_as_they_do_in_an_evaluation(saved):
    """Deterministic, with their frame skip, and without memories of the pair before."""
    paths = [str(saved / "a" / "best.safetensors"), str(saved / "b" / "best.safetensors")]
    league = play_league(find_players([*paths, "strong"]), 8, seed=3)
    one, two = (Dreamer.load(path) for path in paths)
    expected = {
        ("a/best", "b/best"): play_games(one, AgentOpponent(two, 8, "two", True), 8, seed=3),
        ("a/best", "strong"): play_games(one, load("strong", 8, seed=4), 8, seed=3),
        ("b/best", "strong"): play_games(two, load("strong", 8, seed=4), 8, seed=3),
    }
    assert set(expected) == set(league.played)
    assert any(result.winner.any() for result in expected.values())
    for pair, result in expected.items():
        assert np.array_equal(league.played[pair].winner, result.winner), pair


def test_worst_cases_and_hard_counters_by_hand(cycle):
    assert [cycle.worst_case(name).opponent for name in "abc"] == ["c", "d", "d"]
    assert cycle.worst_case("d").win_rate() == 0
    counters = {name: cycle.hard_counters(name) for name in "abcd"}
    assert counters == {"a": ["c"], "b": ["a"], "c": ["b"], "d": []}
    assert cycle.names == ["b", "a", "c", "d"]
    played = {("a", "b"): games(0, 9, 0), ("b", "c"): games(9, 0, 0), ("c", "a"): games(9, 0, 0)}
    assert League(played, None).worst_case("a").opponent == "c"  # losing is worse than drawing


def test_ratings_are_those_of_openskill():
    from openskill.models import PlackettLuce

    model = PlackettLuce()
    for result, scores in (
        (games(1, 0, 0), [1, 0]),
        (games(0, 1, 0), [2, 2]),
        (games(0, 0, 1), [0, 3]),
    ):
        [[one], [two]] = model.rate([[model.rating()], [model.rating()]], scores=scores)
        ratings = rate({("one", "two"): result})
        assert ratings == {"one": (one.mu, one.sigma), "two": (two.mu, two.sigma)}
        rating = League({("one", "two"): result}, ratings).rating("one")
        assert rating == pytest.approx(one.ordinal())


def test_ratings_come_in_a_random_but_repeatable_order(cycle):
    assert rate(cycle.played) == cycle.ratings != rate(cycle.played, seed=1)
    streak = {("one", "two"): games(50, 0, 50)}  # in this order, the last wins would count most
    ratings = rate(streak)
    assert abs(ratings["one"][0] - ratings["two"][0]) < 6


def test_names_tell_players_apart(saved, tmp_path):
    agents = [saved / name for name in ("a/best.safetensors", "b", "c/weak.safetensors")]
    names = [player.name for player in find_players(["weak", *map(str, agents)])]
    assert names == ["weak", "a/best", "b/best", "c/weak"]
    assert [player.name for player in find_players(["strong", str(agents[2])])] == [
        "strong",
        "weak",
    ]
    deeper = tmp_path / "a" / "best.safetensors"
    deeper.parent.mkdir()
    deeper.write_bytes(agents[0].read_bytes())
    names = [player.name for player in find_players([str(agents[0]), str(deeper)])]
    assert names == [f"{saved.name}/a/best", f"{tmp_path.name}/a/best"]


def test_the_command_line_prints_and_draws_all(saved, tmp_path, capsys):
    page = tmp_path / "new" / "league.html"
    command = ["--league", "strong", str(saved / "a"), "random", "--games", "4"]
    assert main([*command, "--page", str(page)]) == 0
    text = capsys.readouterr().out
    matrix, ratings, worst, place = text.strip().split("\n\n")
    for part in (matrix, ratings, worst):
        assert all(
            re.search(rf"^ .*\b{name}\b", part, re.M) for name in ("strong", "best", "random")
        )
    assert len(re.findall(r"\d+% \[\d+%, \d+%\]", matrix)) == 6
    counts = re.findall(r"(\d)/(\d)/(\d)", matrix)
    assert len(counts) == 6 and all(sum(map(int, count)) == 4 for count in counts)
    assert str(page) in place
    assert main([*command, "--page", str(page)]) == 0 and capsys.readouterr().out == text


def test_the_page_is_complete_offline_and_small(cycle, tmp_path):
    played = cycle.played | {(name, "<i>/e"): games(1, 0, 3) for name in "abcd"}
    league = League(played, rate(played))
    write_league(league, tmp_path / "plots" / "league.html", "All & sundry.")
    page = (tmp_path / "plots" / "league.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|\ssrc=|<link|@import", page) and len(page) < 5e6
    assert "All &amp; sundry." in page and "<i>/" not in page and "&lt;i&gt;/" in page
    packed = re.search(r'id="data">([^<]*)<', page)[1]
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    (panel,) = data["panels"]
    (heat,) = panel["traces"]
    assert page.count('class="chart"') == 1 and page.count("<tr>") == 6
    for row, name in enumerate(league.names):
        assert heat["z"][row][row] is None and heat["text"][row][row] == ""
        for column, other in enumerate(league.names):
            if other != name:
                assert heat["z"][row][column] == league.result(name, other).win_rate()
        assert f"{league.rating(name):.1f}<br>" in page


def test_without_openskill_only_the_ratings_are_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "openskill", None)
    monkeypatch.setitem(sys.modules, "openskill.models", None)
    page = tmp_path / "league.html"
    assert main(["--league", "weak", "random", "--games", "4", "--page", str(page)]) == 0
    text = capsys.readouterr().out
    matrix, ratings, worst, _ = text.strip().split("\n\n")
    assert "pip install openskill" in ratings and "\n" not in ratings
    assert "weak" in matrix and "weak" in worst
    text = page.read_text()
    assert "pip install openskill" in text and text.count("<tr>") == 3


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "two players"),
        (["weak"], "two players"),
        (["weak", "nobody"], "nobody"),
        (["weak", "gone.safetensors"], "gone.safetensors"),
        (["weak", "{pendulum}"], "pendulum"),
        (["weak", "strong", "weak"], "'weak' twice"),
        (["{saved}/a", "{saved}/b/../a/best.safetensors"], "best.safetensors' twice"),
        (["weak", "strong", "--games", "0"], "--games"),
        (["weak", "strong", "--games", "2"], "multiple of 4"),
        (["weak", "strong", "--games", "-4"], "--games"),
        (["weak", "strong", "--games", "102"], "multiple of 4, not 102"),
        (["weak", "strong", "--seed", "-1"], "--seed"),
        (["weak", "strong", "--page", "{pendulum}/league.html"], "pendulum"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(saved, tmp_path, capsys, arguments, word):
    other = tmp_path / "pendulum.safetensors"
    Dreamer(make_config(), 3, 1).save(other)
    arguments = [text.format(saved=saved, pendulum=other) for text in arguments]
    assert main(["--league", *arguments]) == 2
    captured = capsys.readouterr()
    assert word in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("arguments", [["x", "--league", "weak", "strong"], ["--games", "4"]])
def test_a_league_or_a_checkpoint_but_not_both(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "--league" in capsys.readouterr().err
