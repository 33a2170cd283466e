"""The league: fair pairs, names, ratings, worst cases, its page, and the command line."""

import base64
import gzip
import re
import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import make_config

import hockey_env
import matches
from dreamer import Dreamer
from evaluate import main
from extras.league import League, find_players, play_league, rate
from matches import Result, play_games
from opponents import AgentOpponent, load


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


@pytest.fixture
def short_games(monkeypatch):
    """Games take 121 frames at most."""
    monkeypatch.setitem(hockey_env.MAX_TIMESTEPS, 0, 120)


@pytest.fixture(scope="module")
def bots():
    """A league of the scripted bots, 20 games per pair."""
    return play_league(find_players(["random", "weak", "strong"]), 20)


def test_the_better_bot_stands_above(bots):
    assert bots.names[0] == "strong"
    assert bots.ratings["strong"].ordinal() > bots.ratings["random"].ordinal()
    wins, draws, losses = bots.played["strong", "random"].counts()
    assert wins + draws + losses == 20 and wins > losses
    assert "strong" in bots.hard_counters("random") and not bots.hard_counters("strong")


def test_both_sides_tell_the_same(bots):
    for one, other in permutations(bots.names, 2):
        result, turned = bots.played[one, other], bots.played[other, one]
        assert result.counts() == turned.counts()[::-1] and result.opponent == other
        assert np.array_equal(result.we_started, ~turned.we_started)


def test_who_is_named_first_makes_no_difference():
    first, second = (
        play_league(find_players(names), 40).played["weak", "random"]
        for names in (("weak", "random"), ("random", "weak"))
    )
    (low, high), (other_low, other_high) = first.interval(), second.interval()
    assert max(low, other_low) < min(high, other_high)
    assert not np.array_equal(first.winner, second.winner)  # other games, or it proves nothing


def test_sides_and_starts_are_balanced(short_games, monkeypatch):
    tables = []
    original = matches.HockeyGames

    def spy(*arguments, **options):
        tables.append(original(*arguments, **options))
        return tables[-1]

    monkeypatch.setattr(matches, "HockeyGames", spy)
    play_league(find_players(["weak", "strong", "random"]), 8)
    assert len(tables) == 3
    for table in tables:
        pairs = list(zip(table.side.tolist(), table.we_start.tolist(), strict=True))
        assert all(pairs.count(pair) == 2 for pair in set(pairs)) and len(set(pairs)) == 4


def test_agents_play_as_they_do_in_an_evaluation(saved, short_games):
    """Deterministic, deciding every frame, and without memories of the pair before."""
    paths = [str(saved / name / "best.safetensors") for name in "ab"]
    league = play_league(find_players([*paths, "strong"]), 8, seed=3)
    assert {*permutations(("a", "b", "strong"), 2)} == set(league.played)
    settings = make_config(hockey__frame_skip=1).hockey
    for name, other in (("a", "b"), ("a", "strong"), ("b", "strong")):
        one, two = (
            AgentOpponent(Dreamer.load(saved / player / "best.safetensors"), 8, "", True)
            if player in "ab"
            else load(player, 8, seed=4)
            for player in (name, other)
        )
        result = play_games(one.act, two, 8, settings, seed=3)
        assert np.array_equal(league.played[name, other].winner, result.winner), (name, other)
        assert result.winner.any() or other == "b"


def test_worst_cases_and_hard_counters_by_hand(cycle):
    assert [cycle.worst_case(name).opponent for name in "abc"] == ["c", "d", "d"]
    assert cycle.worst_case("d").win_rate() == 0
    counters = {name: cycle.hard_counters(name) for name in "abcd"}
    assert counters == {"a": ["c"], "b": ["a"], "c": ["b"], "d": []}
    ordinals = [cycle.ratings[name].ordinal() for name in cycle.names]
    assert ordinals == sorted(ordinals, reverse=True)
    assert League(cycle.played, None).names == ["b", "a", "c", "d"]  # by wins: 9, 6, 5, 0
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
        teams = model.rate([[model.rating()], [model.rating()]], scores=scores)
        ratings = rate({("one", "two"): result})
        for [expected], rating in zip(teams, ratings.values(), strict=True):
            assert (rating.mu, rating.sigma) == (expected.mu, expected.sigma)


def test_ratings_come_in_a_random_but_repeatable_order(cycle):
    first, again, other = (
        [(one.mu, one.sigma) for one in rate(cycle.played, seed).values()] for seed in (0, 0, 1)
    )
    assert first == again != other
    streak = {("one", "two"): games(50, 0, 50)}  # in this order, the last wins would count most
    one, two = rate(streak).values()
    assert abs(one.mu - two.mu) < 6


def test_names_tell_players_apart(saved, tmp_path):
    agents = [str(saved / name) for name in ("a/best.safetensors", "b", "c/weak.safetensors")]
    assert list(find_players(["weak", *agents])) == ["weak", "a", "b", agents[2]]
    assert list(find_players(["strong", agents[2]])) == ["strong", "weak"]
    deeper = tmp_path / "a" / "best.safetensors"
    deeper.parent.mkdir()
    deeper.write_bytes((saved / "a" / "best.safetensors").read_bytes())
    assert list(find_players([agents[0], str(deeper)])) == [agents[0], str(deeper)]
    again = f"{saved}/b/../a"
    assert list(find_players(["weak", agents[0], again, "weak"])) == ["weak", "a"]


def test_the_command_line_prints_and_draws_all(saved, short_games, tmp_path, capsys):
    page = tmp_path / "new" / "league.html"
    command = ["--league", "strong", str(saved / "a"), "random", "--games", "4"]
    assert main([*command, "--page", str(page)]) == 0
    text = capsys.readouterr().out
    matrix, table, _, place = text.strip().split("\n\n")
    for part in (matrix, table):
        assert all(re.search(rf"^\d {name}\b", part, re.M) for name in ("strong", "a", "random"))
    assert len(re.findall(r"\d+% \[\d+%, \d+%\]", matrix)) == 6
    counts = re.findall(r"(\d)/(\d)/(\d)", matrix)
    assert len(counts) == 6 and all(sum(map(int, count)) == 4 for count in counts)
    assert str(page) in place
    assert main([*command, "--page", str(page)]) == 0 and capsys.readouterr().out == text


def test_the_page_is_complete_offline_and_small(short_games, tmp_path):
    name = str(tmp_path / "<i>.safetensors")
    Dreamer(make_config(), 18, 4).save(name)
    path = tmp_path / "plots" / "league.html"
    assert main(["--league", "weak", "strong", name, "--games", "4", "--page", str(path)]) == 0
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|\ssrc=|<link|@import", page) and len(page) < 1e5
    assert not re.search(r"\$[a-z]", page)  # nothing left to fill in
    assert "<i></td>" not in page and page.count("&lt;i&gt;") >= 2
    assert page.count("<tr>") == 8  # two tables of three players and a head
    assert len(re.findall(r"style='background[^>]*>\d+% \[", page)) == 6
    packed = re.search(r'id="data">([^<]*)<', page)[1]
    assert gzip.decompress(base64.b64decode(packed)) == b"{}"


def test_without_openskill_only_the_ratings_are_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "openskill", None)
    monkeypatch.setitem(sys.modules, "openskill.models", None)
    page = tmp_path / "league.html"
    assert main(["--league", "weak", "random", "--games", "4", "--page", str(page)]) == 0
    matrix, table, text, _ = capsys.readouterr().out.strip().split("\n\n")
    assert "weak" in matrix and "weak" in table and "pip install openskill" in text
    text = page.read_text()
    assert "pip install openskill" in text and text.count("<tr>") == 6


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "two players"),
        (["weak"], "two players"),
        (["weak", "nobody"], "nobody"),
        (["weak", "gone.safetensors"], "gone.safetensors"),
        (["weak", "{pendulum}"], "pendulum"),
        (["weak", "weak"], "two players"),
        (["{saved}/a", "{saved}/b/../a/best.safetensors"], "two players"),
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
