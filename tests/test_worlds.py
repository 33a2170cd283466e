"""Worlds other than hockey: choices and images, how they are made, what is refused."""

import base64
import io
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pygame
import pytest
import torch
from conftest import make_batch, make_config
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from omegaconf import OmegaConf
from tiny import STATE, numbers, outcome, quicken, run, tiny_config
from torch.distributions import Categorical

import checkpoint
import machine
import play
from buffer import ReplayBuffer
from dreamer import Dreamer
from environments import make_environments, playable, random_actions, sizes_of
from evaluate import main as measure
from extras.image_dreams import paint
from machine import Stop
from matches import evaluate
from networks import DiscreteActor, ImageDecoder, ImageEncoder, stages
from utils import UserError

CARTPOLE = {"config": "cartpole.yml", "run": "tiny", "environments": 3}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quicken(monkeypatch)


# ---------------------------------------------------------------------------- choices


def make_actor(scale=3.0):
    """A policy over five choices with opinions."""
    actor = DiscreteActor(8, 5, make_config(dreamer__unimix=0.1).dreamer)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(scale)
        actor.layers[-1].weight.mul_(100)
    return actor


def test_samples_are_one_hot_and_as_frequent_as_the_policy_says():
    actor = make_actor()
    policy = actor(torch.randn(4, 8))
    assert policy.probs.shape == (4, 5) and policy.probs.min() >= 0.1 / 5 - 1e-6
    assert policy.probs.max() > 0.5  # it has opinions
    sample = actor.sample(policy, actor.noise(20000, 4))
    assert sample.shape == (20000, 4, 5)
    assert torch.equal(sample.detach().round().sum(-1), torch.ones(20000, 4))
    assert torch.allclose(sample.mean(0), policy.probs, atol=0.02)
    assert torch.equal(actor.sample(policy).argmax(-1), policy.probs.argmax(-1))
    assert torch.equal(actor.action(sample), sample)


def test_log_probabilities_and_entropy_are_those_of_pytorch():
    actor = make_actor()
    policies = [actor(torch.randn(4, 8)) for _ in range(3)]
    policy, oracle = actor.stack(policies), Categorical(torch.stack([p.probs for p in policies]))
    index = oracle.sample()
    one_hot = torch.eye(5)[index]
    assert torch.allclose(policy.log_prob(one_hot), oracle.log_prob(index), atol=1e-6)
    assert torch.allclose(actor.entropy(policy, one_hot), oracle.entropy(), atol=1e-6)


def test_the_gradient_of_a_sample_is_that_of_its_probabilities():
    actor, worth = make_actor(), torch.randn(4, 5)
    policy = actor(torch.randn(4, 8))
    found = torch.autograd.grad(
        (worth * actor.sample(policy, actor.noise(4))).sum(),
        actor.layers[-1].bias,
        retain_graph=True,
    )
    expected = torch.autograd.grad((worth * policy.probs).sum(), actor.layers[-1].bias)
    assert torch.allclose(found[0], expected[0]) and expected[0].norm() > 0


@pytest.mark.parametrize(
    ("actor_gradient", "choices", "steps", "rate"),
    [
        ("reinforce", 2, (80, 180), 5e-3),
        pytest.param("reinforce", 3, (100, 350), 3e-3, marks=pytest.mark.slow),
        pytest.param("dynamics", 3, (100, 350), 3e-3, marks=pytest.mark.slow),
    ],
)
def test_the_choice_that_pays_is_found(actor_gradient, choices, steps, rate):
    """One-decision games: the observation 0, 1, ... is the number of the choice that is paid."""
    settings = {"horizon": 1, "actor_gradient": actor_gradient, "world_model_head_start": steps[0]}
    settings |= {"actor_rate": rate, "world_model_rate": rate, "critic_rate": rate}
    settings |= {"entropy": 1e-3, "slow_actor": 0.2}
    config = make_config(**{f"dreamer__{key}": value for key, value in settings.items()})
    agent = Dreamer(config, choices, choices, "cpu", True)
    replay = ReplayBuffer(make_config(replay__rows=2000).replay, 8, choices, choices)
    eye, nothing = torch.eye(choices), torch.zeros(8, choices)
    ones, zeros = torch.ones(8), torch.zeros(8)
    for _ in range(125):
        right, choice = torch.randint(choices, (2, 8))
        replay.add(eye[right], nothing, zeros, ones, zeros)
        replay.add(nothing, eye[choice], 2.0 * (choice == right), zeros, ones)
    for _ in range(steps[1]):
        with agent.update(replay.sample(32, 4)):
            pass
    signs = np.repeat(np.eye(choices, dtype=np.float32), 20, 0)
    expected = np.arange(len(signs)) // 20
    for options in ({"deterministic": True}, {"plan": True}):
        action = agent.player().act(signs, **options)
        assert action.shape == signs.shape and (action.sum(-1) == 1).all()
        assert (action.argmax(-1) == expected).mean() > 0.95, options
    assert (agent.player().act(signs).argmax(-1) == expected).mean() > 0.7


def test_choices_reach_the_environment_by_number():
    environments = make_environments(tiny_config(**CARTPOLE), 3)
    assert sizes_of(environments) == ((4, 2), True)
    actions = random_actions(environments)
    assert actions.shape == (3, 2) and (actions.sum(-1) == 1).all()
    assert np.array_equal(playable(environments, np.eye(2)[[1, 0, 1]]), [1, 0, 1])
    counts = sum(random_actions(environments) for _ in range(1000)).sum(0)
    assert abs(counts[0] / counts.sum() - 0.5) < 0.05


@pytest.mark.parametrize("actions", ["mode", "sample"])
def test_an_evaluation_plays_modes_or_samples(actions):
    config, asked = tiny_config(**CARTPOLE, evaluation_actions=actions), set()
    agent = Dreamer(config, 4, 2, "cpu", True)

    def act(observation, deterministic):
        asked.add(deterministic)
        return np.eye(2, dtype=np.float32)[np.zeros(len(observation), int)]

    agent.player = lambda: SimpleNamespace(act=act)
    evaluate(agent, config, None, Stop())
    assert asked == {actions == "mode"}
    agent.save("agent.safetensors")
    assert Dreamer.load("agent.safetensors").is_deterministic == (actions == "mode")


@pytest.mark.parametrize("threads", [1, 2])
def test_every_weight_of_a_convolution_moves_against_its_own_gradient(threads):
    torch.set_num_threads(threads)
    config = tiny_config(config="minatar.yml")
    agent = Dreamer(config, (12, 12, 3), 2, "cpu", True)
    batch = make_batch(3, 4, 12 * 12 * 3, 2)
    batch["observation"] = torch.randint(256, (3, 4, 12, 12, 3), dtype=torch.uint8)
    before = [weight.detach().clone() for weight in agent.parts["world_model"]]
    _, loss, _ = agent.world_model_loss(batch, agent.rssm.posterior.noise(4, 3))
    wanted = torch.autograd.grad(loss, agent.parts["world_model"], retain_graph=True)
    agent.descend({"world_model": agent.gradients("world_model", loss)})
    for old, weight, gradient in zip(before, agent.parts["world_model"], wanted, strict=True):
        clear = gradient.abs() > 1e-5  # Adam's first step has the gradient's sign
        assert torch.equal((weight - old)[clear].sign(), -gradient[clear].sign())


def test_cartpole_trains_and_resumes_exactly_and_its_agent_is_rebuilt_from_its_file(
    tmp_path, monkeypatch
):
    events = run(**CARTPOLE)
    expected, agent = outcome(), Dreamer.load(STATE.with_name("latest.safetensors"))
    assert agent.sizes == (4, 2) and agent.discrete
    assert set(np.unique(agent.act(np.zeros((5, 4))))) == {0, 1}
    assert "evaluation/return" in numbers()[0]
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    run(**CARTPOLE, crash_after=int(0.6 * events))
    run(**CARTPOLE, resume="true")
    assert outcome() == expected


def test_switches_are_refused_where_actions_are_choices():
    with pytest.raises(UserError, match="switches must be"):
        Dreamer(make_config(dreamer__switches=[0]), 4, 2, "cpu", True)


# ---------------------------------------------------------------------------- images


class Lights(gymnasium.Env):
    """A lamp somewhere in a row of pixels; to name its half of the picture is paid, five times."""

    def __init__(self, height=10, width=10, channels=2, dtype="uint8", days=5, **odd):
        self.shape, self.dtype = (height, width, channels), np.dtype(dtype)
        high = 255 if self.dtype == np.uint8 else 1
        box = spaces.Box(0, high, self.shape, self.dtype)
        self.observation_space = odd.get("seen") or box
        self.action_space = odd.get("played") or spaces.Discrete(2)
        self.high, self.days = high, days

    def look(self):
        self.time += 1
        self.place = int(self.np_random.integers(self.shape[1]))
        image = np.zeros(self.shape, self.dtype)
        image[:, self.place] = self.high
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.look(), {}

    def step(self, action):
        reward = float(np.argmax(action) if np.ndim(action) else action)
        reward = float(reward == (self.place >= self.shape[1] // 2))
        return self.look(), reward, self.time > self.days, False, {}


LIGHTS = {"environment": "test_worlds:Lights-v0", "environments": 3, "run": "tiny"}
LIGHTS |= {"dreamer__observation_scale": "[]", "dreamer__observation_in_state": "false"}
LIGHTS |= {"dreamer__switches": "[]", "dreamer__channels": 2, "dreamer__reconstruction_weight": 1}
gymnasium.register("Lights-v0", lambda **options: Lights(**options))


@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm", "none"])
@pytest.mark.parametrize(
    ("shape", "smallest"),
    [((64, 64, 3), (16, 4, 4)), ((96, 96, 3), (16, 6, 6)), ((84, 84, 1), (16, 5, 5))]
    + [((10, 10, 6), (2, 5, 5)), ((21, 34, 3), (4, 5, 8)), ((5, 5, 2), (2, 5, 5))],
)
def test_the_decoder_is_the_encoders_mirror(shape, smallest, norm):
    config = make_config(dreamer__channels=2, dreamer__norm=norm).dreamer
    pixels = int(np.prod(shape))
    assert stages(shape, config)[-1] == smallest
    encoder, decoder = ImageEncoder(shape, 7, config), ImageDecoder(7, shape, config)
    seen = encoder(torch.rand(2, 3, pixels))
    painted = decoder(seen)
    assert seen.shape == (2, 3, 7) and painted.shape == (2, 3, pixels)
    assert 0 < painted.min() and painted.max() < 1
    convolutions = [part for part in encoder if isinstance(part, torch.nn.Conv2d)]
    assert len(convolutions) == len(stages(shape, config)) - 1
    for network in (encoder, decoder):
        for parameter in network.parameters():
            (gradient,) = torch.autograd.grad(painted.square().sum(), parameter, retain_graph=True)
            assert gradient.isfinite().all()


def make_painter(shape=(10, 12, 3), **settings):
    """An agent that sees images and plays one of two choices."""
    settings = {"channels": 4, "observation_in_state": "false"} | settings
    config = make_config(**{f"dreamer__{key}": value for key, value in settings.items()})
    return Dreamer(config, shape, 2, "cpu", True)


def test_images_are_flat_and_channels_first_inside_and_come_back():
    agent = make_painter()
    images = torch.randint(256, (4, 5, 10, 12, 3), dtype=torch.uint8)
    squashed = agent.squash(images)
    assert squashed.shape == (4, 5, 360) and squashed.max() <= 1
    assert squashed[1, 2].unflatten(-1, (3, 10, 12))[2, 7, 5] == images[1, 2, 7, 5, 2] / 255
    assert torch.equal(agent.unsquash(squashed).round().to(torch.uint8), images)


def test_the_loss_of_an_image_is_the_sum_of_its_pixels_and_it_learns_to_paint():
    torch.manual_seed(1)
    agent = make_painter(world_model_rate=3e-3, reconstruction_weight=2)
    batch = make_batch(action_size=2)
    batch["observation"] = torch.zeros(4, 5, 10, 12, 3, dtype=torch.uint8)
    batch["observation"][..., 2:6, :4, 1] = 255
    _, _, metrics = agent.world_model_loss(batch, agent.rssm.posterior.noise(5, 4))
    first = metrics["world_model/reconstruction"]
    assert 0.5 * 360 * 0.25 * 0.7 < first < 0.5 * 360 * 0.25 * 1.4  # all pixels grey at first
    for _ in range(25):
        with agent.update(batch):
            pass
    _, _, metrics = agent.world_model_loss(batch, agent.rssm.posterior.noise(5, 4))
    assert metrics["world_model/reconstruction"] < 0.7 * first


@pytest.mark.parametrize("shape", [(10, 12), (12, 10, 3), (2, 2, 10, 12, 3), ()])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="observations must be"):
        make_painter().act(np.zeros(shape))


@pytest.mark.parametrize("setting", [{"observation_in_state": "true"}, {"observation_scale": [1]}])
def test_images_are_no_part_of_the_state(setting):
    with pytest.raises(UserError, match="Images need dreamer.observation_in_state=false"):
        make_painter(**setting)


def test_the_replay_keeps_bytes():
    replay = ReplayBuffer(make_config(replay__rows=40).replay, 2, (3, 4, 2), 1)
    images = torch.randint(256, (30, 2, 3, 4, 2), dtype=torch.uint8)
    for time in range(30):
        replay.add(
            images[time], torch.zeros(2), torch.full((2,), time), torch.zeros(2), torch.zeros(2)
        )
    batch = replay.sample(16, 5)
    time, image = batch["reward"].long(), batch["observation"]
    assert image.dtype == torch.uint8 and image.shape == (16, 5, 3, 4, 2)
    is_ring = [(image == images[time, ring]).flatten(1).all(1) for ring in (0, 1)]
    assert (is_ring[0] ^ is_ring[1]).all()
    assert replay.bytes == 40 * (3 * 4 * 2 + 4 * 4)
    other = ReplayBuffer(make_config(replay__rows=40).replay, 2, (3, 4, 2), 1)
    other.restore(replay.state())
    assert torch.equal(other.state()["replay/images"], images[10:])
    with pytest.raises(ValueError, match="other images"):
        ReplayBuffer(make_config(replay__rows=40).replay, 2, (4, 3, 2), 1).restore(replay.state())


def test_a_replay_that_is_too_large_is_refused_with_the_number_that_fits(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda device: 1e6)
    with pytest.raises(UserError, match=r"replay.rows: 2000 of 12304 bytes.* at most 32\."):
        ReplayBuffer(make_config(replay__rows=2000).replay, 2, (64, 64, 3), 1)


@pytest.mark.parametrize("dtype", ["uint8", "bool"])
def test_images_train_and_resume_exactly(tmp_path, monkeypatch, dtype):
    options = LIGHTS | {"environment_kwargs": f"[dtype={dtype}]"}
    events = run(**options)
    agent, expected = Dreamer.load(STATE.with_name("latest.safetensors")), outcome()
    assert agent.sizes == ((10, 10, 2), 2) and agent.discrete
    assert checkpoint.load(STATE)[0]["replay/images"].max() == 255
    if dtype == "uint8":
        (tmp_path / "again").mkdir()
        monkeypatch.chdir(tmp_path / "again")
        run(**options, crash_after=int(0.6 * events))
        run(**options, resume="true")
        assert outcome() == expected


# ---------------------------------------------------------------------------- wrappers


def make_lights(mode="sync", count=2, **options):
    """Environments of lamps; keywords are keys of the config."""
    return make_environments(tiny_config(**LIGHTS | {"vectorization": mode} | options), count)


def test_wrappers_are_gymnasiums():
    sizes = {}
    for name, options in {
        "plain": {},
        "larger": {"environment_kwargs": "[height=12, width=20, channels=3]"},
        "grey": {"environment_kwargs": "[channels=3]", "wrappers__grayscale": "true"},
        "flat": {"wrappers__flatten": "true"},
    }.items():
        environments = make_lights(**options)
        sizes[name] = sizes_of(environments)[0][0]
        observations, _ = environments.reset(seed=0)
        assert observations.shape == (2, *environments.single_observation_space.shape)
        assert observations.max() > 1
    assert sizes == {"plain": (10, 10, 2), "larger": (12, 20, 3), "grey": (10, 10, 1), "flat": 200}


@pytest.mark.skipif(not find_spec("cv2"), reason="Gymnasium resizes by OpenCV")
def test_images_are_resized():
    for channels, grey in ((3, "true"), (3, "false"), (1, "false")):
        kwargs = f"[height=30, width=20, channels={channels}]"
        options = {"wrappers__resize": 16, "wrappers__grayscale": grey}
        environments = make_lights(environment_kwargs=kwargs, **options)
        expected = (16, 16, 1 if grey == "true" else channels)
        assert sizes_of(environments)[0][0] == expected
        assert environments.reset(seed=0)[0].shape == (2, *expected)


def length_of(**options):
    """How many decisions the first episode takes."""
    environments = make_lights(**options)
    environments.reset(seed=0)
    for step in range(1, 20):
        _, _, terminated, truncated, _ = environments.step(np.zeros(2, int))
        if (terminated | truncated).all():
            return step, bool(terminated.all())


def test_actions_are_repeated_and_time_is_limited():
    assert length_of() == (5, True)
    assert length_of(wrappers__action_repeat=2) == (3, True)
    assert length_of(wrappers__time_limit=3) == (3, False)


def test_a_class_needs_no_registration():
    environments = make_lights(environment="test_worlds:Lights", environment_kwargs="[channels=1]")
    assert sizes_of(environments) == (((10, 10, 1), 2), True)


def test_processes_play_the_same_games():
    found = []
    for mode in ("sync", "async"):
        environments = make_lights(mode)
        rows = [environments.reset(seed=3)[0]]
        rows += [environments.step(np.zeros(2, int))[0] for _ in range(8)]
        environments.close()
        found.append(np.stack(rows))
    assert np.array_equal(*found)


@pytest.mark.slow
def test_processes_end_with_a_run_that_fails():
    lines = (
        "import sys; sys.path[:0] = sys.argv[1:]",
        "from machine import Stop; Stop().listen()",
        "from config import load_config; from environments import make_environments",
        "config = load_config('cartpole.yml', ['vectorization=async'])",
        "environments = make_environments(config, 2)",
        "1 / 0",
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", "\n".join(lines), str(here.parent), str(here)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "ZeroDivisionError" in ended.stderr


@pytest.mark.skipif(not find_spec("imageio_ffmpeg"), reason="videos need ffmpeg")
def test_an_environment_that_draws_itself_is_filmed():
    run(**CARTPOLE, gradient_steps=2, evaluate_every=2, videos="true")
    assert Path("videos/tiny_2.mp4").stat().st_size > 1000


def test_an_environment_that_draws_nothing_is_refused_at_the_start():
    with pytest.raises(UserError, match="videos: test_worlds:Lights-v0 can't draw itself"):
        run(**LIGHTS, videos="true")


class Broken(CartPoleEnv):
    picture = None

    def render(self):
        if isinstance(self.picture, Exception):
            raise self.picture
        return self.picture

    def close(self):
        raise RuntimeError("not now")


@pytest.mark.parametrize(
    ("picture", "word"),
    [
        (KeyError("no font"), "failed: KeyError"),
        (None, "gave no picture"),
        (np.zeros((4, 4, 4), np.uint8), "gave no picture"),
    ],
)
def test_a_picture_that_fails_is_one_sentence(picture, word, monkeypatch, capsys):
    monkeypatch.setattr(Broken, "picture", picture)
    keys = CARTPOLE | {"environment": "test_worlds:Broken", "gradient_steps": 6}
    with pytest.raises(UserError, match=rf"Broken \(render\) {word}.* saved up to gradient step 4"):
        run(**keys, videos="true")
    assert "test_worlds:Broken (close) failed: RuntimeError: not now" in capsys.readouterr().err
    run(**keys, resume="true")  # who can't close has trained all the same
    assert checkpoint.load(STATE)[1]["steps"][1] == 6


def test_an_agent_whose_world_has_changed_is_one_sentence(capsys):
    run(**LIGHTS, gradient_steps=1, evaluate_every=1)
    agent = Dreamer.load(STATE.with_name("latest.safetensors"))
    agent.config.environment_kwargs = ["height=9"]
    agent.save("changed.safetensors")
    assert measure(["changed.safetensors"]) == play.main(["watch", "changed.safetensors"]) == 2
    assert capsys.readouterr().err.count("has changed: ") == 2
    with pytest.raises(UserError, match="its environment is .*Lights-v0, not CartPole-v1"):
        run(**CARTPOLE | {"resume": "true"})


def test_an_agent_calls_nothing_but_environments(capsys):
    agent = Dreamer(tiny_config(config="cartpole.yml"), 4, 2, discrete=True)
    agent.config = OmegaConf.merge(
        agent.config, {"environment": "os:mkdir", "environment_kwargs": ["path=made"]}
    )
    agent.save("theirs.safetensors")
    assert measure(["theirs.safetensors"]) == 2
    assert "os:mkdir is no class of gymnasium.Env" in capsys.readouterr().err
    assert not Path("made").exists()


@pytest.mark.parametrize(("keys", "word"), [(LIGHTS, "evaluate.py"), (CARTPOLE, "play.py watch")])
def test_the_next_command_that_a_run_names_is_one_that_works(keys, word, capsys, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    run(**keys, gradient_steps=1, evaluate_every=1)
    assert capsys.readouterr().out.endswith(f'; next: python {word} "checkpoints/tiny"\n')
    is_drawn = word != "evaluate.py"
    assert play.main(["watch", "tiny", "--games", "1", "--speed", "100"]) == (0 if is_drawn else 2)
    assert is_drawn or "Lights-v0 can't draw itself" in capsys.readouterr().err
    assert measure(["tiny", "--games", "2"]) == 0


# ---------------------------------------------------------------------------- dreams


def test_the_page_of_dreams_of_images(capsys):
    run(**LIGHTS, environment_kwargs="[days=30]", gradient_steps=3, evaluate_every=3)
    assert play.main(["dream", "tiny", "--out", "plots/dream.html"]) == 0
    page = Path("plots/dream.html").read_text()
    strips = re.findall(r'data-at="(\d+)" src="data:image/png;base64,([^"]+)"', page)
    assert [int(moment) for moment, _ in strips] == list(range(4, 15))
    picture = pygame.image.load(io.BytesIO(base64.b64decode(strips[0][1])))
    assert picture.get_size() == (5 * 20 * 11, 5 * 3 * 11)
    assert play.main(["dream", "tiny", "--against", "weak"]) == 2
    assert "plays alone" in capsys.readouterr().err


@torch.no_grad()
def test_dreams_of_images_follow_the_actions_that_were_played():
    agent = make_painter()
    images, actions = torch.zeros(30, 10, 12, 3), torch.eye(2)[torch.randint(2, (30,))]
    state = [torch.randn(30, size) for size in agent.rssm.sizes]
    painted, real = paint(agent, images, actions, state, 7)
    assert painted.shape == real.shape == (20, 10, 12, 3)
    expected = agent.unsquash(agent.rssm.decode(*(part[3:8] for part in state)))
    assert np.allclose(painted[:5], expected, atol=1e-3)
    now = [part[7:8] for part in state]
    for step in range(3):
        now, _ = agent.rssm.step(now, actions[7 + step][None], mode=True)
    assert np.allclose(painted[7], agent.unsquash(agent.rssm.decode(*now))[0], atol=1e-3)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("seen", "played", "word"),
    [
        (spaces.Dict({"a": spaces.Discrete(2)}), None, "Dict.*flatten=true"),
        (spaces.Tuple([spaces.Discrete(2)]), None, "Tuple"),
        (spaces.Text(5), None, "Text"),
        (spaces.Discrete(3), None, "Discrete"),
        (spaces.Box(0, 1, ()), None, "flat Box"),
        (spaces.Box(0, 1, (4, 4)), None, "flat Box"),
        (spaces.Box(0, 1, (4, 4, 3)), None, "uint8"),
        (spaces.Box(0, 255, (2, 4, 4, 3), np.uint8), None, "images"),
        (spaces.Box(0, 255, (3, 64, 64), np.uint8), None, "images"),  # channels first
        (None, spaces.Box(-np.inf, np.inf, (2,)), "finite bounds"),
        (spaces.Box(0, 1, (0,)), None, "flat Box"),
        (None, spaces.Box(-1, 1, (0,)), "Discrete or a Box"),
        (None, spaces.MultiDiscrete([2, 2]), "actions must be"),
        (None, spaces.MultiBinary(2), "actions must be"),
        (None, spaces.Text(3), "actions must be"),
    ],
)
def test_bad_spaces_are_one_sentence(seen, played, word):
    gymnasium.register("Odd-v0", lambda: Lights(seen=seen, played=played))
    try:
        with pytest.raises(UserError, match=word) as caught:
            make_lights(environment="Odd-v0")
    finally:
        del gymnasium.registry["Odd-v0"]
    assert "\n" not in str(caught.value) and "environment" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"environment": "no_such_module:Env-v0"}, "no_such_module"),
        ({"environment": "NoSuchGame-v0"}, "NoSuchGame"),
        ({"environment": "test_worlds:NoSuchGame"}, "NoSuchGame"),
        ({"environment_kwargs": "[height]"}, "key=value"),
        ({"environment_kwargs": "['height=[']"}, "key=value"),
        ({"environment": "CartPole-v1", "environment_kwargs": "[no_such=3]"}, "no_such"),
        (
            {"environment_kwargs": "[channels=2]", "wrappers__grayscale": "true"},
            "failed: .*3 channels",
        ),
        ({"environment": "CartPole-v1", "wrappers__resize": 8}, "failed: .*2D or 3D"),
    ],
)
def test_environments_that_can_not_be_made_are_one_sentence(options, word):
    with pytest.raises(UserError, match=word) as caught:
        make_lights(**options)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- presets

NEEDS = {"minatar.yml": "minatar", "car-racing.yml": "cv2"}


@pytest.mark.parametrize(
    "name", ["dreamerv1.yml", "dreamerv2.yml", "dreamerv3.yml", "minatar.yml", "car-racing.yml"]
)
def test_presets_train_a_few_steps(name):
    if not find_spec(NEEDS.get(name, "gymnasium")):
        pytest.skip(f"{NEEDS[name]} is not installed")
    sizes = {"gradient_steps": 3, "evaluate_every": 3, "evaluation_games": 2, "save_every": 3}
    sizes |= {"environments": 2, "warmup_rows": 20, "dreamer__channels": 2}
    if name == "car-racing.yml":  # an episode is long
        sizes |= {"vectorization": "sync", "wrappers__time_limit": 3, "wrappers__resize": 16}
        sizes |= {"environments": 1, "evaluation_games": 1}
    run(config=name, **sizes)
    header, *rows = numbers()
    assert rows[-1][0] == "3" and "evaluation/return" in header
