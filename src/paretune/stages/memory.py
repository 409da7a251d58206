"""Options of a recipe that save memory: whether this machine has what they need, asked before all else."""

from paretune.config import Config, location_of
from paretune.errors import ConfigError, format_issue
from paretune.learn.eightbit import import_bitsandbytes
from paretune.models.load import resolve_device


def check_memory_options(config: Config) -> None:
    """See that the device is there, and that what `learn` says of memory can be done with it.

    Raises:
        ResourceError: The machine lacks the device.
        ConfigError: Activations would be moved from the main memory to the main memory.
        MissingExtra: The package that 8-bit moments need is not installed.
    """
    device = resolve_device(config.run.device)
    if config.training.optim == "int8":
        import_bitsandbytes()
    if config.training.gradient_checkpointing == "offload" and device.type == "cpu":
        where = location_of(config, ("training", "gradient_checkpointing"))
        wrong = "offload has no effect: run.device: auto is the CPU on this machine"
        fix = "leave it out, or write recompute"
        raise ConfigError(format_issue(where, None, None, "training.gradient_checkpointing", wrong, fix=fix))
