"""What a gradient step of the shipped config may cost: on a laptop operations decide."""

from conftest import make_batch
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
