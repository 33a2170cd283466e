"""A look into an agent's dreams: a page with the real game and the agent's imagination of it.

Plays games, lets the world model imagine on from every moment of them, and measures how far it
strays. `dreams.html` draws it.
"""

import html
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from dreamer import RETURN_LAMBDA
from extras.plots import aligned, fill_template, table_markup
from hockey_env import FPS
from hockey_wrapper import HockeyGames
from opponents import find_agent, load
from utils import lambda_returns

H_DREAM = 15  # decisions
HORIZONS = (1, 5, 15)  # of them, those that are compared
SAMPLES = 8  # dreams per moment whose errors are averaged
PARTS = {"own position": [0, 1], "opponent position": [6, 7], "puck": [12, 13]}
DRAWN = [0, 1, 2, 6, 7, 8, 12, 13]  # of an observation: x, y, angle of both players, the puck
NEAR, SHARP, STILL = 1.0, 0.5, 0.005  # metres


@dataclass
class Game:
    """A game as the agent saw it, rows 0..T: what it observed, remembered and did (row T: NaN)."""

    observation: torch.Tensor  # (T+1, 18)
    action: torch.Tensor  # (T+1, 4), chosen at this row
    reward: torch.Tensor  # (T+1,), on arrival
    terminal: torch.Tensor  # (T+1,)
    state: list  # h, z, o (T+1, .) of the posterior, as in `dreamer.py`
    winner: int  # +1 the agent, -1 the opponent, 0 nobody


def record_games(agent, opponent, count, seed):
    """Plays so many games side by side, deciding as in training; returns a list of `Game`."""
    settings = agent.config.hockey
    table = HockeyGames(settings, count, lambda: opponent, training=False)
    table.reward_kind = settings.reward  # what the agent has learned to predict
    player = agent.player()
    observation, _ = table.reset(seed=seed)
    reward, lengths, rows = np.zeros(count), np.zeros(count, int), []
    while len(rows) <= lengths.max():
        action = player.act(observation, deterministic=True)
        row = (torch.tensor(part) for part in (observation, action, reward, table.terminated))
        state = [part.clone() for part in player.memory[:3]]
        rows.append([part.to(agent.device).float() for part in row] + state)
        lengths += ~(table.terminated | table.truncated)  # who has ended rests
        observation, reward, *_ = table.step(action)
    stacked, games = [torch.stack(part) for part in zip(*rows, strict=True)], []
    for game, length in enumerate(lengths):
        observation, action, reward, terminal, *state = (x[: length + 1, game] for x in stacked)
        action[-1] = torch.nan
        games.append(Game(observation, action, reward, terminal, state, int(table.winner[game])))
    return games


def windows(rows, first):
    """Returns of rows (T+1, D) at [k, t] row t + first + k, or NaN: (H_DREAM, T+1, D)."""
    padded = F.pad(rows, (0, 0, 0, H_DREAM), value=torch.nan)
    return padded.unfold(0, H_DREAM, 1).permute(2, 0, 1)[:, first : first + len(rows)]


@torch.no_grad()
def imagine(agent, state, actions=None):
    """Returns the observations (H_DREAM, ..., 18) of dreams from a state, each part (..., .).

    With actions (H_DREAM, ..., 4) or with the actor's own, the most likely ones as in a match.
    """
    rssm, dreamed = agent.rssm, []
    for step in range(H_DREAM):
        action = agent.actor.action(agent.actor.sample(agent.slow_actor(rssm.features(state))))
        previous = state[2]
        state, _ = rssm.step(state, action if actions is None else actions[step])
        dreamed.append(agent.unsquash(rssm.decode(*state[:2], previous)))
    return torch.stack(dreamed)


def dreams_of(agent, game):
    """Returns SAMPLES dreams from each row, with the actions played (H_DREAM, SAMPLES, T+1, 18)."""
    state = tuple(part.expand(SAMPLES, *part.shape) for part in game.state)
    actions = windows(game.action, 0).unsqueeze(1)  # (H, 1, T+1, A)
    return imagine(agent, state, actions.expand(-1, SAMPLES, -1, -1))


def distances(dreamed, observation):
    """Returns metres between dreams (H_DREAM, S, T+1, 18) and game (T+1, 18): (H_DREAM, T+1, 3).

    The mean of the S samples, for each of PARTS; NaN after the game's end.
    """
    difference = dreamed - windows(observation, 1).unsqueeze(1)
    return difference[..., list(PARTS.values())].norm(dim=-1).mean(1)


def is_near(observation):
    """Returns whether a player came within NEAR of the puck before step k of a dream (H, T+1)."""
    own, other, puck = observation[:, list(PARTS.values())].unbind(1)  # (T+1, 2)
    near = (puck - own).norm(dim=-1).minimum((puck - other).norm(dim=-1)) < NEAR
    return windows(near.float().unsqueeze(-1), 0)[..., 0].nan_to_num().cummax(0).values > 0


def mean_errors(agent, games):
    """Returns name -> metres missed and moved meanwhile in all games, (H_DREAM,); NaN: never."""
    observations = [game.observation for game in games]
    errors = torch.cat([distances(dreams_of(agent, game), game.observation) for game in games], 1)
    moved = torch.cat([distances(one.expand(H_DREAM, 1, -1, -1), one) for one in observations], 1)
    near = torch.cat([is_near(one) for one in observations], 1)  # (H_DREAM, rows)
    chosen = {name: (part, torch.ones_like(near)) for part, name in enumerate(PARTS)}
    chosen[f"puck within {NEAR:g} m of a player"] = 2, near
    chosen["moving puck elsewhere"] = 2, ~near & (moved[..., 2] > STILL)
    return {
        name: tuple(x[..., part].where(rows, torch.nan).nanmean(1) for x in (errors, moved))
        for name, (part, rows) in chosen.items()
    }


@torch.no_grad()
def predictions(agent, game):
    """Returns a figure's title -> name of a line -> what the networks say of each state (T+1,)."""
    rssm, features = agent.rssm, agent.rssm.features(game.state)
    latents = rssm.posterior(game.state[0], agent.embed(game.observation)[0])
    divergence = rssm.prior.divergence(latents, rssm.prior(game.state[0]))
    divergence[0] = torch.nan  # nothing foretells how a game starts
    policy, values = agent.slow_actor(features), agent.slow_critic.mean(agent.slow_critic(features))
    discounts = agent.settings.discount * (1 - game.terminal)
    arrived = (part[1:].unsqueeze(1) for part in (game.reward, discounts, values))  # (T, 1)
    returns = lambda_returns(*arrived, RETURN_LAMBDA).squeeze(1)
    critic = agent.critic.mean(agent.critic(features))
    entropy = agent.actor.entropy(policy, policy.sample((64,))).mean(0)
    critic[-1] = entropy[-1] = torch.nan  # at the end nothing is left to decide
    rewards = {"predicted": agent.reward.mean(agent.reward(features)), "received": game.reward}
    return {
        "reward": rewards,
        "continue probability": {"predicted": torch.sigmoid(agent.continue_logit(features))},
        "value": {"critic": critic, "λ-return": F.pad(returns, (0, 1), value=torch.nan)},
        "KL of posterior and prior, nats": {"KL": divergence},
        "entropy of the policy, nats": {"entropy": entropy},
    }


@torch.no_grad()
def page_data(agent, game, means):
    """Returns what `dreams.html` draws."""
    (h, z, o), dreamed, own = game.state, dreams_of(agent, game), imagine(agent, game.state)
    seen = agent.unsquash(agent.rssm.decode(h, z, F.pad(o[:-1], (0, 0, 1, 0))))  # (T+1, 18)
    if agent.rssm.carried:  # asked for a change, and before the first row there is nothing
        seen[0] = game.observation[0]
    errors = distances(dreamed, game.observation)
    figures = {"mean error of a dream, m": {name: means[name][0] for name in PARTS}}
    for part, name in enumerate(PARTS):
        figures[f"error, {name}, m"] = {f"{k} ahead": errors[k - 1, :, part] for k in HORIZONS}
    figures |= predictions(agent, game)
    latents = used = None  # mean probabilities (G, C), and how many of C classes they use
    if agent.rssm.posterior.categorical:
        latents = agent.rssm.posterior(game.state[0], agent.embed(game.observation)[0]).mean(0)
        used = round(float(torch.special.entr(latents).sum(-1).exp().mean()), 1)
    return {
        "seconds": agent.config.hockey.frame_skip / FPS,  # per decision
        "real": game.observation[:, DRAWN],
        "posterior": seen[:, DRAWN],
        "dreams": {  # (T+1, H_DREAM, 8)
            "played": dreamed[:, 0, :, DRAWN].transpose(0, 1),
            "own": own[..., DRAWN].transpose(0, 1),
        },
        "figures": figures,
        "latents": latents,
        "used": used,
    }


def table_rows(means, seconds):
    """Returns the mean errors as rows of texts, below a head."""
    ends = [f"{k} ahead\n{k * seconds:.2f} s" for k in HORIZONS]
    rows = [("mean error\nof what it moved", *ends)]
    for name, (errors, moved) in means.items():
        cells = [f"{errors[k - 1]:.2f} m\nof {moved[k - 1]:.2f} m" for k in HORIZONS]
        rows.append((name, *("no such\nmoments" if "nan" in cell else cell for cell in cells)))
    return rows


def dream(options):
    """Writes the page options.out: the longest of some games against an opponent."""
    player = load(find_agent(options.agent))
    count = options.games or 8
    opponent = load(options.against or "strong", count, options.seed)
    games = record_games(player.agent, opponent, count, options.seed)
    shown = max(games, key=lambda game: len(game.reward))
    means, seconds = mean_errors(player.agent, games), player.frame_skip / FPS
    us, them = map(html.escape, (player.name, opponent.name))
    result = {1: "won", 0: "drawn", -1: "lost"}[shown.winner]
    seen = int((means["puck"][0] <= SHARP).long().cumprod(0).sum())
    text = (
        f"<b>{us}</b> (red) against <b>{them}</b> (blue), {result} after"
        f" {(len(shown.reward) - 1) * seconds:.1f} s. It sees the puck to within"
        f" {SHARP:g} m for {'at least ' * (seen == H_DREAM)}<b>{seen} decisions</b>"
        f" ({seen * seconds:.2f} s) ahead. Mean errors over"
        f" {'this game' if len(games) == 1 else f'{len(games)} games'}:"
    )
    data, table = page_data(player.agent, shown, means), table_rows(means, seconds)
    parts = {"title": f"What {us} dreams", "summary": text, "table": table_markup(table)}
    fill_template(options.out, data, "dreams.html", **parts)
    print(aligned([[cell.replace("\n", " ") for cell in row] for row in table]))
    print(f"The page: {options.out}")
