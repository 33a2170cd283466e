"""A match of two players, or episodes of one, to look at: frame by frame, as pictures, as a video.

It needs no screen; the window and the keyboard are in `play.py`.
"""

import contextlib
import itertools
from pathlib import Path

import numpy as np
import pygame

from checkpoint import write_atomically
from environments import playable, worlds_of
from hockey_env import BLUE, FPS, GREY, RED, VIEWPORT_H, VIEWPORT_W, WHITE, HockeyEnv
from machine import explained
from matches import LONGEST_EPISODE
from opponents import AgentOpponent, ask, load
from utils import UserError

BOARD = 44  # pixels above the table for names and score
PICTURE = (VIEWPORT_W, BOARD + VIEWPORT_H)
SMALLEST = 300  # pixels: a world that draws itself smaller is enlarged to at least that
AFTER_GAME = 40  # frames for which a game's end stays in sight
INK = (60, 60, 60)


class Match:
    """Games of two players at one table; who starts takes turns, the left player does first."""

    size, fps = PICTURE, FPS

    def __init__(self, players, games=None, seed=0):
        """`players`: left, right, with `name`, `reset()`, `act(obs18)`; `games`: None: endless."""
        self.players, self.games = players, games
        self.env = HockeyEnv()
        self.env.reset(seed=seed)
        self.game, self.score = 0, [0, 0]

    def frames(self):
        """Plays from 0:0 on; yields whenever there is something new to see."""
        self.game, self.score = 0, [0, 0]
        while self.game != self.games:
            self.game += 1
            observation, _ = self.env.reset(one_starting=self.game % 2 == 1)
            for player in self.players:
                player.reset()
            yield
            while not self.env.done:
                views = (observation, self.env.obs_agent_two())
                pairs = zip(self.players, views, strict=True)
                action = np.concatenate([ask(player, view) for player, view in pairs])
                observation, _, _, _, info = self.env.step(action)
                self.score[0] += info["winner"] == 1
                self.score[1] += info["winner"] == -1
                yield
            yield from itertools.repeat(None, AFTER_GAME)

    def picture(self):
        """Returns a pygame surface: the table below a board with names, score, game and time."""
        surface = pygame.Surface(PICTURE, depth=32)
        surface.fill(WHITE)
        table = surface.subsurface((0, BOARD, VIEWPORT_W, VIEWPORT_H))
        pygame.surfarray.blit_array(table, self.env.render("rgb_array").swapaxes(0, 1))
        middle, row = VIEWPORT_W // 2, BOARD // 2 + 6
        write(surface, f"{self.score[0]} : {self.score[1]}", 40, INK, center=(middle, row))
        names = (one.name if len(one.name) < 15 else one.name[:13] + "…" for one in self.players)
        write(surface, next(names), 28, RED, midright=(middle - 60, row))
        write(surface, next(names), 28, BLUE, midleft=(middle + 60, row))
        game = f"game {self.game}" + (f"/{self.games}" if self.games else "")
        write(surface, game, 20, GREY, midleft=(16, row))
        write(surface, f"{self.env.time / FPS:.1f} s", 20, GREY, midright=(VIEWPORT_W - 16, row))
        if self.env.done:
            ends = {1: ("goal", RED), -1: ("goal", BLUE), 0: ("time is up", INK)}
            text, colour = ends[self.env.winner]
            write(surface, text, 36, colour, center=(middle, BOARD + 52))
        return surface

    def outcome(self):
        left, right = self.players
        return f"{left.name} {self.score[0]} : {self.score[1]} {right.name}"

    def close(self):
        self.env.close()


class Episodes:
    """Episodes of an agent in a world of its own, which draws itself; to look at as a `Match`."""

    def __init__(self, agent, games, seed=0):
        """`games`: how many episodes. Raises `UserError` if the world can't draw itself."""
        self.agent, self.games, self.seed = agent.player(), games, seed
        with contextlib.closing(worlds_of(agent, 1)) as worlds:
            modes = worlds.metadata.get("render_modes", ())
        if "rgb_array" not in modes:
            raise UserError(f"{agent.config.environment} can't draw itself (rgb_array).")
        self.worlds = worlds_of(agent, 1, "rgb_array")
        fps = self.worlds.metadata.get("render_fps") or FPS
        self.fps = fps / agent.config.wrappers.action_repeat
        self.returns = []
        self.worlds.reset(seed=seed)
        self.size = self.picture().get_size()

    def frames(self):
        self.returns.clear()
        for game in range(self.games):
            observation, _ = self.worlds.reset(seed=None if game else self.seed)
            self.agent.reset()
            self.returns.append(0.0)
            yield
            for _ in range(LONGEST_EPISODE):
                action = self.agent.act(observation, self.agent.is_deterministic)
                step = self.worlds.step(playable(self.worlds, action))
                observation, reward, terminated, truncated, _ = step
                self.returns[-1] += reward[0]
                yield
                if terminated[0] or truncated[0]:
                    break

    def picture(self):
        image = pygame.surfarray.make_surface(self.worlds.render()[0].swapaxes(0, 1))
        return pygame.transform.scale_by(image, max(1, -(-SMALLEST // min(image.get_size()))))

    def outcome(self):
        returns = ", ".join(f"{value:.1f}" for value in self.returns)
        return f"{self.agent.config.run} in {self.agent.config.environment}: return {returns}"

    def close(self):
        self.worlds.close()


def write(surface, text, size, colour, **place):
    """Draws a line of text; `place` as in `Surface.get_rect`, say center=(x, y)."""
    pygame.font.init()  # somebody's environment may have ended it since
    font = pygame.font.Font(None, 2 * size)  # pygame's own, which needs no files of the system
    large = font.render(text, True, colour)  # small letters would stand unevenly
    picture = pygame.transform.smoothscale_by(large, 0.5)
    surface.blit(picture, picture.get_rect(**place))


def check_recorder(path):
    """Returns what saves videos; raises `UserError` unless one can be saved under this name."""
    if Path(path).suffix.lower() not in (".mp4", ".gif"):
        raise UserError(f"{path}: a video's name must end in .mp4 or .gif.")
    with explained("Videos need ffmpeg (pip install imageio-ffmpeg)", ImportError):
        import imageio_ffmpeg
    return imageio_ffmpeg


def save_video(match, path, speed=1.0):
    """Plays the match and films it: all frames as .mp4, every second as .gif; or `UserError`."""
    recorder = check_recorder(path)
    if Path(path).suffix.lower() == ".mp4":
        every, how = 1, {"codec": "libx264", "quality": 7}
        output = ["-movflags", "+faststart", "-f", "mp4"]
    else:  # each picture has colours of its own: one palette for all would need all in memory
        every, how = 2, {"codec": "gif", "pix_fmt_out": "pal8", "quality": None}
        colours = "split[a][b];[a]palettegen=stats_mode=single:max_colors=64[p];[b][p]paletteuse"
        output = ["-lavfi", f"{colours}=new=1:dither=none", "-f", "gif"]
    how |= {"fps": match.fps * speed / every, "macro_block_size": 2, "output_params": output}

    def film(file):  # silent on what ffmpeg thinks of equal colours
        writer = recorder.write_frames(file, match.size, ffmpeg_log_level="error", **how)
        writer.send(None)
        try:
            for _ in itertools.islice(match.frames(), 0, None, every):
                writer.send(pygame.image.tobytes(match.picture(), "RGB"))
        finally:
            writer.close()

    write_atomically(path, film)


def film_agent(agent, path, games=3):
    """Saves a video of so many games against the strong bot; of one episode in other worlds."""
    if agent.config.environment == "hockey":
        player = AgentOpponent(agent, 1, agent.config.run, agent.is_deterministic)
        match = Match((player, load("strong")), games)
    else:
        match = Episodes(agent, 1)
    with contextlib.closing(match):
        save_video(match, path)
