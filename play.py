"""What a person does with a trained agent: watch it, film it, play against it, let it compete.

python play.py watch champion strong --games 3 [--video game.mp4]
python play.py human champion --right
python play.py tournament champion --server-url ADDRESS --server-port PORT --token TOKEN
python play.py dream champion --against strong --out plots/dream.html

Agents are named by a path or by what they are called in checkpoints/;
bots by weak, strong, random.
The competition's client is left to `tournament.py`, the look into the dreams to `dreams.py`.
"""

import argparse
import itertools
import os
import sys
from functools import cache
from pathlib import Path

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # its greeting

import numpy as np
import pygame
import torch

from evaluate import called, find_agent
from hockey_env import BLUE, FPS, GREY, RED, VIEWPORT_H, VIEWPORT_W, WHITE, HockeyEnv
from opponents import BOTS, AgentOpponent, load
from utils import UserError, one_line, write_atomically

BOARD = 44  # pixels above the table for names and score
HELP = 24  # pixels below the table for the keys, in windows only
PICTURE = (VIEWPORT_W, BOARD + VIEWPORT_H)
AFTER_GAME = 40  # frames for which a game's end stays in sight
SLOW = 5  # slow motion is so many times slower
CONTROLS = {
    pygame.K_p: "pause",
    pygame.K_m: "slow motion",
    pygame.K_r: "restart",
    pygame.K_ESCAPE: "quit",
}
INK = (60, 60, 60)


def find_player(name):
    """A bot's name as it is, or the path of an agent. Raises `UserError` if there is none."""
    return name if name in BOTS else str(find_agent(name))


class Match:
    """Games of two players at one table; who starts takes turns, the left player does first."""

    def __init__(self, left, right, names, games=None, seed=0):
        """`left`, `right`: have `reset()` and `act(obs18)`; `games`: how many, None: endless."""
        self.players, self.names, self.games = (left, right), names, games
        self.env = HockeyEnv()
        self.env.reset(seed=seed)
        self.game, self.score = 0, [0, 0]

    def frames(self):
        """Plays from 0:0 on; yields whenever there is something new to see."""
        self.score = [0, 0]
        for game in itertools.count(1) if self.games is None else range(1, self.games + 1):
            self.game = game
            observation, _ = self.env.reset(one_starting=self.game % 2 == 1)
            for player in self.players:
                player.reset()
            yield
            is_over = False
            while not is_over:
                views = (observation, self.env.obs_agent_two())
                pairs = zip(self.players, views, strict=True)
                action = np.concatenate([player.act(view) for player, view in pairs])
                observation, _, terminated, truncated, info = self.env.step(action)
                is_over = terminated or truncated
                if info["winner"]:
                    self.score[0 if info["winner"] == 1 else 1] += 1
                yield
            yield from itertools.repeat(None, AFTER_GAME)

    def picture(self):
        """The table below a board with names, score, game and time, as a pygame surface."""
        surface = pygame.Surface(PICTURE, depth=32)
        surface.fill(WHITE)
        table = surface.subsurface((0, BOARD, VIEWPORT_W, VIEWPORT_H))
        pygame.surfarray.blit_array(table, self.env.render("rgb_array").swapaxes(0, 1))
        middle, row = VIEWPORT_W // 2, BOARD // 2 + 6
        write(surface, f"{self.score[0]} : {self.score[1]}", 40, INK, center=(middle, row))
        write(surface, fitting(self.names[0]), 28, RED, midright=(middle - 60, row))
        write(surface, fitting(self.names[1]), 28, BLUE, midleft=(middle + 60, row))
        game = f"game {self.game}" if self.games is None else f"game {self.game}/{self.games}"
        write(surface, game, 20, GREY, midleft=(16, row))
        write(surface, f"{self.env.time / FPS:.1f} s", 20, GREY, midright=(VIEWPORT_W - 16, row))
        if self.env.done:
            text, colour = {1: ("goal", RED), -1: ("goal", BLUE), 0: ("time is up", INK)}[
                self.env.winner
            ]
            write(surface, text, 36, colour, center=(middle, BOARD + 52))
        return surface

    def outcome(self):
        """The score in words."""
        left, right = self.names
        return f"{left} {self.score[0]} : {self.score[1]} {right}"


def fitting(name, longest=14):
    """The name, shortened if it is longer than so many letters."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


@cache
def font(size):
    """pygame's own font, which needs no files of the system."""
    pygame.font.init()
    return pygame.font.Font(None, size)


def write(surface, text, size, colour, **place):
    """Writes a line of text; `place` as in `Surface.get_rect`, say center=(x, y)."""
    large = font(2 * size).render(text, True, colour)  # small letters would stand unevenly
    picture = pygame.transform.smoothscale_by(large, 0.5)
    surface.blit(picture, picture.get_rect(**place))


# ---------------------------------------------------------------------------- in a window


class Window:
    """A window that shows a match, and the keyboard in front of it."""

    def __init__(self, keys=""):
        """`keys`: what to write below the table beside the keys of the window itself."""
        self.surface = open_display((PICTURE[0], PICTURE[1] + HELP))
        controls = [f"{pygame.key.name(k).title()[:3]} {does}" for k, does in CONTROLS.items()]
        self.help = "   ".join([keys, *controls] if keys else controls)
        self.clock = pygame.time.Clock()
        self.held, self.tapped = set(), set()  # keys down now; keys pressed since the last frame
        self.switches = dict.fromkeys(CONTROLS.values(), False)

    def show(self, match, speed=1.0):
        """Plays the match before the user's eyes until it ends or the window is closed."""
        frames = match.frames()
        while not self.switches["quit"]:
            self.read_keys()
            if self.switches["restart"]:
                self.switches["restart"] = False
                frames = match.frames()
            if not self.switches["pause"] and next(frames, "over") == "over":
                break
            self.draw(match)
            self.clock.tick(FPS * speed / (SLOW if self.switches["slow motion"] else 1))

    def read_keys(self):
        """Notes which keys are held and which switches they turned."""
        self.tapped.clear()
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                self.switches["quit"] = True
            elif event.type == pygame.KEYDOWN:
                self.held.add(event.key)
                self.tapped.add(event.key)
                if event.key in CONTROLS:
                    self.switches[CONTROLS[event.key]] ^= True
            elif event.type == pygame.KEYUP:
                self.held.discard(event.key)
            elif event.type == pygame.WINDOWFOCUSLOST:  # nobody tells us what is let go there
                self.held.clear()

    def is_down(self, key):
        """1 if the key is held down, or was pressed since the last frame, else 0."""
        return int(key in self.held or key in self.tapped)

    def draw(self, match):
        """Shows the match as it stands, with the keys below."""
        self.surface.fill(WHITE)
        self.surface.blit(match.picture(), (0, 0))
        middle = (VIEWPORT_W // 2, PICTURE[1] + HELP // 2 - 4)
        write(self.surface, self.help, 18, GREY, center=middle)
        for name in ("pause", "slow motion"):
            if self.switches[name]:
                write(self.surface, name, 28, INK, center=(VIEWPORT_W // 2, BOARD + 52))
                break
        pygame.display.flip()


def open_display(size):
    """A new window's surface. Raises `UserError` if there is no screen to open it on."""
    try:
        screens = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
        if sys.platform == "linux" and not any(os.environ.get(name) for name in screens):
            raise pygame.error("neither DISPLAY nor WAYLAND_DISPLAY is set")
        pygame.display.init()
        if pygame.display.get_driver() == "offscreen":  # what SDL falls back on without a word
            raise pygame.error("the display does not answer")
        pygame.display.set_caption("Hockey")
        return pygame.display.set_mode(size)
    except pygame.error as error:
        raise UserError(
            f"No window can be opened here: {one_line(error)}; play.py watch ... --video game.mp4"
            " needs no screen."
        ) from None


class Keyboard:
    """A person at the keyboard: arrows move, w and s turn, space shoots."""

    KEYS = "Arrows move   W S turn   Space shoots"

    def __init__(self, window, side):
        """`side`: 1 plays on the left, -1 on the right, where the player's axes are turned."""
        self.window, self.side = window, side

    def reset(self):
        """Nothing to forget."""

    def act(self, observation):
        """The action (4,) of the keys held down; `observation` is not used."""
        down = self.window.is_down
        action = [
            self.side * (down(pygame.K_RIGHT) - down(pygame.K_LEFT)),
            self.side * (down(pygame.K_UP) - down(pygame.K_DOWN)),
            down(pygame.K_w) - down(pygame.K_s),
            down(pygame.K_SPACE),
        ]
        return np.array(action, np.float32)


# ---------------------------------------------------------------------------- on film


def check_recorder(path):
    """Raises `UserError` unless a video can be saved under this name."""
    if Path(path).suffix.lower() not in (".mp4", ".gif"):
        raise UserError(f"{path}: a video's name must end in .mp4 or .gif.")
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        raise UserError("Videos need ffmpeg: pip install imageio-ffmpeg") from None


def save_video(match, path, speed=1.0):
    """Plays the match and films it: .mp4 with every frame, .gif with every second one."""
    check_recorder(path)
    import imageio_ffmpeg

    if Path(path).suffix.lower() == ".mp4":
        every, how = 1, {"codec": "libx264", "quality": 7}
        output = ["-movflags", "+faststart", "-f", "mp4"]
    else:  # each picture has colours of its own: one palette for all would need all in memory
        every, how = 2, {"codec": "gif", "pix_fmt_out": "pal8", "quality": None}
        colours = "split[a][b];[a]palettegen=stats_mode=single:max_colors=64[p];[b][p]paletteuse"
        output = ["-lavfi", f"{colours}=new=1:dither=none", "-f", "gif"]
    how |= {"fps": FPS * speed / every, "macro_block_size": 2, "output_params": output}

    def film(file):
        open(file, "wb").close()  # says what is wrong with a path better than ffmpeg
        writer = imageio_ffmpeg.write_frames(file, PICTURE, **how)
        writer.send(None)
        try:
            for _ in itertools.islice(match.frames(), 0, None, every):
                writer.send(pygame.image.tobytes(match.picture(), "RGB"))
        finally:
            writer.close()

    write_atomically(path, film)


def film_agent(agent, path, seed=0):
    """Saves a video of one game of an agent against the strong bot."""
    player = AgentOpponent(agent, 1, agent.config.run, deterministic=True)
    save_video(Match(player, load("strong", seed=seed), (player.name, "strong"), 1, seed), path)


# ---------------------------------------------------------------------------- command line


def watch(options):
    """Shows or films games of two players."""
    players = [find_player(name) for name in (options.agent, options.opponent)]
    names = [called(player) for player in players]
    left, right = (load(p, seed=options.seed + i, plan=True) for i, p in enumerate(players))
    match = Match(left, right, names, options.games, options.seed)
    if options.video:
        save_video(match, options.video, options.speed)
    else:
        Window().show(match, options.speed)
    print(match.outcome() + (f"  ({options.video})" if options.video else ""))


def human(options):
    """Lets a person play against an agent or a bot."""
    path = find_player(options.opponent)
    sides = [load(path, seed=options.seed, plan=True)]
    window = Window(Keyboard.KEYS)
    place = 1 if options.right else 0
    sides.insert(place, Keyboard(window, 1 - 2 * place))
    names = [called(path)]
    names.insert(place, "you")
    match = Match(*sides, names, seed=options.seed)
    window.show(match)
    print(match.outcome())


def compete(options):
    """Plays matches of the lab's competition until it is interrupted."""
    from tournament import compete

    compete(find_player(options.agent), options)


def dream(options):
    """Writes a page with what the agent imagines."""
    import dreams

    dreams.main(options)


def command_line():
    """The parser of all commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function, name, player="agent"):
        command = commands.add_parser(name, help=function.__doc__.splitlines()[0])
        command.set_defaults(function=function)
        command.add_argument(player, help="a .safetensors file, a name in checkpoints/, or a bot")
        command.add_argument("--seed", type=int, default=0, help="of games and bots")
        return command

    command = add(watch, "watch")
    command.add_argument("opponent", help="the same")
    command.add_argument("--games", type=int, default=3)
    command.add_argument("--video", metavar="PATH", help="film it: .mp4 or .gif, without a window")
    command.add_argument("--speed", type=float, default=1.0, help="times real time")
    command = add(human, "human", "opponent")
    side = command.add_mutually_exclusive_group()
    side.add_argument("--left", action="store_true", help="where you play (the default)")
    side.add_argument("--right", action="store_true", help="where you play instead")
    command = add(compete, "tournament")
    command.add_argument("--server-url", default=os.environ.get("COMPRL_SERVER_URL"))
    command.add_argument("--server-port", default=os.environ.get("COMPRL_SERVER_PORT"))
    command.add_argument("--token", default=os.environ.get("COMPRL_ACCESS_TOKEN"))
    command = add(dream, "dream")
    command.add_argument("--against", default="strong", metavar="OPPONENT")
    command.add_argument("--out", default="plots/dream.html", metavar="PATH")
    command.add_argument("--games", type=int, default=8)
    return parser


def main(arguments=None):
    """Runs the command; returns the exit status."""
    options = command_line().parse_args(arguments)
    torch.set_num_threads(1)  # one game's small matrices: more threads only wait for each other
    try:
        if options.seed < 0 or getattr(options, "games", 1) < 1:
            raise UserError("--games must be at least 1 and --seed at least 0.")
        if not 0.01 <= getattr(options, "speed", 1.0) <= 100:
            raise UserError("--speed must be from 0.01 to 100.")
        torch.manual_seed(options.seed)  # of the plans
        options.function(options)
    except UserError as error:
        print(f"play.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
