"""Options of a recipe that save memory: whether this machine has what they need, asked before all else."""

from paretune.config import Experiment, written_at
from paretune.errors import ConfigError, complaint
from paretune.learn.eightbit import package
from paretune.models.load import device_named


def possible(e: Experiment) -> None:
    """See that the device is there, and that what `learn` says of memory can be done with it.

    Raises:
        ResourceError: The machine lacks the device.
        ConfigError: Activations would be moved from the main memory to the main memory.
        MissingExtra: The package that 8-bit moments need is not installed.
    """
    device = device_named(e.run.device)
    if e.learn.moments == "int8":
        package()
    if e.learn.activations == "offload" and device.type == "cpu":
        where = written_at(e, ("learn", "activations"))
        wrong = "offload has no effect: run.device: auto is the CPU on this machine"
        fix = "leave it out, or write recompute"
        raise ConfigError(complaint(where, None, None, "learn.activations", wrong, fix=fix))
