"""Tests of the dream page: dreams against a plain computation, errors of known arrays, the page."""

import base64
import gzip
import json
import re
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import make_config

import dreams
from dreamer import Dreamer
from hockey_env import BasicOpponent
from hockey_wrapper import PerGame
from utils import UserError

KINDS = [
    {"dreamer__latent": "categorical", "dreamer__observation_in_state": True},
    {"dreamer__latent": "categorical", "dreamer__observation_in_state": False},
    {"dreamer__latent": "gaussian", "dreamer__observation_in_state": True},
    {"dreamer__latent": "gaussian", "dreamer__observation_in_state": False},
]


def make_agent(**overrides):
    """A small untrained agent for hockey."""
    return Dreamer(make_config(**overrides), 18, 4)


def play(agent, count=1, seed=0):
    """Games against the weak bot."""
    opponent = PerGame([BasicOpponent(seed=game) for game in range(count)], "weak")
    return dreams.play_games(agent, opponent, count, seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["[]", f"[{','.join('2' * 18)}]"])
@pytest.mark.parametrize("is_real", [True, False])
@torch.no_grad()
def test_first_steps_equal_a_plain_computation(kind, scale, is_real):
    agent = make_agent(dreamer__observation_scale=scale, **kind)
    agent.prior.sample = partial(agent.prior.sample, deterministic=True)
    rows = 3
    h, z = torch.randn(rows, 32), torch.randn(rows, 16)
    o = torch.randn(rows, agent.carried)
    actions = torch.rand(dreams.H_DREAM, rows, 4) * 2 - 1
    dreamed = dreams.imagine(agent, h, z, o, actions if is_real else None)
    assert dreamed.shape == (dreams.H_DREAM, rows, 18)
    for step in range(2):
        a = torch.tanh(agent.slow_actor.layers(torch.cat([h, z, o], 1))[:, :4])
        a = actions[step] if is_real else a
        h = agent.recurrent(h, torch.cat([z, a, o], 1))
        statistics = agent.prior(h)
        if agent.settings.latent == "gaussian":
            z = statistics[:, 0]
        else:
            z = torch.nn.functional.one_hot(statistics.argmax(-1), 4).flatten(1).float()
        expected = agent.decoder(torch.cat([h, z, o], 1))
        if agent.carried:
            o = expected = expected + o
        metres = 2 * expected if len(agent.scale) else expected.sign() * (expected.abs().exp() - 1)
        torch.testing.assert_close(dreamed[step], metres, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_are_those_of_playing(kind):
    agent = make_agent(**kind)
    game = play(agent, 2)[1]
    player = agent.player()
    for row in range(len(game)):
        action = player.act(game.observation[row].numpy(), deterministic=True)
        np.testing.assert_allclose(action, game.action[row], atol=1e-5)
        np.testing.assert_allclose(player.memory[0][0], game.h[row], atol=1e-5)
        np.testing.assert_allclose(player.memory[1][0], game.z[row], atol=1e-5)
    assert game.features().shape == (len(game) + 1, 32 + 16 + agent.carried)
    assert game.action[-1].isnan().all() and not game.terminal[:-1].any()
    assert game.terminal[-1] == (game.winner != 0)
    assert len(game) == 126 or game.winner  # 251 frames, two per decision


def test_windows_look_ahead_and_end_with_the_game():
    rows = torch.arange(20.0).unsqueeze(1)
    for first in (0, 1):
        ahead = dreams.windows(rows, first)[..., 0]
        for step in range(dreams.H_DREAM):
            for t in range(20):
                row = t + first + step
                assert ahead[step, t] == row if row < 20 else ahead[step, t].isnan()


def test_errors_of_known_arrays():
    observation = torch.randn(20, 18)
    truth = dreams.windows(observation, 1)
    dreamed = truth.unsqueeze(1).repeat(1, 2, 1, 1)  # (H, 2 samples, 20, 18)
    dreamed[4, :, 7, 0:2] += torch.tensor([3.0, 4.0])  # 5 m off in both
    dreamed[4, 0, 7, 6:8] += torch.tensor([0.0, 2.0])  # 2 m off in one of two
    dreamed[14, :, 0, 12] -= 1.5
    dreamed[..., [2, 3, 14, 16]] += 100  # angles and velocities don't count
    errors = dreams.distances(dreamed, observation)
    assert errors.shape == (dreams.H_DREAM, 20, 3)
    expected = torch.zeros(dreams.H_DREAM, 20, 3)
    expected[4, 7, 0], expected[4, 7, 1], expected[14, 0, 2] = 5, 1, 1.5
    for step in range(dreams.H_DREAM):
        expected[step, 19 - step :] = torch.nan
    torch.testing.assert_close(errors, expected, equal_nan=True)


def test_near_is_a_player_met_on_the_way():
    observation = torch.zeros(20, 18)
    observation[:, 0], observation[:, 6] = -4, 4
    observation[10, 12:14] = torch.tensor([3.5, 0.5])
    near = dreams.is_near(observation)
    for step in range(dreams.H_DREAM):
        assert near[step].nonzero().flatten().tolist() == list(range(max(0, 10 - step), 11))


def test_mean_errors_leave_out_what_was_not_played():
    agent = make_agent()
    games = play(agent, 2)
    means = dreams.mean_errors(agent, games)
    assert list(means)[:3] == list(dreams.PARTS) and len(means) == 5
    errors, moved = means["own position"]
    position = torch.cat([game.observation[:-1, :2] - game.observation[1:, :2] for game in games])
    assert moved[0] == pytest.approx(float(position.norm(dim=-1).mean()), rel=1e-4)
    assert errors.shape == (dreams.H_DREAM,) and errors.isfinite().all()
    cells = [cell for row in dreams.table_rows(means, 0.04)[1:] for cell in row[1:]]
    assert len(cells) == 15 and not any("nan" in cell for cell in cells)


def page_of(folder, **overrides):
    """Writes the page of an untrained agent -> its text and the data packed into it."""
    torch.manual_seed(0)
    make_agent(**overrides).save(folder / "<tiny>.safetensors")
    options = Namespace(agent=folder / "<tiny>.safetensors", against="weak")
    options = Namespace(**vars(options), out=folder / "new" / "dream.html", seed=0, games=2)
    dreams.main(options)
    page = options.out.read_text(encoding="utf-8")
    packed = re.search(r'id="data">([^<]*)<', page)[1]

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return page, json.loads(gzip.decompress(base64.b64decode(packed)), parse_constant=refuse)


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]])
def test_page_is_complete_offline_and_small(tmp_path, kind):
    page, data = page_of(tmp_path, **kind)
    assert "<title>What &lt;tiny&gt; dreams</title>" in page and "<tiny>" not in page
    assert not re.search(r"https?://|\ssrc=|<link|@import", page)
    assert not re.search(r"\$[a-z{]", page)  # nothing left to fill in
    assert len(page) < 5e6
    rows = len(data["real"])
    assert np.shape(data["posterior"]) == np.shape(data["real"]) == (rows, 8)
    for variant in ("played", "own"):
        assert np.shape(data["dreams"][variant]) == (rows, dreams.H_DREAM, 8)
    assert data["dreams"]["played"][-2][0][0] is not None  # the last action leads to the end
    assert data["dreams"]["played"][-2][1][0] is None
    by_length, *others = data["panels"]
    assert {len(line["y"]) for line in by_length["lines"]} == {dreams.H_DREAM}
    assert {len(line["y"]) for panel in others for line in panel["lines"]} == {rows}
    if kind["dreamer__latent"] == "gaussian":
        assert data["latents"] is None
    else:
        assert np.sum(data["latents"], 1) == pytest.approx(1, abs=0.01)
        assert 1 <= data["used"] <= 4


def test_the_same_seed_dreams_the_same(tmp_path):
    assert page_of(tmp_path)[1] == page_of(tmp_path)[1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"agent": "missing.safetensors"}, "missing.safetensors"),
        ({"agent": "pendulum.safetensors"}, "was not trained for hockey"),
        ({"against": "nobody"}, "nobody"),
        ({"against": "pendulum.safetensors"}, "was not trained for hockey"),
        ({"games": 0}, "--games must be"),
        ({"seed": -1}, "--seed at least 0"),
    ],
)
def test_errors_are_one_sentence(tmp_path, monkeypatch, changed, message):
    monkeypatch.chdir(tmp_path)
    make_agent().save("agent.safetensors")
    Dreamer(make_config("hockey.yml"), 3, 1).save("pendulum.safetensors")
    options = {"agent": "agent.safetensors", "against": "weak", "out": "d.html"}
    options |= {"seed": 0, "games": 1} | changed
    with pytest.raises(UserError, match=message) as error:
        dreams.main(Namespace(**options))
    assert "\n" not in str(error.value)
