"""A second place for a run's metrics: TensorBoard or W&B."""

import atexit
from pathlib import Path

from omegaconf import OmegaConf

from machine import explained


def open_tracker(config):
    """Returns a function: gradient step at which a run begins -> what sends a CSV's row there.

    Raises `UserError` if the package of the config's `tracker` is not installed.
    """
    needs = f"tracker: {config.tracker} needs its package (pip install {config.tracker})"
    with explained(needs, ImportError):
        if config.tracker == "wandb":
            import wandb
        elif config.tracker == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

    def begin(step):
        if config.tracker == "none":
            return lambda row: None
        if config.tracker == "wandb":
            name = Path(f"checkpoints/{config.run}/wandb.txt")  # goes with an overwritten run
            if not name.exists():
                name.write_text(wandb.util.generate_id())
            plain, one = OmegaConf.to_container(config), {"id": name.read_text(), "resume": "allow"}
            run = wandb.init(project="hockey", name=config.run, config=plain, **one)
            return lambda row: run.log(row, step=row["gradient_steps"])
        # what a run wrote after the checkpoint it goes on from is forgotten
        writer = SummaryWriter(f"metrics/{config.run}.tensorboard", purge_step=step + 1)
        atexit.register(writer.close)  # it writes every two minutes, and not at the end

        def track(row):
            for key, value in row.items():
                writer.add_scalar(key, value, row["gradient_steps"])

        return track

    return begin
