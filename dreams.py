"""Look into an agent's dreams: a page with the real game and the agent's imagination of it.

Plays games, lets the world model imagine on from every moment of them, and measures how far it
strays. `dreams.html` draws it; parsing the command line is left to `play.py`.
"""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dreamer import Dreamer
from evaluate import find_agent
from hockey_env import FPS
from hockey_wrapper import HockeyGames, OneOpponent
from opponents import BOTS, load
from plots import COLORS, fill_template, table_markup
from utils import UserError, seed_everything, symexp

H_DREAM = 15  # decisions
HORIZONS = (1, 5, 15)  # of them, those that are compared
SAMPLES = 8  # dreams per moment whose errors are averaged
PARTS = {"own position": [0, 1], "opponent position": [6, 7], "puck": [12, 13]}
DRAWN = [0, 1, 2, 6, 7, 8, 12, 13]  # of an observation: x, y, angle of both players, the puck
NEAR, SHARP = 1.0, 0.5  # metres


@dataclass
class Game:
    """A game as the agent saw it, rows 0..T: what it observed, remembered and did (row T: NaN)."""

    observation: torch.Tensor  # (T+1, 18)
    action: torch.Tensor  # (T+1, 4), chosen at this row
    reward: torch.Tensor  # (T+1,), on arrival
    terminal: torch.Tensor  # (T+1,)
    h: torch.Tensor  # (T+1, R), posterior states as in `dreamer.py`
    z: torch.Tensor
    o: torch.Tensor
    winner: int  # +1 the agent, -1 the opponent, 0 nobody

    def __len__(self):
        """Decisions played: T."""
        return len(self.observation) - 1

    def features(self):
        """The states s = (h, z, o) (T+1, F)."""
        return torch.cat([self.h, self.z, self.o], -1)


def play_games(agent, opponent, count, seed):
    """Plays `count` games side by side, as an evaluation does -> list of `Game`."""
    settings, discount = agent.config.hockey, agent.settings.discount
    table = HockeyGames(settings, count, OneOpponent(opponent), discount, training=False)
    table.reward_kind = settings.reward  # what the agent has learned to predict
    table.steps = getattr(agent, "counters", {}).get("environment_steps", 0)  # of its annealing
    player = agent.player()
    observation, _ = table.reset(seed=seed)
    reward, over, lengths, rows = np.zeros(count), np.zeros(count, bool), np.zeros(count, int), []
    while True:
        action = player.act(observation, deterministic=True)
        h, z, _, o = (part.clone() for part in player.memory)
        row = (torch.tensor(x) for x in (observation, action, reward, table.terminated))
        rows.append([part.to(agent.device).float() for part in row] + [h, z, o])
        if over.all():
            break
        observation, reward, *ends, _ = table.step(action)
        lengths += ~over
        over |= ends[0] | ends[1]
    games = []
    for game, length in enumerate(lengths):
        parts = [torch.stack(part)[: length + 1, game] for part in zip(*rows, strict=True)]
        parts[1][-1] = torch.nan
        games.append(Game(*parts, int(table.winner[game])))
    return games


def windows(rows, first):
    """(T+1, D) -> (H_DREAM, T+1, D): at [k, t] the row t + first + k, NaN after the game's end."""
    padded = F.pad(rows, (0, 0, 0, H_DREAM), value=torch.nan)
    return padded.unfold(0, H_DREAM, 1).permute(2, 0, 1)[:, first : first + len(rows)]


def unsquash(agent, observation):
    """The inverse of `Dreamer.squash`: metres, radians, ..."""
    return observation * agent.scale if len(agent.scale) else symexp(observation)


@torch.no_grad()
def imagine(agent, h, z, o, actions=None):
    """Dreams from states (..., R), (..., Z), (..., carried) -> observations (H_DREAM, ..., 18).

    With actions (H_DREAM, ..., 4) or with the actor's own, the most likely ones as in a match.
    """
    dreamed = []
    for step in range(H_DREAM):
        if actions is None:
            a = torch.tanh(agent.slow_actor(torch.cat([h, z, o], -1)).mean)
        else:
            a = actions[step]
        h = agent.recurrent(h, torch.cat([z, a, o], -1))
        z = agent.prior.sample(agent.prior(h))
        decoded = agent.decode(h, z, o)
        o = decoded[..., : agent.carried]
        dreamed.append(unsquash(agent, decoded))
    return torch.stack(dreamed)


def dreams_of(agent, game):
    """SAMPLES dreams from each row, with the actions played -> (H_DREAM, SAMPLES, T+1, 18)."""
    h, z, o = (part.expand(SAMPLES, *part.shape) for part in (game.h, game.z, game.o))
    actions = windows(game.action, 0).unsqueeze(1)  # (H, 1, T+1, A)
    return imagine(agent, h, z, o, actions.expand(-1, SAMPLES, -1, -1))


def distances(dreamed, observation):
    """Metres between dreams (H_DREAM, S, T+1, 18) and the game (T+1, 18) -> (H_DREAM, T+1, 3).

    The mean of the S samples, for each of PARTS; NaN after the game's end.
    """
    difference = dreamed - windows(observation, 1).unsqueeze(1)
    parts = [difference[..., columns].norm(dim=-1) for columns in PARTS.values()]
    return torch.stack(parts, -1).mean(1)


def is_near(observation):
    """Whether a player came within NEAR of the puck before step k of a dream (H_DREAM, T+1)."""
    puck = observation[:, 12:14]
    gaps = [(puck - observation[:, part : part + 2]).norm(dim=-1) for part in (0, 6)]
    near = (torch.minimum(*gaps) < NEAR).float().unsqueeze(-1)
    return windows(near, 0).squeeze(-1).nan_to_num().cummax(0).values > 0


def mean_errors(agent, games):
    """Name -> (metres missed (H_DREAM,), metres moved meanwhile (H_DREAM,)), over all games."""
    found = []
    for game in games:
        still = game.observation.expand(H_DREAM, 1, *game.observation.shape)
        both = dreams_of(agent, game), still
        errors, moved = (distances(dreamed, game.observation) for dreamed in both)
        found.append(torch.cat([errors, moved, is_near(game.observation).unsqueeze(-1)], -1))
    errors, moved, near = torch.cat(found, 1).split([3, 3, 1], -1)  # (H, rows, .)
    means = {
        name: (errors[..., part].nanmean(1), moved[..., part].nanmean(1))
        for part, name in enumerate(PARTS)
    }
    for name, wanted in ((f"puck within {NEAR:g} m of a player", 1), ("puck elsewhere", 0)):
        pair = (x[..., 2].where(near[..., 0] == wanted, torch.nan) for x in (errors, moved))
        means[name] = tuple(x.nanmean(1) for x in pair)
    return means


@torch.no_grad()
def predictions(agent, game):
    """What the heads say about each posterior state (T+1,), and the statistics of the latent."""
    features = game.features()
    evidence = agent.encoder(agent.squash(game.observation))
    posterior = agent.posterior(game.h, evidence)
    divergence = agent.prior.divergence(posterior, agent.prior(game.h))
    divergence[0] = torch.nan  # nothing foretells how a game starts
    policy = agent.slow_actor(features)
    batch = {"reward": game.reward, "is_terminal": game.terminal}
    batch |= {"is_first": torch.zeros_like(game.reward), "is_own": torch.ones_like(game.reward)}
    batch = {name: part.unsqueeze(0) for name, part in batch.items()}
    _, returns, _ = agent.replayed_returns(batch, features.unsqueeze(0))  # (T, 1)
    said = {
        "reward": agent.reward.mean(agent.reward(features)),
        "continue": torch.sigmoid(agent.continue_logit(features)),
        "value": agent.critic.mean(agent.critic(features)),
        "return": F.pad(returns.squeeze(-1), (0, 1)),
        "kl": divergence,
        "entropy": agent.actor.entropy(policy, policy.sample((64,))).mean(0),
    }
    for name in ("value", "return", "entropy"):  # at the end nothing is left to decide
        said[name][-1] = torch.nan
    return said, posterior


@torch.no_grad()
def reconstruction(agent, game):
    """The observations (T+1, 18) that the posterior states mean."""
    decoded = agent.decode(game.h, game.z, F.pad(game.o[:-1], (0, 0, 1, 0)))
    decoded = unsquash(agent, decoded)
    if agent.carried:  # asked for a change, and before the first row there is nothing
        decoded[0] = game.observation[0]
    return decoded


def plain(values, digits):
    """Nested lists of rounded numbers for JSON; what is not finite becomes None."""
    values = np.round(np.asarray(values.cpu(), np.float64), digits)
    return np.where(np.isfinite(values), values, None).tolist()


def panel(title, unit, lines):
    """A figure of lines (name -> (T+1,)) over the game's time, or over dreams' length."""
    return {
        "title": title,
        "unit": unit,
        "lines": [
            {"name": name, "color": color, "y": plain(values, 5)}
            for (name, values), color in zip(lines.items(), COLORS, strict=False)
        ],
    }


def figures(agent, game, dreamed):
    """Panels over the game's time, mean latents (G, C) and how many of C classes they use.

    The latter two are None for Gaussian latents.
    """
    errors = distances(dreamed, game.observation)
    said, posterior = predictions(agent, game)
    panels = [
        panel(f"error, {name}", "m", {f"{k} ahead": errors[k - 1, :, part] for k in HORIZONS})
        for part, name in enumerate(PARTS)
    ]
    panels += [
        panel("reward", "", {"predicted": said["reward"], "received": game.reward}),
        panel("continue probability", "", {"predicted": said["continue"]}),
        panel("value", "", {"critic": said["value"], "λ-return": said["return"]}),
        panel("KL of posterior and prior", "nats", {"KL": said["kl"]}),
        panel("entropy of the policy", "nats", {"entropy": said["entropy"]}),
    ]
    if not agent.posterior.categorical:
        return panels, None, None
    latents = posterior.mean(0)  # (G, C)
    used = torch.special.entr(latents).sum(-1).exp().mean()
    return panels, plain(latents, 3), plain(used, 1)


def page_data(agent, game, means):
    """What `dreams.html` draws."""
    dreamed = dreams_of(agent, game)
    own = imagine(agent, game.h, game.z, game.o)
    panels, latents, used = figures(agent, game, dreamed)
    by_length = panel("mean error of a dream", "m", {name: means[name][0] for name in PARTS})
    return {
        "seconds": agent.config.hockey.frame_skip / FPS,  # per decision
        "real": plain(game.observation[:, DRAWN], 2),
        "posterior": plain(reconstruction(agent, game)[:, DRAWN], 2),
        "dreams": {  # (T+1, H_DREAM, 8)
            "played": plain(dreamed[:, 0, :, DRAWN].transpose(0, 1), 2),
            "own": plain(own[..., DRAWN].transpose(0, 1), 2),
        },
        "panels": [by_length, *panels],
        "latents": latents,
        "used": used,
    }


def table_rows(means, seconds):
    """The mean errors as rows of texts, below a head."""
    ends = [f"{k} ahead\n{k * seconds:.2f} s" for k in HORIZONS]
    rows = [("mean error\nof what it moved", *ends)]
    for name, (errors, moved) in means.items():
        cells = [f"{errors[k - 1]:.2f} m\nof {moved[k - 1]:.2f} m" for k in HORIZONS]
        rows.append((name, *(cell if "nan" not in cell else "-" for cell in cells)))
    return rows


def summary(names, games, shown, means, seconds):
    """A line on who plays whom in the game shown, and how far ahead the agent can see."""
    result = {1: "won", 0: "drawn", -1: "lost"}[shown.winner]
    text = "<b>{}</b> (red) against <b>{}</b> (blue), ".format(*map(html.escape, names))
    text += f"{result} after {len(shown) * seconds:.1f} s. "
    seen = int((means["puck"][0] <= SHARP).long().cumprod(0).sum())
    limit = "at least " if seen == H_DREAM else ""
    text += f"It sees the puck to within {SHARP:g} m for {limit}<b>{seen} decisions</b> "
    text += f"({seen * seconds:.2f} s) ahead. Mean errors over "
    return text + ("this game:" if len(games) == 1 else f"{len(games)} games:")


def main(options):
    """Writes the page `options.out` of options.agent against options.against.

    `options.games` are played, the longest one is shown. Raises `UserError` for an unknown agent or
    opponent, one of another game, or numbers that make no sense.
    """
    if options.games < 1 or options.seed < 0:
        raise UserError("--games must be at least 1 and --seed at least 0.")
    path = find_agent(options.agent)
    agent = Dreamer.load(path)
    if agent.sizes != (18, 4):
        raise UserError(f"{options.agent} was not trained for hockey.")
    against = options.against if options.against in BOTS else find_agent(options.against)
    opponent = load(against, options.games, options.seed)
    seed_everything(options.seed)
    games = play_games(agent, opponent, options.games, options.seed)
    means, seconds = mean_errors(agent, games), agent.config.hockey.frame_skip / FPS
    shown = max(games, key=len)
    names = [
        player.parent.name if player.stem in ("best", "latest") else player.stem
        for player in (path, Path(against))
    ]
    fill_template(
        options.out,
        page_data(agent, shown, means),
        template="dreams.html",
        title=html.escape(f"What {names[0]} dreams"),
        summary=summary(names, games, shown, means, seconds),
        table=table_markup(table_rows(means, seconds)),
    )
    for row in table_rows(means, seconds):
        print(" | ".join(cell.replace("\n", " ") for cell in row))
    print(f"{options.out} ({Path(options.out).stat().st_size / 1e6:.1f} MB)")
