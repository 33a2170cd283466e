"""The competition: rounds noticed, scores logged, connections made again, mistakes explained."""

import csv
import multiprocessing
import sys
import time
import types

import numpy as np
import pytest
from conftest import make_config

import hockey_env
import play
from dreamer import Dreamer
from extras import tournament
from hockey_env import HockeyEnv
from opponents import AgentOpponent, load
from utils import UserError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(hockey_env.MAX_TIMESTEPS, 0, 100)  # rounds take 101 frames at most


@pytest.fixture
def champion(tmp_path):
    """The path of checkpoints/champion.safetensors: an agent that was never trained."""
    path = tmp_path / "checkpoints/champion.safetensors"
    Dreamer(make_config(hockey__frame_skip=2), 18, 4).save(path)
    return path


class Notes:
    """A player that notes the frames in which it was told that a game starts."""

    def __init__(self, player):
        self.player, self.frame, self.starts = player, 0, []

    def reset(self):
        self.player.reset()
        self.starts.append(self.frame)

    def act(self, observation):
        self.frame += 1
        return self.player.act(observation)


def play_rounds(left, right, rounds, keeps_counters=False):
    """Rounds fed frame by frame as the server does -> frames in which one really started.

    `keeps_counters`: as in the lab's game, who holds the puck is not forgotten between rounds.
    """
    env = HockeyEnv()
    observation, _ = env.reset(seed=0)
    starts, frame = [0], 0
    while len(starts) <= rounds:
        views = (observation, env.obs_agent_two())
        actions = [one.act(view.tolist()) for one, view in zip((left, right), views, strict=True)]
        for action in actions:
            assert len(action) == 4 and all(type(x) is float and -1 <= x <= 1 for x in action)
        observation, _, terminated, truncated, _ = env.step(np.concatenate(actions))
        frame += 1
        if terminated or truncated:
            starts.append(frame)
            observation, _ = env.reset()
            if keeps_counters:
                env.player1_has_puck = observation[16] = 7
    return starts[:-1]


def test_every_new_round_is_noticed_and_nothing_else():
    notes = [Notes(load("strong")), Notes(load("random"))]
    contestants = [tournament.Contestant(player) for player in notes]
    starts = play_rounds(*contestants, 60, keeps_counters=True)
    assert len(starts) == 60 and contestants[0].rounds == 60
    assert notes[0].starts == notes[1].starts == starts


def test_each_round_is_played_as_if_it_were_the_first(champion):
    """Four rounds in a row: memories, and whose turn it is of them, start anew."""
    player = load(champion)
    seen, acted = [], []

    class Recorder(tournament.Contestant):
        def act(self, observation):
            seen.append(observation)
            acted.append(super().act(observation))
            return acted[-1]

    starts = play_rounds(Recorder(player), tournament.Contestant(load("weak", seed=2)), 4)
    assert len(starts) == 4 and any(start % 2 for start in starts)  # odd: another memory's turn
    for start, end in zip(starts, [*starts[1:], len(seen)], strict=True):
        fresh = AgentOpponent(Dreamer.load(champion), 1, "", deterministic=True)
        again = [fresh.act(np.array(view, np.float32)) for view in seen[start:end]]
        assert np.array_equal(np.array(again), np.array(acted[start:end], np.float32))


@pytest.fixture
def comprl(monkeypatch):
    """A stand-in for the lab's package with the documented interface of its `Agent`."""

    class Agent:
        script = ()  # what the server does

        def run(self, token, host="localhost", port=65335):
            self.token, self.address = token, (host, port)
            self.answers = [getattr(self, name)(*arguments) for name, *arguments in self.script]

        def auth(self):
            return self.token

        def is_ready(self):
            return True

    package, client = types.ModuleType("comprl"), types.ModuleType("comprl.client")
    client.Agent = Agent
    monkeypatch.setitem(sys.modules, "comprl", package)
    monkeypatch.setitem(sys.modules, "comprl.client", client)
    return Agent


def test_the_client_plays_and_logs_scores(comprl, capsys, champion):
    rows = [HockeyEnv().reset(seed=seed)[0].tolist() for seed in range(2)]
    comprl.script = [
        ("auth",),
        ("on_message", "Authentication successful"),
        ("is_ready",),
        ("on_start_game", bytes(range(16))),
        *(("get_step", row) for row in rows),
        ("on_end_game", True, [2.0, 1.0]),
        ("on_start_game", bytes(16)),
        ("get_step", rows[0]),
        ("on_end_game", False, [1.0, 1.0]),
        ("on_end_game", False, [0.0, 1.0]),
        ("on_error", "Timeout after 10s"),
        ("on_disconnect",),
    ]
    with pytest.raises(SystemExit) as ended:
        tournament.connect(str(champion), "host", 1, "secret")
    assert ended.value.code == tournament.LOST
    with open("metrics/tournament.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["result"] for row in table] == ["won", "drawn", "lost"]
    assert [(row["ours"], row["theirs"]) for row in table] == [("2", "1"), ("1", "1"), ("0", "1")]
    assert [row["rounds"] for row in table] == ["2", "1", "1"]
    assert {row["agent"] for row in table} == {"champion"}
    out = capsys.readouterr().out
    assert "won 2 : 1 in 2 rounds" in out and "Timeout" in out and "secret" not in out


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ([("on_error", "Connection to the server failed: ...")], tournament.AWAY),
        ([("auth",), ("on_error", "Authentication failed")], tournament.REFUSED),
        ([("auth",), ("on_disconnect",)], tournament.LOST),
    ],
)
def test_how_a_connection_ends(comprl, script, outcome, champion):
    comprl.script = script
    with pytest.raises(SystemExit) as ended:
        tournament.connect(str(champion), "host", 1, "secret")
    assert ended.value.code == outcome


@pytest.fixture
def connections(monkeypatch):
    """A function that says how each connection will end; no process is started."""

    def end_as(outcomes):
        outcomes = iter(outcomes)

        class Process:
            def __init__(self, target, args):
                assert target is tournament.connect

            def start(self):
                self.exitcode = next(outcomes)

            def join(self):
                pass

        context = types.SimpleNamespace(Process=Process)
        monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)

    return end_as


def test_connecting_again_after_longer_and_longer_pauses(connections, monkeypatch):
    connections([tournament.LOST] + 8 * [tournament.AWAY] + [tournament.LOST, 1])
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(UserError, match="exit status 1"):
        tournament.stay_connected("champion", "host", 1, "secret")
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300, 5]


def refused(capsys, *arguments):
    """The one line with which the command is refused."""
    capsys.readouterr()
    assert play.main(["tournament", "champion", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("play.py: "), lines
    return lines[0]


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (tournament.AWAY, "No competition server answers at example.org:65335."),
        (tournament.REFUSED, "example.org:65335 refuses the token"),
    ],
)
def test_no_server_or_no_such_token(
    outcome, message, comprl, champion, connections, monkeypatch, capsys
):
    connections(3 * [outcome])
    for name, value in (("URL", "example.org"), ("PORT", "65335")):
        monkeypatch.setenv(f"COMPRL_SERVER_{name}", value)
    assert message in refused(capsys, "--token", "mine")
    assert "--token is missing" in refused(capsys)
    monkeypatch.setenv("COMPRL_ACCESS_TOKEN", "mine")
    assert message in refused(capsys)
    assert "--server-port" in refused(capsys, "--server-port", "http")
    assert "--server-port" in refused(capsys, "--server-port", "65536")


def test_the_package_is_on_no_registry(champion, monkeypatch, capsys):
    address = ("--server-url", "localhost", "--server-port", "1", "--token", "mine")
    monkeypatch.setitem(sys.modules, "comprl", None)
    assert 'pip install "comprl @ git+' in refused(capsys, *address)
