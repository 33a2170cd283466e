"""A player in the lab's competition (github.com/martius-lab/comprl), through its `comprl` package.

A match is four rounds in a row, and nobody says when one ends: the first observation of a round
follows the last but one of the round before. `Contestant` sees it by where everything stands.
"""

import csv
import multiprocessing
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from evaluate import called
from hockey_env import CENTER_X, W
from opponents import load
from utils import UserError, one_line

# Own racket, other racket: position from the centre, angle, velocities, all in one's own view
PLACES = np.array([W / 5 - CENTER_X, 0, 0, 0, 0, 0, CENTER_X - W / 5, 0, 0, 0, 0, 0])
TOLERANCE = 1e-5  # of metres, radians and their speeds; one frame of play moves far more
FIRST_PAUSE, LONGEST_PAUSE = 5, 300  # seconds before connecting again
STABLE = 60  # seconds after which a connection counts as good
AWAY, LOST, REFUSED = 3, 4, 5  # how a connection ended, as exit status
SCORES = Path("metrics/tournament.csv")
INSTALL = (
    "The competition needs its own package, which is on no registry: pip install"
    " 'comprl @ git+https://github.com/martius-lab/comprl.git#subdirectory=comprl'"
)


def is_round_start(observation):
    """Whether both rackets stand still at their places and the puck does not move, either.

    The counters of who holds the puck say nothing: the lab's game keeps them from round to round.
    """
    observation = np.asarray(observation)
    distance = np.abs(observation[:12] - PLACES).max()
    return bool(max(distance, np.abs(observation[14:16]).max()) < TOLERANCE)


class Contestant:
    """A player (`reset()`, `act(obs18)`) who notices by himself that a round begins."""

    def __init__(self, player):
        self.player, self.rounds = player, 0

    def start_match(self):
        """Before the first of its rounds."""
        self.rounds = 0

    def act(self, observation):
        """18 numbers of the next frame -> a list of 4 floats within [-1, 1]."""
        if is_round_start(observation):
            self.player.reset()
            self.rounds += 1
        action = self.player.act(np.asarray(observation, np.float32))
        return np.clip(action, -1, 1).astype(float).tolist()


def make_client(contestant, name):
    """The `comprl.client.Agent` through which the contestant plays, under this name in the log."""
    try:
        from comprl.client import Agent
    except ImportError:
        raise UserError(INSTALL) from None

    class Client(Agent):
        """Answers the server; afterwards `outcome` says how the connection ended."""

        outcome = AWAY

        def auth(self):
            self.outcome = LOST
            return super().auth()

        def on_start_game(self, game_id):
            contestant.start_match()
            say(f"match {game_id.hex()} begins")

        def get_step(self, obv):
            return contestant.act(obv)

        def on_end_game(self, result, stats):
            log_score(name, result, *stats[:2], contestant.rounds)

        def on_message(self, msg):
            say(msg)

        def on_error(self, msg):
            if "authentication failed" in msg.lower():
                self.outcome = REFUSED
            elif self.outcome != AWAY:  # what went wrong while connecting is said in one sentence
                say(one_line(msg))

        def on_disconnect(self):
            """`outcome` says it all."""

    return Client()


def say(text):
    """Prints a line with the time."""
    print(f"{datetime.now():%H:%M:%S} {text}", flush=True)


def log_score(name, is_won, ours, theirs, rounds):
    """Prints a match's score and adds it to the log; fewer than four rounds: somebody left."""
    result = "won" if is_won else "drawn" if ours == theirs else "lost"
    say(f"{result} {ours:g} : {theirs:g} in {rounds} rounds")
    SCORES.parent.mkdir(exist_ok=True)
    is_new = not SCORES.exists()
    with open(SCORES, "a", newline="") as file:
        rows = csv.writer(file)
        if is_new:
            rows.writerow(["time", "agent", "result", "ours", "theirs", "rounds"])
        now = datetime.now().isoformat(" ", "seconds")
        rows.writerow([now, name, result, f"{ours:g}", f"{theirs:g}", rounds])


def connect(player, host, port, token):
    """Plays until the connection ends; leaves the process with how it did."""
    torch.set_num_threads(1)
    contestant = Contestant(load(player, plan=True))
    contestant.act(np.zeros(18))  # the first call is slow
    client = make_client(contestant, called(player))
    client.run(token, host, port)
    sys.exit(client.outcome)


def connect_apart(*arguments):
    """`connect` in a process of its own, as Twisted's reactor starts only once -> exit status."""
    process = multiprocessing.get_context("spawn").Process(target=connect, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def stay_connected(connect, host, port, wait=time.sleep):
    """Connects again whenever the connection is lost, after pauses that double up to five minutes.

    Raises `UserError` if the token is refused, or if there is no server to begin with.
    """
    pause, was_connected = FIRST_PAUSE, False
    while True:
        began = time.monotonic()
        outcome = connect()
        if outcome == REFUSED:
            raise UserError(f"{host}:{port} refuses the token: take it from your account there.")
        if outcome == AWAY and not was_connected:
            raise UserError(f"No competition server answers at {host}:{port}.")
        if outcome not in (AWAY, LOST):
            raise UserError(f"The client stopped by itself (exit status {outcome}).")
        was_connected = True
        if time.monotonic() - began > STABLE:
            pause = FIRST_PAUSE
        say(f"no connection to {host}:{port}; trying again in {pause} s")
        wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def compete(player, options):
    """Plays matches until it is interrupted; `options`: server_url, server_port, token."""
    for option, variable in (
        ("server_url", "COMPRL_SERVER_URL"),
        ("server_port", "COMPRL_SERVER_PORT"),
        ("token", "COMPRL_ACCESS_TOKEN"),
    ):
        if not getattr(options, option):
            argument = option.replace("_", "-")
            raise UserError(f"--{argument} is missing (or {variable} in the environment).")
    host, port = options.server_url, options.server_port
    if not str(port).isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--server-port must be a whole number below 65536, not '{port}'.")
    make_client(Contestant(load(player)), player)  # what is wrong with either is said here
    stay_connected(lambda: connect_apart(player, host, int(port), options.token), host, port)
