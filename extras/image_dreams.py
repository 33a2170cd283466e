"""The dreams of an agent that sees images: real, dreamed and difference in rows, at a slider.

Plays an episode, lets the world model imagine on from moments of it with the actions that were
played, and paints both. `image_dreams.html` shows it.
"""

import base64
import html
import io

import numpy as np
import pygame
import torch

from environments import worlds_of
from extras.plots import fill_template
from matches import episode_returns
from utils import UserError

CONTEXT, H_DREAM = 5, 15  # decisions that are seen, and that are dreamed from then on
MOMENTS = 40  # at most, evenly over the episode
ZOOMED = 48  # pixels: smaller images are enlarged to at least that


def record(agent, seed):
    """Plays an episode; returns images (T, H, W, C), actions (T, A), states (h, z, o) each."""
    player, rows = agent.player(), []

    def act(image):
        action = player.act(image, player.is_deterministic)
        state = (part.clone() for part in player.memory[:3])
        rows.append((torch.from_numpy(image.copy()), torch.from_numpy(action), *state))
        return action

    episode_returns(act, worlds_of(agent, 1), seed)
    images, actions, *state = (torch.cat(part) for part in zip(*rows, strict=True))
    return images.to(agent.device), actions.to(agent.device), state


@torch.no_grad()
def paint(agent, images, actions, state, first):
    """Returns what the agent sees and then dreams from row `first` on, and what there really was.

    Both are (CONTEXT + H_DREAM, H, W, C) within 0..255: CONTEXT posterior states, the last one of
    row `first`, then the prior's most likely states after the actions that were played.
    """
    rows = slice(first - CONTEXT + 1, first + 1)
    painted = [agent.rssm.decode(*(part[rows] for part in state))]
    dreamed = [part[first : first + 1] for part in state]
    for action in actions[first : first + H_DREAM]:
        dreamed, _ = agent.rssm.step(dreamed, action[None], mode=True)
        painted.append(agent.rssm.decode(*dreamed))
    real = images[first - CONTEXT + 1 : first + H_DREAM + 1].float()
    return agent.unsquash(torch.cat(painted)).cpu().numpy(), real.cpu().numpy()


def in_colour(images):
    """Returns images (n, H, W, C) of any number of channels in red, green and blue (n, H, W, 3)."""
    channels = images.shape[-1]
    if channels == 3:
        return images
    looks = [(360 * k / channels, 60 * (channels > 1), 100, 100) for k in range(channels)]
    hues = [pygame.Color.from_hsva(look)[:3] for look in looks]
    return (images[..., None] * np.array(hues) / 255).max(-2)


def strip(painted, real):
    """Returns a PNG, in base64, of three rows of pictures: real, dreamed, difference."""
    rows = [in_colour(each) for each in (real, painted, abs(real - painted))]
    picture = np.stack(rows).transpose(0, 2, 1, 3, 4)  # (3, H, n, W, 3)
    zoom = -(-ZOOMED // picture.shape[1])
    picture = np.pad(picture, [(0, 0), (0, 1), (0, 0), (0, 1), (0, 0)], constant_values=255)
    picture = picture.reshape(3 * picture.shape[1], -1, 3).repeat(zoom, 0).repeat(zoom, 1)
    file = io.BytesIO()
    pixels = picture.clip(0, 255).astype(np.uint8).swapaxes(0, 1)
    pygame.image.save(pygame.surfarray.make_surface(pixels), file, "strip.png")
    return base64.b64encode(file.getvalue()).decode()


def dream_of_images(agent, options):
    """Writes the page options.out of the agent; `UserError` if its episode is too short."""
    images, actions, state = record(agent, options.seed)
    last = len(images) - H_DREAM - 1
    if last < CONTEXT - 1:
        raise UserError(f"{options.agent}: an episode of {len(images)} decisions is too short.")
    moments = np.unique(np.linspace(CONTEXT - 1, last, MOMENTS).astype(int)).tolist()
    pairs = [paint(agent, images, actions, state, moment) for moment in moments]
    errors = np.mean([abs(painted - real).mean((1, 2, 3)) for painted, real in pairs], 0) / 255
    still = np.mean([abs(real - real[CONTEXT - 1]).mean((1, 2, 3)) for _, real in pairs], 0) / 255
    table = [f"{len(moments)} moments of {len(images)} decisions; mean error a pixel:"]
    for k in (1, 5, H_DREAM):
        ours, theirs = errors[CONTEXT + k - 1], still[CONTEXT + k - 1]
        table.append(f"{k} ahead {ours:.4f} (a picture that stands still: {theirs:.4f})")
    strips = "\n".join(
        f'<img alt="" data-at="{moment}" src="data:image/png;base64,{strip(*pair)}">'
        for moment, pair in zip(moments, pairs, strict=True)
    )
    title = html.escape(f"What {agent.config.run} dreams of {agent.config.environment}")
    parts = {"title": title, "summary": "<br>".join(table), "strips": strips}
    share = f"{100 * CONTEXT / (CONTEXT + H_DREAM):g}%"  # where seeing ends and dreaming begins
    fill_template(options.out, None, "image_dreams.html", share=share, **parts)
    print("\n".join([*table, f"The page: {options.out}"]))
