"""What made a result: the run and its weights, every setting, the versions and devices.  JSON, and digests of it."""

import dataclasses
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_sde.files import json_digest
from score_sde.reading import read_text

PACKAGES = ("score_sde", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "grain", "numpy")
_FEW = 64  # numbers that are written out; of more their digest


@dataclass(frozen=True)
class Origin:
    """The weights of a run: its folder's name, the digest of what was trained, the step, which average they are."""

    run: str
    config: str | None = None
    step: int | None = None
    average: str | None = "ema"
    weights: str | None = None


@dataclass(frozen=True)
class Provenance:
    """What made an artefact.

    kind: 'samples', 'likelihood' ...  what: a line for people.  settings: all that decides on the values but the
    weights and the data, any objects that `described` takes.  data: the fingerprint of the examples, where they count.
    """

    kind: str
    what: str
    origin: Origin
    settings: dict[str, Any] = field(default_factory=dict)
    data: str | None = None

    def decisive(self) -> dict[str, Any]:
        """All of it that decides on the values, as JSON; two artefacts that share it should be the same."""
        weights = {k: v for k, v in vars(self.origin).items() if k != "run"}
        return {"kind": self.kind, **weights, "data": self.data, "settings": described(self.settings)}

    def record(self) -> dict[str, Any]:
        """All of it and where and when, as JSON."""
        return {
            "kind": self.kind,
            "what": self.what,
            **vars(self.origin),
            "data": self.data,
            "settings": described(self.settings),
            "versions": versions(),
            "devices": devices(),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def origin_of(workdir: Path, step: int | None, params: Any = None, *, free: Iterable[str] = ()) -> Origin:
    """The origin of what the weights `params` of a step give, by the config.json of their run.

    `free`: how the keys begin that may change without making it another run.
    """
    try:
        config = json.loads(read_text(Path(workdir) / "config.json"))["config"]
        bound = {k: v for k, v in _flat(config).items() if not k.startswith(tuple(free))}
        trained = digest(bound)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        trained = None  # weights without a run
    run = Path(workdir).resolve().name
    return Origin(run, trained, step) if params is None else Origin(run, trained, step, weights=weights_digest(params))


def _flat(config: dict, before: str = "") -> dict[str, Any]:
    found = {}
    for key, value in config.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return found


def described(thing: Any) -> Any:
    """A thing as JSON: records and bound functions by name and fields, functions by name, large arrays by digest.

    >>> described({"grid": partial(np.linspace, 0.0, num=3), "seed": np.int64(3)})
    {'grid': {'name': 'linspace', 'args': [0.0], 'num': 3}, 'seed': 3}
    """
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, dict):
        return {str(k): described(v) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [described(v) for v in thing]
    if isinstance(thing, partial):
        given = {"args": described(thing.args)} if thing.args else {}
        return {"name": _name(thing.func), **given, **described(thing.keywords)}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {f.name: described(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
        return {"name": type(thing).__name__, **fields}
    if isinstance(thing, (np.ndarray, np.generic, jax.Array)):
        return _numbers(np.asarray(thing))
    return _name(thing)


def _name(thing: Any) -> str:
    return getattr(thing, "__name__", type(thing).__name__)


def _numbers(x: np.ndarray) -> Any:
    if x.size > _FEW or x.dtype.kind not in "biuf":
        return {"shape": list(x.shape), "dtype": str(x.dtype), "sha256": hashlib.sha256(x.tobytes()).hexdigest()[:16]}
    short = [float(f"{v:.7g}") for v in x.ravel()] if x.dtype == np.float32 else x.ravel().tolist()
    return short[0] if x.ndim == 0 else np.array(short).reshape(x.shape).tolist()


def digest(value: Any) -> str:
    """Eight hexadecimal digits of a JSON value, whatever the order of its keys."""
    return json_digest(value)[:8]


def arrays_digest(arrays: dict[str, np.ndarray]) -> str:
    """Sixteen hexadecimal digits of named arrays: names, types, shapes and every bit."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {x.dtype} {x.shape} ".encode())
        found.update(x.tobytes())
    return found.hexdigest()[:16]


def weights_digest(params: Any) -> str:
    """Sixteen hexadecimal digits of all weights, by their places in the tree."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return arrays_digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat})


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in PACKAGES}}


def devices() -> list[str]:
    """The devices that JAX computes on."""
    return [f"{d.platform}:{d.device_kind}" for d in jax.devices()]
