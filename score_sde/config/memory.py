"""What a config asks of memory at least, told before it is taken: a number too large must not bring a machine down."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .validation import ConfigError

LIMIT = "SCORE_SDE_MAX_MEMORY"  # environment variable: bytes that a config may ask for, those of the machine by default
_CGROUPS = ("memory.max", "memory/memory.limit_in_bytes")  # of version 2 and 1


def most_memory() -> int:
    """Bytes that a config may ask for.

    Raises:
        ConfigError: the environment variable holds no whole number.
    """
    if given := os.environ.get(LIMIT):
        if not given.isdecimal():
            raise ConfigError(f"{LIMIT} must be a whole number of bytes, got {given!r}.")
        return int(given)
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _CGROUPS:
        try:
            found.append(int((Path("/sys/fs/cgroup") / name).read_text()))
        except (OSError, ValueError):  # no such group, or no limit
            continue
    return min(found)


def asked(config: Any, shape: tuple[int, ...], levels: int | None, parameters: int) -> dict[str, int]:
    """Least bytes by what asks for them: float32 states and what goes beside, of examples of `shape`."""
    c, event = config, 4 * math.prod(shape)
    stored = event if levels is None else event // 4
    return {
        "model": 16 * parameters,  # with their averages and two moments
        "training.batch_size": 2 * event * c.training.batch_size * c.training.steps_per_dispatch,  # examples and noise
        "sampling.batch_size": (3 + c.sampling.trajectory) * event * c.sampling.batch_size,  # state, score, noise
        "sampling.num_samples": 2 * stored * c.sampling.num_samples,  # in batches, then in one array
        "sampling.steps": 16 * c.sampling.steps,  # a grid, and coefficients
        "restore.samples": event * c.restore.examples * c.restore.samples,
        "restore.particles": 3 * event * (c.restore.particles or 1),
        "eval.batch_size": 3 * event * c.eval.batch_size,
        "eval.bound_draws": 4 * c.eval.bound_draws * c.eval.batch_size,
        "eval.probes": event * c.eval.batch_size * (c.eval.probes or 1),
        "eval.passes": 32 * c.eval.passes,  # value, evaluations, bound and index of one example at least
    }


def memory_problems(config: Any, shape: tuple[int, ...], levels: int | None, parameters: int) -> Iterator[str]:
    """What asks for more than there is, a sentence each."""
    most = most_memory()
    for key, size in asked(config, shape, levels, parameters).items():
        if size > most:
            yield (
                f"{key} asks for at least {size / 1e9:,.1f} GB of memory, and there are {most / 1e9:,.1f}; lower it, "
                f"or set {LIMIT} to as many bytes"
            )
