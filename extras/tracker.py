"""A second place for a run's metrics: TensorBoard or W&B."""

from omegaconf import OmegaConf

from utils import UserError


def open_tracker(config):
    """Returns a function that sends a row of the CSV there as well, by the config's `tracker`.

    Raises `UserError` if its package is not installed.
    """
    if config.tracker == "none":
        return lambda row: None
    try:
        if config.tracker == "wandb":
            import wandb

            plain = OmegaConf.to_container(config)
            run = wandb.init(project="hockey", name=config.run, config=plain)
            return lambda row: run.log(row, step=row["gradient_steps"])
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(f"metrics/{config.run}.tensorboard")
    except ImportError as error:
        raise UserError(f"tracker: {config.tracker} needs: pip install {config.tracker}") from error

    def track(row):
        for key, value in row.items():
            writer.add_scalar(key, value, row["gradient_steps"])

    return track
