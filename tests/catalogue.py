"""What the contract tests run over: one object of every public kind, found by looking, so that none can stay out."""

import dataclasses
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


def classes(module: ModuleType, base: type) -> list[type]:
    """Each concrete class of `module` that is a `base`."""
    found = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base) and is_concrete_class(c)]
    return sorted(found, key=lambda c: c.__name__)


def instances(module: ModuleType, base: type) -> list:
    """Each concrete class of `module` that is a `base`, made with its defaults."""
    return [c() for c in classes(module, base)]


def name(instance) -> str:
    """The name of a parametrised case."""
    return type(instance).__name__


def describe(instance) -> str:
    """The name of a parametrised case with the settings that are not the default ones."""
    if not dataclasses.is_dataclass(instance):
        return str(getattr(instance, "__name__", instance))
    settings = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(value) or value is not field.default:
            settings.append(f"{field.name}={describe(value)}")
    return f"{name(instance)}({', '.join(settings)})" if settings else name(instance)


SDES = [*instances(ss, ss.AffineSDE), OrnsteinUhlenbeck()]
PREDICTIONS = instances(ss.predictions, Prediction)
WEIGHTINGS = instances(ss.weightings, Weighting)
TIMES = instances(ss.times, TimeSampler)
GRIDS = [grid for key, grid in vars(ss.grids).items() if inspect.isfunction(grid) and not key.startswith("_")]

CONDITIONAL = (ss.Projection, ss.RePaint)  # samplers of other laws than the score's: tests/guidance
SAMPLER_CLASSES = [c for c in classes(ss, ss.Sampler) if c not in (ss.Sampler, ss.LinearSampler, *CONDITIONAL)]
PREDICTOR_CORRECTORS = [
    ss.PredictorCorrector(ss.ReverseDiffusion(), ss.AnnealedLangevin()),
    ss.PredictorCorrector(ss.EulerMaruyama(), ss.Langevin(), corrector_first=True),
    ss.PredictorCorrector(ss.Heun(), ss.AnnealedLangevin(levels=1000.0, steps=2)),
    ss.PredictorCorrector(ss.DPMSolverPP(2), ss.AnnealedLangevin(), corrector_first=True),
    ss.PredictorCorrector(None, ss.AnnealedLangevin(steps=3)),
]
# A class that is not named here is taken with its defaults; one that has none (PredictorCorrector) must be.
VARIANTS = {
    ss.RungeKutta: [ss.RungeKutta(k) for k in (1, 2, 3, 4)],
    ss.DPMSolver: [ss.DPMSolver(k) for k in (1, 2, 3)],
    ss.DPMSolverPP: [*(ss.DPMSolverPP(k) for k in (1, 2, 3)), ss.DPMSolverPP(3, published=True)],
    ss.DEIS: [
        *(ss.DEIS(k, variable) for variable in ("t", "rho", "log_snr") for k in (1, 2, 3, 4)),
        ss.DEIS(4, published=True),
    ],
    ss.UniPC: [
        *(ss.UniPC(k, corrector) for corrector in (True, False) for k in (1, 2, 3)),
        *(ss.UniPC(k, bh=1) for k in (1, 2)),
        ss.UniPC(3, published=True),
    ],
    ss.SASolver: [ss.SASolver(), ss.SASolver(2, 0), ss.SASolver(1, 2), ss.SASolver(3, 4), ss.SASolver(tau=1.0)],
    ss.IPNDM: [ss.IPNDM(k) for k in (1, 2, 3, 4)],
    ss.DDIM: [ss.DDIM(), ss.DDIM(0.5)],
    ss.SDEDPMSolverPP: [ss.SDEDPMSolverPP(1), ss.SDEDPMSolverPP(2), ss.SDEDPMSolverPP(2, eta=0.5)],
    ss.ReverseDiffusion: [ss.ReverseDiffusion(), ss.ReverseDiffusion(published=True)],
    ss.Ancestral: [
        *(ss.Ancestral(), ss.Ancestral(forward_variance=True)),
        *(ss.Ancestral(published=True), ss.Ancestral(forward_variance=True, published=True)),
    ],
    ss.PredictorCorrector: PREDICTOR_CORRECTORS,
}
SAMPLERS = [sampler for c in SAMPLER_CLASSES for sampler in (VARIANTS[c] if c in VARIANTS else [c()])]


def order_of(sampler: ss.Sampler) -> int:
    """The order of convergence of a deterministic sampler, by theory."""
    match sampler:
        case ss.Heun() | ss.DPMSolverPP2S():
            return 2
        case ss.DDIM():
            return 1
        case ss.DPMSolverPP(published=True) | ss.DEIS(published=True):
            return min(sampler.order, 2)  # a first step of order 1, or half of a curvature
        case ss.IPNDM():
            return min(sampler.order, 2)
        case ss.SASolver():  # as predictor and corrector, and not above what the start allows
            corrected = min(sampler.order + 1, sampler.corrector_points)
            return min(corrected, 3) if sampler.corrector_points else min(sampler.order, 2)
        case ss.UniPC():
            reached = sampler.order + sampler.corrector
            return min(reached, 2 + sampler.corrector) if sampler.published else reached
        case _:
            return sampler.order


def times_of(sde: ss.AffineSDE, n: int = 25) -> np.ndarray:
    """n times, geometric from t_min to t_max inclusive, float64."""
    return np.clip(np.geomspace(sde.t_min, sde.t_max, n), float(sde.t_min), float(sde.t_max))
