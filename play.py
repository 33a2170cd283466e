"""What a person does with a trained agent: watch it, film it, play against it, let it compete.

python play.py watch champion strong --games 3 [--video game.mp4]
python play.py watch pendulum                            an agent of another world
python play.py human champion --right
python play.py tournament champion --server-url ADDRESS --server-port PORT --token TOKEN
python play.py dream champion --against strong --out plots/dream.html

Exit status: 0 it is done, 2 something to mend (one sentence says what), 130 Ctrl-C.
"""

import installed  # noqa: F401  before all others

# isort: split
import contextlib
import os
import sys

import numpy as np
import pygame

from dreamer import Dreamer
from extras.dreams import dream as dream_of_hockey
from extras.film import INK, Episodes, Match, save_video, write
from extras.image_dreams import dream_of_images
from extras.tournament import compete
from hockey_env import GREY, WHITE
from machine import command, make_ready, parser_of
from opponents import find_agent, load, of_another_world
from utils import UserError, one_line

BELOW = 24  # pixels below the picture for the keys
SLOW = 5  # slow motion is so many times slower
HELP = "P pause   M slow motion   R restart   Esc quit"
KEYS = "Arrows move   W S turn   Space shoots   "


class Window:
    """A window that shows a match, and who plays at the keyboard in front of it."""

    name = "you"

    def __init__(self, size, player=None):
        """`player`: 1 plays on the left, 2 on the right, None watches. `UserError`: no screen."""
        self.player, self.help = player, KEYS + HELP if player else HELP
        try:
            pygame.display.init()
            if pygame.display.get_driver() == "offscreen":  # what SDL falls back on without a word
                raise pygame.error("no display answers")
            self.surface = pygame.display.set_mode((size[0], size[1] + BELOW))
        except pygame.error as error:
            raise UserError(
                f"No window can be opened here: {one_line(error)}; play.py watch ... --video"
                " game.mp4 needs no screen."
            ) from None
        pygame.display.set_caption("Hockey")

    def show(self, match, speed=1.0):
        """Plays the match before the user's eyes until it ends or the window is closed."""
        frames, clock = match.frames(), pygame.time.Clock()
        is_paused = is_slow = False
        while not any(event.type == pygame.QUIT for event in pygame.event.get()):
            tapped = pygame.key.get_just_pressed()
            is_paused ^= tapped[pygame.K_p]
            is_slow ^= tapped[pygame.K_m]
            if tapped[pygame.K_r]:
                frames = match.frames()
            if tapped[pygame.K_ESCAPE] or not is_paused and next(frames, "over") == "over":
                break
            self.surface.fill(WHITE)
            self.surface.blit(match.picture(), (0, 0))
            middle, bottom = match.size[0] // 2, match.size[1]
            write(self.surface, self.help, 18, GREY, center=(middle, bottom + BELOW // 2 - 4))
            text = is_paused * "pause  " + is_slow * "slow motion"
            write(self.surface, text, 28, INK, center=(middle, bottom - 52))
            pygame.display.flip()
            clock.tick(match.fps * speed / (SLOW if is_slow else 1))

    def reset(self):
        pass

    def act(self, observation):
        """Returns the action (4,) of the keys held down or tapped; `observation` is not used."""
        held, tapped = pygame.key.get_pressed(), pygame.key.get_just_pressed()
        keys = (pygame.K_RIGHT, pygame.K_LEFT, pygame.K_UP, pygame.K_DOWN)
        keys += (pygame.K_w, pygame.K_s, pygame.K_SPACE)
        right, left, up, down, w, s, space = (held[key] or tapped[key] for key in keys)
        side = 1 if self.player == 1 else -1  # player two's axes are turned
        return np.array([side * (right - left), side * (up - down), w - s, space], np.float32)


def watch(options):
    """Shows or films games of two players, or episodes of an agent of another world."""
    if agent := of_another_world(options.agent):
        if options.opponent:
            raise UserError(f"{options.agent} plays {agent.config.environment}, against nobody.")
        match = Episodes(agent, options.games, options.seed)
    else:
        names = enumerate((options.agent, options.opponent or "strong"))
        players = [load(name, seed=options.seed + i, plan=True) for i, name in names]
        match = Match(players, options.games, options.seed)
    with contextlib.closing(match):
        if options.video:
            save_video(match, options.video, options.speed)
        else:
            Window(match.size).show(match, options.speed)
    print(match.outcome() + (f"  ({options.video})" if options.video else ""))


def human(options):
    """Lets a person play against an agent or a bot."""
    opponent = load(options.opponent, seed=options.seed, plan=True)
    window = Window(Match.size, 2 if options.right else 1)
    players = [opponent, window] if options.right else [window, opponent]
    match = Match(players, seed=options.seed)
    window.show(match)
    print(match.outcome())


def dream(options):
    """Writes a page with what the agent imagines, of hockey or of images."""
    agent = Dreamer.load(find_agent(options.agent))
    if not agent.is_image:
        dream_of_hockey(options)
    elif options.against or options.games:
        raise UserError(f"{options.agent} sees images and plays alone: no --against, no --games.")
    else:
        dream_of_images(agent, options)


@command
def main(arguments=None):
    """Runs the command; returns the exit status."""
    parser = parser_of(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name, function, player="agent", what=", a bot, path.py:Class"):
        command = commands.add_parser(name, help=function.__doc__.splitlines()[0])
        command.set_defaults(function=function)
        command.add_argument(player, help=f"a path, a name in checkpoints/{what}")
        command.add_argument("--seed", type=int, default=0, help="of games and bots")
        return command.add_argument

    add = add_command("watch", watch)
    add("opponent", nargs="?", help="the same (default: strong)")
    add("--games", type=int, default=3)
    add("--video", metavar="PATH", help="film it: .mp4 or .gif, without a window")
    add("--speed", type=float, default=1.0, help="times real time")
    add = add_command("human", human, "opponent")
    add("--right", action="store_true", help="where you play instead")
    add("--left", action="store_false", dest="right", help="where you play (the default)")
    add = add_command("tournament", compete)
    add("--server-url", default=os.environ.get("COMPRL_SERVER_URL"))
    add("--server-port", default=os.environ.get("COMPRL_SERVER_PORT"))
    add("--token", default=os.environ.get("COMPRL_ACCESS_TOKEN"))
    add = add_command("dream", dream, what="")
    add("--against", metavar="OPPONENT", help="in hockey (strong)")
    add("--out", default="plots/dream.html", metavar="PATH")
    add("--games", type=int, help="in hockey (8)")
    options = parser.parse_args(arguments)
    make_ready(options)
    if not 0.01 <= getattr(options, "speed", 1.0) <= 100:
        raise UserError("--speed must be from 0.01 to 100.")
    options.function(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
