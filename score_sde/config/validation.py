"""What no config may hold, whatever it names: wrong types, numbers out of range, sizes that do not go together.

`Problems` collects sentences, so that a user reads all of them at once; `config.build` raises them.  Nothing here
touches a device.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """The config makes no sense; the message lists every problem found."""


LARGEST = 2**31 - 1  # counts are int32 on the device
SMALL, GREAT = 1e-37, 1e37  # beyond them a float32 is 0 or infinite
MOST_DEVICES = 256  # of a CPU; more than it has cores serves tests only
# Bounds on what sets a network's size: beyond them a slip of the keyboard fills the memory before anything is said.
WIDEST, DEEPEST = 2**16, 100
COUNTS = {
    "training": dict(batch_size=1, steps=1, cpu_devices=0),
    "sampling": dict(batch_size=1, steps=1, num_samples=1, temperature=0),
    "restore": dict(examples=1, samples=1),
    "eval": dict(batch_size=1, num_examples=1, passes=1, bound_draws=1, round_trip=0),
}


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the known name that is closest, or ''.

    Of keys with a section, such as sampling.steps, first those that are right but for the section.
    """
    known, name = list(known), str(name)
    ends: dict[str, list[str]] = {}
    for key in known:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    end = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, ends.get(end, []), n=1, cutoff=0.0)
    close = close or difflib.get_close_matches(name, known, n=1)
    close = close or [ends[k][0] for k in difflib.get_close_matches(end, ends, n=1)]
    close = close or [k for k in known if len(name) > 2 and name.lower() in k]
    return f" Did you mean {close[0]!r}?" if close else ""


class Problems:
    """Sentences about what is wrong, in the order in which they were found."""

    def __init__(self):
        self.problems: list[str] = []

    def check(self, good: bool, problem: str) -> None:
        """Note `problem` unless `good`."""
        if not good:
            self.problems.append(problem)

    def choose(self, where: str, table: dict[str, Any], name: str) -> Any:
        """table[name], or None where there is no such name, which is noted."""
        if name in table:
            return table[name]
        self.problems.append(f"{where} must be one of {', '.join(table)}; got {name!r}.{did_you_mean(name, table)}")
        return None


def wrong_types(values: dict[str, Any], types: dict[str, type], needed: set[str]) -> list[str]:
    """What ml_collections lets pass: a switch for a number, None for what must be set, a section replaced by None."""
    found = [f"{key} is missing" for key in types if key not in values]
    for key in types.keys() & values.keys():
        value, kind = values[key], types[key]
        if value is None and key in needed:
            found.append(f"{key} must be set, got None")
        elif isinstance(value, bool) and kind is not bool:
            found.append(f"{key} must be of type {kind.__name__}, got {value}")
    return sorted(found)


def check_numbers(make: Problems, values: dict[str, Any]) -> None:
    """Numbers that the device can hold."""
    for key, value in values.items():
        for v in value if isinstance(value, list) else [value]:
            if isinstance(v, float):
                make.check(math.isfinite(v), f"{key} must be finite, got {value}")
                size = abs(v)
                good = not math.isfinite(v) or size == 0 or SMALL <= size <= GREAT
                make.check(good, f"{key} must be 0 or between {SMALL:g} and {GREAT:g} in size (float32), got {value}")
            elif isinstance(v, int) and not key.endswith("seed"):
                make.check(abs(v) <= LARGEST, f"{key} must be at most 2^31 - 1 in size, got {value}")


def check_counts(make: Problems, config: Any) -> None:
    """Counts, seeds and tolerances; nan has been told already."""
    for section, counts in COUNTS.items():
        for name, least in counts.items():
            value = config[section][name]
            make.check(value is None or not value < least, f"{section}.{name} must be at least {least}, got {value}")
    devices = config.training.cpu_devices
    make.check(devices <= MOST_DEVICES, f"training.cpu_devices must be at most {MOST_DEVICES}, got {devices}")
    for name, seed in (("seed", config.seed), ("sampling.seed", config.sampling.seed), ("eval.seed", config.eval.seed)):
        make.check(0 <= seed < 2**32, f"{name} must be in 0..2^32 - 1, got {seed}")
    for name in ("rtol", "atol"):
        make.check(not config.eval[name] <= 0, f"eval.{name} must be positive, got {config.eval[name]}")


def batch_problems(config: Any, devices: int) -> list[str]:
    """Batches that cannot be shared among `devices`."""
    sizes = {f"{section}.batch_size": config[section].batch_size for section in ("training", "sampling", "eval")}
    return [f"{name} must be a multiple of the {devices} devices, got {n}" for name, n in sizes.items() if n % devices]


def check_sizes(make: Problems, model: Any) -> bool:
    """Whether the network's numbers can be, which Flax would say in its own terms or not at all."""
    heights = dict(attn_resolutions=LARGEST, up_attn_resolutions=LARGEST)
    for name, most in dict(features=WIDEST, ch_mult=WIDEST, **heights).items():
        sizes, empty, least = model[name], name in heights, int(name != "up_attn_resolutions")
        good = sizes is None or (len(sizes) > 0 or empty) and all(type(n) is int and least <= n <= most for n in sizes)
        number = "" if empty else "one or more "
        make.check(good, f"model.{name} must be {number}positive whole numbers up to {most}, got {sizes}")
        make.check(sizes is None or len(sizes) <= DEEPEST, f"model.{name} must be at most {DEEPEST} numbers")
    limits = dict(nf=(2, WIDEST), num_classes=(0, WIDEST), num_res_blocks=(1, DEEPEST), embedding_dim=(2, WIDEST))
    for name, (least, most) in limits.items():
        value = model[name]
        make.check(value is None or value >= least, f"model.{name} must be at least {least}, got {value}")
        make.check(value is None or value <= most, f"model.{name} must be at most {most}, got {value}")
    augment = model.augment_dim
    make.check(not augment or augment == 9, f"model.augment_dim must be 0, or 9 of EDM's augmentation, got {augment}")
    for name in ("init_scale", "fourier_scale", "head_channels", "norm_groups", "norm_eps"):
        make.check(model[name] is None or model[name] >= 0, f"model.{name} must be at least 0, got {model[name]}")
    make.check(model.dropout is None or 0 <= model.dropout < 1, f"model.dropout must be in [0, 1), got {model.dropout}")
    return not any(problem.startswith("model.") for problem in make.problems)
