"""What a gradient step of the shipped config may cost: on a laptop operations decide."""

import pytest
from conftest import make_batch, make_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from config import load_config
from dreamer import Dreamer


def test_a_gradient_step_of_hockey_takes_at_most_ten_gigaflop():
    config = load_config("hockey.yml", ["threads=1", "dreamer.precision=float32"])
    agent = Dreamer(config, 18, 4)
    agent.gradient_steps = config.dreamer.world_model_head_start
    batch = make_batch(config.replay.batch_size, config.replay.batch_length)
    for _ in range(2):  # behavior is learned from the batch before
        with FlopCounterMode(display=False) as counter, agent.update(batch) as metrics:
            pass
    assert "behavior/actor_gradient_norm" in metrics
    assert 5e9 < counter.get_total_flops() <= 10e9


@pytest.mark.parametrize(
    ("preset", "sizes", "discrete"),
    [
        ("hockey.yml", (18, 4), False),
        ("dreamerv1.yml", (3, 1), False),
        ("dreamerv2.yml", (3, 1), False),
        ("dreamerv3.yml", (3, 1), False),
        ("cartpole.yml", (4, 2), True),
    ],
)
def test_no_part_of_a_step_waits_for_the_device(preset, sizes, discrete):
    """So a GPU can record it: here are tensors without numbers, and to look at one fails."""
    agent = Dreamer(make_config(preset), *sizes, discrete=discrete)
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = make_batch(4, 5, *sizes, seed=None)
        noise = agent.rssm.posterior.noise(5, 4)
        states, _, of_world, _ = agent.learn_world(batch, noise)
        _, gradients, _ = agent.learn_behavior(states, batch)
        metrics = agent.move(gradients | {"world_model": of_world})
        assert len(metrics) == 3
        with pytest.raises(RuntimeError):
            float(metrics["world_model/gradient_norm"])
