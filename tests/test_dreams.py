"""Tests of the dream page: dreams against a plain computation, errors of known arrays, the page."""

import base64
import gzip
import json
import re

import numpy as np
import pytest
import torch
from conftest import make_config

import hockey_env
import play
from dreamer import Dreamer
from extras import dreams
from opponents import load

KINDS = [
    {"dreamer__latent": "categorical", "dreamer__observation_in_state": True},
    {"dreamer__latent": "categorical", "dreamer__observation_in_state": False},
    {"dreamer__latent": "gaussian", "dreamer__observation_in_state": True},
    {"dreamer__latent": "gaussian", "dreamer__observation_in_state": False},
]


def make_agent(**overrides):
    """A small untrained agent for hockey."""
    return Dreamer(make_config(**overrides), 18, 4)


def record(agent, count=1, seed=0):
    """Games against the weak bot."""
    return dreams.record_games(agent, load("weak", count, seed), count, seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["[]", f"[{','.join('2' * 18)}]"])
@pytest.mark.parametrize("is_real", [True, False])
@torch.no_grad()
def test_first_steps_equal_a_plain_computation(kind, scale, is_real, monkeypatch):
    agent = make_agent(dreamer__observation_scale=scale, **kind)
    rssm, rows = agent.rssm, 3
    real = rssm.prior.sample
    monkeypatch.setattr(rssm.prior, "sample", lambda numbers, noise, mode: real(numbers, mode=True))
    h, z, o = (torch.randn(rows, size) for size in (32, 16, rssm.carried))
    actions = torch.rand(dreams.H_DREAM, rows, 4) * 2 - 1
    dreamed = dreams.imagine(agent, (h, z, o), actions if is_real else None)
    assert dreamed.shape == (dreams.H_DREAM, rows, 18)
    for step in range(2):
        a = torch.tanh(agent.slow_actor.layers(torch.cat([h, z, o], 1))[:, :4])
        a = actions[step] if is_real else a
        h = rssm.recurrent(h, torch.cat([z, a, o], 1))
        statistics = rssm.prior(h)
        if agent.settings.latent == "gaussian":
            z = statistics[:, 0]
        else:
            z = torch.nn.functional.one_hot(statistics.argmax(-1), 4).flatten(1).float()
        expected = rssm.decoder(torch.cat([h, z, o], 1))
        if rssm.carried:
            o = expected = expected + o
        metres = 2 * expected if len(agent.scale) else expected.sign() * (expected.abs().exp() - 1)
        torch.testing.assert_close(dreamed[step], metres, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_are_those_of_playing(kind):
    agent = make_agent(**kind)
    game = record(agent, 2)[1]
    player, length = agent.player(), len(game.reward) - 1
    for row in range(length):
        action = player.act(game.observation[row].numpy(), deterministic=True)
        np.testing.assert_allclose(action, game.action[row], atol=1e-5)
        for part, remembered in zip(game.state, player.memory[:3], strict=True):
            np.testing.assert_allclose(remembered[0], part[row], atol=1e-5)
    assert all(len(part) == length + 1 for part in (game.observation, game.action, *game.state))
    assert game.action[-1].isnan().all() and not game.terminal[:-1].any()
    assert game.terminal[-1] == (game.winner != 0)
    assert length == 126 or game.winner  # 251 frames, two per decision


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
    games = record(agent, 2)
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
    agent, path = folder / "<tiny>.safetensors", folder / "new" / "dream.html"
    make_agent(**overrides).save(agent)
    options = [str(agent), "--against", "weak", "--games", "2", "--out", str(path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hockey_env.MAX_TIMESTEPS, 0, 100)
        assert play.main(["dream", *options]) == 0
    page = path.read_text(encoding="utf-8")
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
    by_length, *others = data["figures"].values()
    assert {len(line) for line in by_length.values()} == {dreams.H_DREAM}
    assert {len(line) for lines in others for line in lines.values()} == {rows}
    if kind["dreamer__latent"] == "gaussian":
        assert data["latents"] is None
    else:
        assert np.sum(data["latents"], 1) == pytest.approx(1, abs=0.01)
        assert 1 <= data["used"] <= 4


def test_the_same_seed_dreams_the_same(tmp_path):
    assert page_of(tmp_path)[1] == page_of(tmp_path)[1]


@torch.no_grad()
def test_what_the_heads_say_is_beside_what_happened():
    agent = make_agent()
    game = record(agent)[0]
    said = dreams.predictions(agent, game)
    assert torch.equal(said["reward"]["received"], game.reward)
    returns, rewards = said["value"]["λ-return"], game.reward
    values = agent.slow_critic.mean(agent.slow_critic(agent.rssm.features(game.state)))
    following = values[-1]
    for row in reversed(range(len(returns) - 1)):
        discount = agent.settings.discount * (1 - game.terminal[row + 1])
        mixed = 0.05 * values[row + 1] + 0.95 * following
        following = rewards[row + 1] + discount * mixed
        assert returns[row] == pytest.approx(float(following), abs=1e-4)
    kl = said["KL of posterior and prior, nats"]["KL"]
    assert kl[0].isnan() and (kl[1:] >= 0).all() and returns[-1].isnan()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors"], "missing.safetensors"),
        (["pendulum.safetensors"], "was not trained for hockey"),
        (["agent", "--against", "nobody"], "nobody"),
        (["agent", "--against", "pendulum.safetensors"], "was not trained for hockey"),
        (["agent", "--games", "0"], "--games must be"),
        (["agent", "--seed", "-1"], "--seed must be from 0"),
    ],
)
def test_errors_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    make_agent().save("checkpoints/agent.safetensors")
    Dreamer(make_config(), 3, 1).save("pendulum.safetensors")
    assert play.main(["dream", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
