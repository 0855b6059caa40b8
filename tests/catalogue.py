"""What the contract tests run over: one object of every public kind, found by looking, so that none can stay out."""

import inspect
from types import ModuleType

import jax.numpy as jnp
import numpy as np

import score_sde as ss
from score_sde.objectives.times import TimeSampler
from score_sde.objectives.weightings import Weighting
from score_sde.predictions import Prediction
from score_sde.trees import Number


class OrnsteinUhlenbeck(ss.AffineSDE):
    """A user's process: alpha and sigma, a number, and another T; everything else is derived."""

    rate: Number = 0.7
    T = 5.0

    def alpha(self, t):
        return jnp.exp(-self.rate * t)

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(-2 * self.rate * t))


def is_concrete_class(kind: type) -> bool:
    """Whether no method is left that a subclass must define."""
    return not any(getattr(getattr(kind, name), "__isabstractmethod__", False) for name in dir(kind))


def instances(module: ModuleType, base: type) -> list:
    """Each concrete class of `module` that is a `base`, made with its defaults."""
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base) and is_concrete_class(c)]
    return [c() for c in sorted(classes, key=lambda c: c.__name__)]


def name(instance) -> str:
    """The name of a parametrised case."""
    return type(instance).__name__


SDES = [*instances(ss, ss.AffineSDE), OrnsteinUhlenbeck()]
PREDICTIONS = instances(ss.predictions, Prediction)
WEIGHTINGS = instances(ss.weightings, Weighting)
TIMES = instances(ss.times, TimeSampler)


def times_of(sde: ss.AffineSDE, n: int = 25) -> np.ndarray:
    """n times, geometric from t_min to t_max inclusive, float64."""
    return np.clip(np.geomspace(sde.t_min, sde.t_max, n), float(sde.t_min), float(sde.t_max))
