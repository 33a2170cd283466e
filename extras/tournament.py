"""A player in the lab's competition (github.com/martius-lab/comprl), through its `comprl` package.

A match is four rounds in a row, and nobody says when one ends: the first observation of a round
follows the last but one of the round before. `Contestant` sees it by where everything stands.
"""

import multiprocessing
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hockey_env import CENTER_X, W
from machine import explained
from opponents import ask, load
from utils import UserError, one_line

# Own racket, other racket: position from the centre, angle, velocities, all in one's own view
PLACES = np.array([W / 5 - CENTER_X, 0, 0, 0, 0, 0, CENTER_X - W / 5, 0, 0, 0, 0, 0])
TOLERANCE = 1e-5  # of metres, radians and their speeds; one frame of play moves far more
FIRST_PAUSE, LONGEST_PAUSE = 5, 300  # seconds before connecting again
AWAY, LOST, REFUSED = 3, 4, 5  # how a connection ended, as exit status
SCORES = Path("metrics/tournament.csv")


class Contestant:
    """A player (`reset()`, `act(obs18)`) who notices by himself that a round begins."""

    def __init__(self, player):
        self.player, self.rounds = player, 0  # rounds of this match so far

    def act(self, observation):
        """Returns a list of 4 floats within [-1, 1] for the 18 numbers of the next frame."""
        observation = np.asarray(observation, np.float32)
        # a round begins with the rackets at rest in their places and the puck at rest; the counters
        # of who holds it say nothing: the lab's game keeps them from round to round
        if np.abs([*observation[:12] - PLACES, *observation[14:16]]).max() < TOLERANCE:
            self.player.reset()
            self.rounds += 1
        return np.clip(ask(self.player, observation), -1, 1).astype(float).tolist()


def make_client(contestant):
    """Returns the `comprl.client.Agent` by which it plays; `UserError` if that is not installed."""
    needs = (
        "The competition needs its own package, which is on no registry (pip install"
        ' "comprl @ git+https://github.com/martius-lab/comprl.git#subdirectory=comprl")'
    )
    with explained(needs, ImportError):
        from comprl.client import Agent

    class Client(Agent):
        """Answers the server; afterwards `outcome` says how the connection ended."""

        outcome = AWAY
        get_step, on_message = staticmethod(contestant.act), staticmethod(say)
        on_disconnect = staticmethod(lambda: None)  # `outcome` says it all

        def auth(self):
            self.outcome = LOST
            return super().auth()

        def on_start_game(self, game_id):
            contestant.rounds = 0
            say(f"match {game_id.hex()} begins")

        def on_end_game(self, result, stats):
            log_score(contestant.player.name, result, *stats[:2], contestant.rounds)

        def on_error(self, msg):
            if "authentication failed" in msg.lower():
                self.outcome = REFUSED
            elif self.outcome != AWAY:  # what went wrong while connecting is said in one sentence
                say(one_line(msg))

    return Client()


def say(text):
    print(f"{datetime.now():%H:%M:%S} {text}", flush=True)


def log_score(name, is_won, ours, theirs, rounds):
    """Prints a match's score and adds it to the log; fewer than four rounds: somebody left."""
    result = "won" if is_won else "drawn" if ours == theirs else "lost"
    say(f"{result} {ours:g} : {theirs:g} in {rounds} rounds")
    row = {"time": f"{datetime.now():%Y-%m-%d %H:%M:%S}", "agent": name, "result": result}
    row |= {"ours": f"{ours:g}", "theirs": f"{theirs:g}", "rounds": rounds}
    SCORES.parent.mkdir(exist_ok=True)
    pd.DataFrame([row]).to_csv(SCORES, mode="a", header=not SCORES.exists(), index=False)


def connect(player, host, port, token):
    """Plays until the connection ends; leaves the process with how it did."""
    torch.set_num_threads(1)
    contestant = Contestant(load(player, plan=True))
    contestant.player.reset()
    contestant.act(np.zeros(18))  # the first call is slow
    client = make_client(contestant)
    client.run(token, host, port)
    sys.exit(client.outcome)


def stay_connected(player, host, port, token):
    """Calls `connect` again and again, after pauses that double while the server is away.

    Each time in a process of its own, as Twisted's reactor starts once. Raises `UserError` if the
    token is refused, or if there is no server to begin with.
    """
    arguments, pause = (player, host, port, token), 0
    while True:
        process = multiprocessing.get_context("spawn").Process(target=connect, args=arguments)
        process.start()
        process.join()
        outcome = process.exitcode
        if outcome == REFUSED:
            raise UserError(f"{host}:{port} refuses the token: take it from your account there.")
        if outcome == AWAY and not pause:
            raise UserError(f"No competition server answers at {host}:{port}.")
        if outcome not in (AWAY, LOST):
            raise UserError(f"The client stopped by itself (exit status {outcome}).")
        pause = FIRST_PAUSE if outcome == LOST else min(2 * pause, LONGEST_PAUSE)
        say(f"no connection to {host}:{port}; trying again in {pause} s")
        time.sleep(pause)


def compete(options):
    """Plays matches of the lab's competition until it is interrupted."""
    for option in ("server_url", "server_port", "token"):
        if not getattr(options, option):
            raise UserError(
                f"--{option.replace('_', '-')} is missing; COMPRL_SERVER_URL, COMPRL_SERVER_PORT"
                " and COMPRL_ACCESS_TOKEN in the environment do as well."
            )
    port = options.server_port
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--server-port must be a whole number below 65536, not '{port}'.")
    make_client(Contestant(load(options.agent)))  # what is wrong with either is said here
    stay_connected(options.agent, options.server_url, int(port), options.token)
