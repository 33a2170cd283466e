"""What people do with an agent: films, the window and its keys, and mistakes."""

import os
import sys

import numpy as np
import pygame
import pytest
from conftest import make_config

import hockey_env
import play
from dreamer import Dreamer
from environments import make_environments, sizes_of
from extras import film
from opponents import load


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def champion(tmp_path):
    """The path of checkpoints/champion.safetensors: an agent that was never trained."""
    path = tmp_path / "checkpoints/champion.safetensors"
    Dreamer(make_config(hockey__frame_skip=2), 18, 4).save(path)
    return path


class Screen:
    """A virtual screen and keyboard; `plan`: frame -> keys to press (or, negative, to let go of).

    Nobody waits: `rates` notes the frames per second asked for.
    """

    def __init__(self, plan):
        self.plan, self.frame, self.held, self.tapped, self.rates = plan, 0, set(), set(), []

    def get_events(self):
        """Another frame begins."""
        self.frame += 1
        events = self.plan.get(self.frame, [])
        self.tapped = {key for key in events if key > 0}
        self.held = (self.held | self.tapped) - {-key for key in events if key < 0}
        return [pygame.event.Event(pygame.QUIT)] if pygame.QUIT in self.tapped else []

    def tick(self, rate):
        self.rates.append(round(rate))


class Keys(set):
    """Keys that can be looked up as pygame's."""

    def __getitem__(self, key):
        return key in self


@pytest.fixture
def screen(monkeypatch):
    """A function that starts a `Screen` with a plan of keys."""

    def start(plan=()):
        screen = Screen(dict(plan))
        monkeypatch.setattr(pygame.event, "get", screen.get_events)
        monkeypatch.setattr(pygame.key, "get_pressed", lambda: Keys(screen.held))
        monkeypatch.setattr(pygame.key, "get_just_pressed", lambda: Keys(screen.tapped))
        monkeypatch.setattr(pygame.time, "Clock", lambda: screen)
        return screen

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame.display.quit()  # Pendulum's pictures have opened another one
    yield start
    pygame.display.quit()


class Idler:
    """A player who does nothing but note what it sees."""

    def __init__(self, name="idler"):
        self.name, self.seen, self.games = name, [], 0

    def reset(self):
        self.games += 1

    def act(self, observation):
        self.seen.append(np.array(observation))
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
    match = film.Match([load("strong"), Idler()], games=4)
    starts, frames = [], 0
    for _ in match.frames():
        frames += 1
        if match.env.time == 0:
            starts.append((match.game, match.env.one_starts))
    assert starts == [(1, True), (2, False), (3, True), (4, False)]
    assert frames > 4 * film.AFTER_GAME and 0 < match.score[0] <= 4 == match.games
    assert match.outcome() == f"strong {match.score[0]} : 0 idler"


def test_the_picture_shows_the_table_and_who_plays():
    pictures = []
    for name in ("left", "a name that is far too long for a board"):
        match = film.Match([Idler(name), Idler("right")], games=1)
        next(match.frames())
        pictures.append(pygame.surfarray.array3d(match.picture()).swapaxes(0, 1))
    table, boards = match.env.render("rgb_array"), [picture[: film.BOARD] for picture in pictures]
    assert all(np.array_equal(picture[film.BOARD :], table) for picture in pictures)
    changed = (boards[0] != boards[1]).any((0, 2)).nonzero()[0]
    assert 90 < changed.min() and changed.max() < 300  # only the left name, and not on the score


@pytest.fixture
def short_games(monkeypatch):
    """Games take 11 frames, and their ends 5."""
    monkeypatch.setitem(hockey_env.MAX_TIMESTEPS, 0, 10)
    monkeypatch.setattr(film, "AFTER_GAME", 5)


@pytest.mark.parametrize(("suffix", "every"), [("mp4", 1), ("gif", 2)])
def test_a_film_has_every_frame_and_is_made_in_silence(suffix, every, champion, short_games, capfd):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = f"films/game.{suffix}"
    arguments = ["champion", "strong", "--games", "2", "--video", path, "--speed", "0.5"]
    assert play.main(["watch", *arguments]) == 0
    assert capfd.readouterr() == (f"champion 0 : 0 strong  ({path})\n", "")
    about = next(ffmpeg.read_frames(path))
    assert about["size"] == film.PICTURE and about["fps"] == 25 / every
    frames = 2 * (1 + 11 + film.AFTER_GAME)
    assert ffmpeg.count_frames_and_secs(path)[0] == -(-frames // every)


def test_an_agent_in_memory_is_filmed_against_the_strong_bot(champion, short_games):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    film.film_agent(load(champion).agent, "videos/first.mp4", games=1)
    assert os.listdir("videos") == ["first.mp4"]
    assert ffmpeg.count_frames_and_secs("videos/first.mp4")[0] == 12 + film.AFTER_GAME


# ---------------------------------------------------------------------------- other worlds


@pytest.fixture(params=["pendulum.yml", "cartpole.yml"])
def elsewhere(request):
    """The name of a world; checkpoints/elsewhere.safetensors plays there, three steps a time."""
    overrides = {"wrappers__time_limit": 3, "dreamer__observation_scale": "[]"}
    config = make_config(request.param, **overrides, run="elsewhere")
    worlds = make_environments(config, 1)
    sizes, discrete = sizes_of(worlds)
    worlds.close()
    Dreamer(config, *sizes, discrete=discrete).save("checkpoints/elsewhere.safetensors")
    return config.environment


def test_an_agent_of_another_world_is_watched(screen, elsewhere, capsys):
    keyboard = screen({2: [pygame.K_r]})
    assert play.main(["watch", "elsewhere", "--games", "2"]) == 0
    assert keyboard.rates == (1 + 2 * 4) * [50 if elsewhere == "CartPole-v1" else 30]
    printed = capsys.readouterr().out
    assert printed.startswith(f"elsewhere in {elsewhere}: return ") and printed.count(".") == 2
    assert f"plays {elsewhere}, against nobody" in refused(capsys, "watch", "elsewhere", "weak")
    assert "not trained for hockey" in refused(capsys, "watch", "weak", "elsewhere")
    assert "not trained for hockey" in refused(capsys, "human", "elsewhere")


def test_an_agent_of_another_world_is_filmed(elsewhere):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    assert play.main("watch elsewhere --games 2 --video film.mp4".split()) == 0
    about = next(ffmpeg.read_frames("film.mp4"))
    assert about["fps"] == (50 if elsewhere == "CartPole-v1" else 30)
    assert ffmpeg.count_frames_and_secs("film.mp4")[0] == 2 * 4


def test_a_film_ends_whatever_the_world_does(elsewhere, monkeypatch):
    monkeypatch.setattr(film, "LONGEST_EPISODE", 2)
    agent = Dreamer.load("checkpoints/elsewhere.safetensors")
    match = film.Episodes(agent, 1)
    assert len(list(match.frames())) == 3
    match.close()


def test_a_world_that_draws_itself_small_is_enlarged(elsewhere):
    match = film.Episodes(Dreamer.load("checkpoints/elsewhere.safetensors"), 1)
    match.worlds.render = lambda: (np.arange(60, dtype=np.uint8).reshape(4, 5, 3),)
    picture = pygame.surfarray.array3d(match.picture())
    assert picture.shape == (375, 300, 3) and (picture[74, 74] == [0, 1, 2]).all()
    assert (picture[75, 0] == [3, 4, 5]).all() and (picture[0, 75] == [15, 16, 17]).all()


# ---------------------------------------------------------------------------- the window


def test_watching_ends_with_the_games(screen, champion, short_games, capsys):
    rates = screen().rates
    assert play.main(["watch", "champion", "strong", "--games", "1", "--speed", "2"]) == 0
    assert rates == (12 + film.AFTER_GAME) * [100]
    assert capsys.readouterr().out.startswith("champion 0 : ")
    assert play.main(["watch", "champion", "--games", "1"]) == 0
    assert capsys.readouterr().out.endswith("strong\n")


def test_the_keys_of_the_window(screen, monkeypatch):
    slow, pause = [pygame.K_m], [pygame.K_p]
    plan = {10: slow, 15: slow, 20: [pygame.K_r], 30: pause, 40: pause, 45: [pygame.QUIT]}
    keyboard, times = screen(plan), []
    window, idler = play.Window(film.PICTURE), Idler()
    match = film.Match([idler, Idler()], games=9)
    real = match.picture

    def picture():
        times.append(match.env.time)
        return real()

    monkeypatch.setattr(match, "picture", picture)
    window.show(match)
    assert keyboard.rates == [50] * 9 + [10] * 5 + [50] * 30
    assert times[:19] == [*range(19)] and times[19:29] == [*range(10)]  # started again
    assert times[29:39] == 10 * [9] and times[39:] == [*range(10, 15)]  # paused
    assert idler.games == 2 and len(times) == 44  # closed


@pytest.mark.parametrize("side", ["--left", "--right"])
def test_a_person_plays_on_either_side(side, screen, monkeypatch, capsys):
    keys = [pygame.K_RIGHT, pygame.K_UP, pygame.K_w]
    rates = screen({2: keys, 10: [-key for key in keys], 20: [pygame.K_ESCAPE]}).rates
    idler = Idler()
    monkeypatch.setattr(play, "load", lambda *_, **__: idler)
    assert play.main(["human", "weak", side]) == 0
    screen_x, screen_y, angle = np.array(idler.seen)[:, 6:9].T
    if side == "--left":  # the other one sees everything turned by half a turn
        screen_x, screen_y = -screen_x, -screen_y
    assert screen_x[3] > screen_x[0] and screen_y[8] > screen_y[3] > 0 and angle[8] > angle[3] > 0
    speeds = np.abs(np.array(idler.seen)[:, 10])  # up and down, where nothing is in the way
    assert speeds[5] > 0.5 and speeds[17] < 0.5 * speeds[9]  # the keys were let go
    assert set(rates) == {50} and "you" in capsys.readouterr().out


def test_a_short_press_counts(screen):
    keyboard = screen({1: [pygame.K_SPACE, -pygame.K_SPACE, pygame.K_LEFT]})
    window = play.Window(film.PICTURE, 1)
    keyboard.get_events()
    assert window.act(None).tolist() == [-1, 0, 0, 1]
    keyboard.get_events()
    assert window.act(None).tolist() == [-1, 0, 0, 0]


def test_the_keys_are_shown(screen):
    screen({2: [pygame.QUIT]})
    window = play.Window(film.PICTURE, 1)
    window.show(film.Match([window, Idler()]))
    below = pygame.surfarray.array3d(window.surface)[:, film.PICTURE[1] :]
    inked = (below < 250).any((1, 2)).nonzero()[0]
    assert 5 < inked.min() < 60 and 540 < inked.max() < 595  # the whole width, nothing cut off
    for key in ("Arrows", "W S", "Space", "P pause", "M slow", "R restart", "Esc quit"):
        assert key in window.help


# ---------------------------------------------------------------------------- mistakes


def test_mistakes_are_answered_in_one_sentence(champion, monkeypatch, capsys, tmp_path):
    other = tmp_path / "pendulum.safetensors"
    Dreamer(make_config(), 3, 1).save(other)
    (tmp_path / "notes.safetensors").write_text("no tensors")
    assert "checkpoints/ has champion" in refused(capsys, "watch", "chmpion", "strong")
    assert "not trained for hockey" in refused(capsys, "watch", other, "strong")
    assert "it is damaged" in refused(capsys, "human", "notes.safetensors")
    assert "--games" in refused(capsys, "watch", "champion", "weak", "--games", 0)
    assert "--speed" in refused(capsys, "watch", "champion", "weak", "--speed", 0)
    assert ".mp4 or .gif" in refused(capsys, "watch", "champion", "weak", "--video", "film.avi")
    (tmp_path / "file").touch()
    assert "file/a.gif" in refused(capsys, "watch", "weak", "weak", "--video", "file/a.gif")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    video = ("--video", "film.mp4")
    assert "pip install imageio-ffmpeg" in refused(capsys, "watch", "champion", "weak", *video)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a screen")
def test_no_screen(monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    pygame.display.quit()
    assert "No window can be opened here" in refused(capsys, "human", "weak")
    pygame.display.quit()
