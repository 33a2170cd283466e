"""What people do with an agent: films, the window and its keys, the competition, and mistakes."""

import csv
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from conftest import make_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_main import command

import main as training
import play
import tournament
from dreamer import Dreamer
from hockey_env import HockeyEnv
from opponents import AgentOpponent, load
from utils import UserError

pygame = play.pygame


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def champion(tmp_path):
    """The path of checkpoints/champion.safetensors: an agent that was never trained."""
    path = tmp_path / "checkpoints/champion.safetensors"
    Dreamer(make_config(hockey__frame_skip=2), 18, 4).save(path)
    return path


class Ticks:
    """A clock that does not wait but notes the frames per second asked for."""

    asked = []

    def tick(self, rate):
        self.asked.append(round(rate))


@pytest.fixture
def screen(monkeypatch):
    """A virtual screen; the list of frame rates asked of its clock."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(pygame.time, "Clock", Ticks)
    monkeypatch.setattr(Ticks, "asked", [])
    yield Ticks.asked
    pygame.display.quit()


class Typist:
    """A player who does nothing, and presses or lets go of keys in given frames of its game."""

    def __init__(self, down=None, up=None):
        self.plans = ((pygame.KEYDOWN, down or {}), (pygame.KEYUP, up or {}))
        self.seen, self.games = [], 0

    def reset(self):
        self.seen.clear()
        self.games += 1

    def act(self, observation):
        self.seen.append(np.array(observation))
        for kind, plan in self.plans:
            for key in plan.get(len(self.seen), ()):
                pygame.event.post(pygame.event.Event(kind, key=key))
        return np.zeros(4, np.float32)


def refused(capsys, *arguments):
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert play.main([str(part) for part in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("play.py: "), lines
    return lines[0]


# ---------------------------------------------------------------------------- matches and films


def test_a_match_counts_goals_and_takes_turns():
    match = play.Match(load("strong"), Typist(), ("strong", "nobody"), games=4)
    starts, frames = [], 0
    for _ in match.frames():
        frames += 1
        if match.env.time == 0:
            starts.append((match.game, match.env.one_starts))
    assert starts == [(1, True), (2, False), (3, True), (4, False)]
    assert frames > 4 * play.AFTER_GAME and 0 < match.score[0] <= 4 == match.games
    assert match.outcome() == f"strong {match.score[0]} : 0 nobody"


def test_the_picture_shows_the_table_and_who_plays():
    pictures = []
    for names in (("left", "right"), ("a name that is far too long for a board", "right")):
        match = play.Match(Typist(), Typist(), names, games=1)
        next(match.frames())
        pictures.append(pygame.surfarray.array3d(match.picture()).swapaxes(0, 1))
    table, boards = match.env.render("rgb_array"), [picture[: play.BOARD] for picture in pictures]
    assert all(np.array_equal(picture[play.BOARD :], table) for picture in pictures)
    changed = (boards[0] != boards[1]).any((0, 2)).nonzero()[0]
    assert 90 < changed.min() and changed.max() < 300  # only the left name, and not on the score


@pytest.mark.parametrize(("suffix", "every"), [("mp4", 1), ("gif", 2)])
def test_a_film_has_every_frame(suffix, every, champion, capsys):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = f"films/game.{suffix}"
    arguments = ["champion", "strong", "--games", "1", "--video", path, "--speed", "0.5"]
    assert play.main(["watch", *arguments]) == 0
    assert capsys.readouterr().out.startswith("champion 0 : ")
    torch.manual_seed(0)
    players = [load(name, seed=i, plan=True) for i, name in enumerate((champion, "strong"))]
    shown = sum(1 for _ in play.Match(*players, ("", ""), 1).frames())
    about = next(ffmpeg.read_frames(path))
    assert about["size"] == play.PICTURE and about["fps"] == 25 / every
    assert ffmpeg.count_frames_and_secs(path)[0] == -(-shown // every)


def test_each_new_best_is_filmed(monkeypatch, capsys):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(play, "AFTER_GAME", 0)
    weights = []
    for is_filmed in (False, True):  # filming changes nothing else
        assert training.main(command(videos=is_filmed, overwrite=True)) == 0
        weights.append(load("checkpoints/tiny/latest.safetensors").agent.actor.state_dict())
        assert os.path.exists("videos") == is_filmed
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert os.listdir("videos") == ["tiny_4.mp4"]
    assert ffmpeg.count_frames_and_secs("videos/tiny_4.mp4")[0] > 20
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert training.main(command(videos=True, run="other")) == 2
    assert training.main(command("pendulum.yml", videos=True, run="other")) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "pip install imageio-ffmpeg" in errors[0] and "only hockey" in errors[1]
    assert not os.path.exists("checkpoints/other")


def test_agents_saved_before_there_were_videos_still_load(champion):
    with safe_open(champion, "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["config"])
    assert config.pop("videos") is False
    metadata["config"] = json.dumps(config)
    metadata.pop("checksum")
    save_file(load_file(champion), champion, metadata)
    assert load(champion).agent.config.videos is False


# ---------------------------------------------------------------------------- the window


def test_watching_ends_with_the_games(screen, champion, capsys):
    assert play.main(["watch", "champion", "strong", "--games", "1", "--speed", "2"]) == 0
    assert set(screen) == {100}
    assert capsys.readouterr().out.startswith("champion 0 : ")


def test_the_keys_of_the_window(screen):
    typist = Typist(
        down={
            10: [pygame.K_m],  # slow motion on ...
            15: [pygame.K_m],  # ... and off
            20: [pygame.K_r],
        }
    )
    window, match = play.Window(), play.Match(typist, Typist(), ("", ""), games=9)
    shots = []

    def draw(match):
        shots.append(match.env.time)
        if len(shots) == 30:
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_p))
        if len(shots) == 40:
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_p))
            pygame.event.post(pygame.event.Event(pygame.QUIT))

    window.draw = draw
    window.show(match)
    assert screen[:18] == [50] * 11 + [10] * 5 + [50] * 2
    assert shots[:22] == [*range(21), 0] and typist.games == 2  # started again
    assert shots[29:40] == [8] * 11  # paused
    assert len(shots) == 41  # closed


@pytest.mark.parametrize("side", ["--left", "--right"])
def test_a_person_plays_on_either_side(side, screen, monkeypatch, capsys):
    keys = [pygame.K_RIGHT, pygame.K_UP, pygame.K_w]
    typist = Typist(down={1: keys, 20: [pygame.K_ESCAPE]}, up={10: keys})
    monkeypatch.setattr(play, "load", lambda *_, **__: typist)
    assert play.main(["human", "weak", side]) == 0
    screen_x, screen_y, angle = np.array(typist.seen)[:, 6:9].T
    if side == "--left":  # the other one sees everything turned by half a turn
        screen_x, screen_y = -screen_x, -screen_y
    assert screen_x[3] > screen_x[0] and screen_y[9] > screen_y[3] > 0 and angle[9] > angle[3] > 0
    speeds = np.abs(np.array(typist.seen)[:, 10])  # up and down, where nothing is in the way
    assert speeds[5] > 0.5 and speeds[19] < 0.5 * speeds[10]  # the keys were let go
    assert set(screen) == {50} and "you" in capsys.readouterr().out


def test_a_short_press_counts_and_a_lost_window_holds_nothing(screen):
    window = play.Window(play.Keyboard.KEYS)
    keyboard = play.Keyboard(window, 1)
    for kind in (pygame.KEYDOWN, pygame.KEYUP):
        pygame.event.post(pygame.event.Event(kind, key=pygame.K_SPACE))
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_LEFT))
    window.read_keys()
    assert keyboard.act(None).tolist() == [-1, 0, 0, 1]
    window.read_keys()
    assert keyboard.act(None).tolist() == [-1, 0, 0, 0]
    pygame.event.post(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    window.read_keys()
    assert keyboard.act(None).tolist() == [0, 0, 0, 0]


def test_the_keys_are_shown(screen):
    window = play.Window(play.Keyboard.KEYS)
    match = play.Match(Typist(), Typist(), ("", ""), games=1)
    next(match.frames())
    window.draw(match)
    below = pygame.surfarray.array3d(window.surface)[:, play.PICTURE[1] :]
    inked = (below < 250).any((1, 2)).nonzero()[0]
    assert 5 < inked.min() < 60 and 540 < inked.max() < 595  # the whole width, nothing cut off
    for key in ("Arrows", "W S", "Space", "P pause", "M slow", "R restart", "Esc quit"):
        assert key in window.help


# ---------------------------------------------------------------------------- the competition


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
    """Four rounds in a row: the memory, and the count of frames per decision, start anew."""
    player = load(champion)
    seen, acted = [], []

    class Recorder(tournament.Contestant):
        def act(self, observation):
            seen.append(observation)
            acted.append(super().act(observation))
            return acted[-1]

    starts = play_rounds(Recorder(player), tournament.Contestant(load("weak", seed=2)), 4)
    assert len(starts) == 4 and any(start % 2 for start in starts)  # odd: in mid-decision
    for start, end in zip(starts, [*starts[1:], len(seen)], strict=True):
        fresh = AgentOpponent(Dreamer.load(champion), 1, "", deterministic=True)
        again = [fresh.act(np.array(view, np.float32)) for view in seen[start:end]]
        assert np.array_equal(np.array(again), np.array(acted[start:end], np.float32))
        assert np.array_equal(again[0:40:2], again[1:41:2])  # held for the frame skip
        assert not np.array_equal(again[0], again[2])


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


def test_connecting_again_after_longer_and_longer_pauses(monkeypatch):
    outcomes = iter([tournament.LOST] + 8 * [tournament.AWAY] + [tournament.LOST, 1])
    pauses = []
    seconds = iter([*range(18), 100, 1000, 1000, 1000])  # only the tenth connection lasts
    monkeypatch.setattr(tournament.time, "monotonic", lambda: next(seconds))
    with pytest.raises(UserError, match="exit status 1"):
        tournament.stay_connected(lambda: next(outcomes), "host", 1, pauses.append)
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300, 5]


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (tournament.AWAY, "No competition server answers at example.org:65335."),
        (tournament.REFUSED, "example.org:65335 refuses the token"),
    ],
)
def test_no_server_or_no_such_token(outcome, message, comprl, champion, monkeypatch, capsys):
    monkeypatch.setattr(tournament, "connect_apart", lambda *_: outcome)
    for name, value in (("URL", "example.org"), ("PORT", "65335")):
        monkeypatch.setenv(f"COMPRL_SERVER_{name}", value)
    assert message in refused(capsys, "tournament", "champion", "--token", "mine")
    assert "--token is missing" in refused(capsys, "tournament", "champion")
    monkeypatch.setenv("COMPRL_ACCESS_TOKEN", "mine")
    assert message in refused(capsys, "tournament", "champion")
    assert "--server-port" in refused(capsys, "tournament", "champion", "--server-port", "http")


# ---------------------------------------------------------------------------- mistakes


def test_mistakes_are_answered_in_one_sentence(champion, monkeypatch, capsys, tmp_path):
    other = tmp_path / "pendulum.safetensors"
    Dreamer(make_config(), 3, 1).save(other)
    (tmp_path / "notes.safetensors").write_text("no tensors")
    assert "checkpoints/ has champion" in refused(capsys, "watch", "chmpion", "strong")
    assert "not trained for hockey" in refused(capsys, "watch", other, "strong")
    assert "no saved agent" in refused(capsys, "human", "notes.safetensors")
    assert "--games" in refused(capsys, "watch", "champion", "weak", "--games", 0)
    assert "--speed" in refused(capsys, "watch", "champion", "weak", "--speed", 0)
    assert ".mp4 or .gif" in refused(capsys, "watch", "champion", "weak", "--video", "film.avi")
    (tmp_path / "file").touch()
    assert "file/a.gif" in refused(capsys, "watch", "weak", "weak", "--video", "file/a.gif")
    address = ("--server-url", "localhost", "--server-port", 1, "--token", "mine")
    monkeypatch.setitem(sys.modules, "comprl", None)
    assert "pip install 'comprl @ git+" in refused(capsys, "tournament", "champion", *address)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    film = ("--video", "film.mp4")
    assert "pip install imageio-ffmpeg" in refused(capsys, "watch", "champion", "weak", *film)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a screen")
def test_no_screen(champion):
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    arguments = [sys.executable, play.__file__, "human", "champion"]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("play.py: No window") and ended.stderr.count("\n") == 1
