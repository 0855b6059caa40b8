"""What `--mode=restore` can name: operators made for images of any shape, and methods that sample the posterior.

An operator here is a few settings, `__call__(shape) -> Operator`.  A method is a few settings and
`solve(how, keys, sde, score, operator, y, noise, shape, **report) -> (x, nfe)`: samples of x given the measurements
y (B, *m), and evaluations of the score of each.  `networks` is how often one of these evaluates the prior's score.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import guidance
from score_sde.data import read_image
from score_sde.guidance import operators
from score_sde.guidance.operators import Operator

HALVES = ("left", "right", "top", "bottom", "border")


@dataclass(frozen=True)
class Inpaint:
    """Part of the image is known: left, right, top or bottom half, border, or what a file shows white."""

    known: str = "left"

    def __call__(self, shape: tuple[int, ...]) -> Operator:
        height, width, channels = image_shape(shape)
        known = np.zeros((height, width, 1), np.float32)
        if self.known in HALVES:
            y, x = np.mgrid[:height, :width]
            row, column = y >= height // 2, x >= width // 2
            inside = (abs(2 * y + 1 - height) <= height // 2) & (abs(2 * x + 1 - width) <= width // 2)
            known[..., 0] = dict(left=~column, right=column, top=~row, bottom=row, border=~inside)[self.known]
        elif Path(self.known).is_file():
            known[:] = read_image(self.known, channels=1, shape=(height, width, 1)) >= 128
        else:
            raise ValueError(f"expected restore.known to be {', '.join(HALVES)} or an image file, got {self.known!r}.")
        return operators.Mask(shape, jnp.asarray(known))


@dataclass(frozen=True)
class Colourise:
    """The image is known in grey (BT.601 luma)."""

    def __call__(self, shape: tuple[int, ...]) -> Operator:
        if image_shape(shape)[2] != 3:
            raise ValueError(f"expected colour images to colourise, got shape {shape}.")
        return operators.GreyScale(shape)


@dataclass(frozen=True)
class SuperResolve:
    """The image is known at a lower resolution: means of `factor` x `factor` pixels."""

    factor: int = 4

    def __call__(self, shape: tuple[int, ...]) -> Operator:
        image_shape(shape)
        if self.factor < 1:
            raise ValueError(f"expected restore.factor of at least 1, got {self.factor}.")
        return operators.AveragePool(shape, self.factor)


@dataclass(frozen=True)
class Deblur:
    """The image is known blurred, by a Gaussian of `blur` pixels."""

    blur: float = 1.5

    def __call__(self, shape: tuple[int, ...]) -> Operator:
        image_shape(shape)
        if not self.blur > 0:
            raise ValueError(f"expected restore.blur to be positive, got {self.blur}.")
        return operators.Blur(shape, operators.gaussian_kernel(self.blur, math.ceil(3 * self.blur)))


@dataclass(frozen=True)
class Fourier:
    """Some rows of the image's Fourier transform are known: a `share` of them, the lowest and random others."""

    share: float = 0.3

    def __call__(self, shape: tuple[int, ...]) -> Operator:
        height, width, _ = image_shape(shape)
        count = round(self.share * height)
        if not 1 <= count <= height:
            raise ValueError(f"expected restore.share to be a share of the {height} rows, got {self.share}.")
        lowest = np.argsort(np.abs(np.fft.fftfreq(height)), kind="stable")
        others = np.random.default_rng(0).permutation(lowest[(count + 1) // 2 :])
        rows = np.zeros((height, 1), np.float32)
        rows[lowest[: (count + 1) // 2]] = rows[others[: count // 2]] = 1
        return operators.SubsampledFourier(shape, jnp.asarray(np.broadcast_to(rows, (height, width))))


@dataclass(frozen=True)
class Project:
    """A few random projections are known, `measurements` of them."""

    measurements: int = 64

    def __call__(self, shape: tuple[int, ...]) -> Operator:
        if not 1 <= self.measurements <= math.prod(shape):
            raise ValueError(f"expected restore.measurements in 1..{math.prod(shape)}, got {self.measurements}.")
        size = math.prod(shape)  # drawn by NumPy: that compiles nothing while shapes are checked
        matrix = np.random.default_rng(0).normal(0, size**-0.5, (self.measurements, size))
        return operators.Matrix(shape, jnp.asarray(matrix, jnp.float32))


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of images; ValueError for that of other data."""
    if len(shape) != 3:
        raise ValueError(f"expected images (height, width, channels), got data of shape {shape}.")
    return shape


class Scored:
    """A method that makes a score of the posterior, which the run's sampler then samples."""

    networks = 2  # forward and back

    def solve(self, how, keys, sde, score, operator, y, noise, shape, **report):
        out = how.solve(keys, sde, self.guide(score, sde, operator, y, noise), shape, **report)
        return out.x, out.nfe


@dataclass(frozen=True)
class PiGDM(Scored):
    """The data given x_t as an isotropic Gaussian: exact for a prior of `prior_variance` in every direction."""

    prior_variance: float = 1.0

    def guide(self, score, sde, operator, y, noise):
        return guidance.pigdm(score, sde, operator, y, noise, prior_variance=self.prior_variance)


@dataclass(frozen=True)
class MomentMatching(Scored):
    """The data given x_t as a Gaussian of full covariance: exact for Gaussians; a backward pass per iteration."""

    iterations: int = 5

    @property
    def networks(self) -> int:
        return 2 + self.iterations

    def guide(self, score, sde, operator, y, noise):
        return guidance.moment_matching(score, sde, operator, y, noise, iterations=self.iterations)


@dataclass(frozen=True)
class DPS(Scored):
    """The published steps of length `step` down the residual's norm, never exact; take a stochastic sampler."""

    step: float = 0.5

    def guide(self, score, sde, operator, y, noise):
        return guidance.dps(score, sde, operator, y, step=self.step)


class Imposed:
    """A method that imposes the measurement, as if it had no noise, on the states of the run's sampler."""

    networks = 1

    def solve(self, how, keys, sde, score, operator, y, noise, shape, **report):
        if how.sampler is None:
            raise ValueError("expected sampling.sampler of a fixed grid for this restore.method, got an adaptive one.")
        out = how.solve(keys, sde, score, shape, sampler=self.impose(how.sampler, operator, y), **report)
        return out.x, out.nfe


@dataclass(frozen=True)
class Projection(Imposed):
    """The measurement is put into the state after each step; not exact."""

    def impose(self, sampler, operator, y):
        return guidance.Projection(sampler, operator, y)


@dataclass(frozen=True)
class RePaint(Imposed):
    """The same, going back `jump` steps and forward again `repeats` times; that many times as slow."""

    jump: int = 10
    repeats: int = 10

    def impose(self, sampler, operator, y):
        return guidance.RePaint(sampler, operator, y, jump=self.jump, repeats=self.repeats)


@dataclass(frozen=True)
class SMC:
    """Weighted `particles` for each sample, by twisted sequential Monte Carlo: exact as they and the steps grow."""

    particles: int = 16

    @property
    def networks(self) -> int:
        return 2 * self.particles

    def solve(self, how, keys, sde, score, operator, y, noise, shape, **report):
        if how.sampler is None:
            raise ValueError("expected sampling.steps and a grid for particles, got an adaptive sampler.")
        guided = guidance.pigdm(score, sde, operator, y, noise)
        bound = {name: how.solve.keywords[name] for name in ("steps", "grid", "t_end")}
        out = guidance.sample_smc(keys, sde, guided, shape, particles=self.particles, **bound)
        x = out.draw(jax.vmap(lambda key: jax.random.fold_in(key, 2**31 - 2))(keys))
        return x, out.nfe


OPERATORS = dict(inpaint=Inpaint, colourise=Colourise, super_resolve=SuperResolve, deblur=Deblur, fourier=Fourier)
OPERATORS |= dict(project=Project)
METHODS = dict(pigdm=PiGDM, moment_matching=MomentMatching, dps=DPS, projection=Projection, repaint=RePaint, smc=SMC)


def name_of(spec: object) -> str:
    """The name of an operator or a method."""
    return next(name for name, cls in {**OPERATORS, **METHODS}.items() if cls is type(spec))


def settings_of(spec: object) -> str:
    """'inpaint known=left', of an operator or a method."""
    return " ".join([name_of(spec), *(f"{key}={value}" for key, value in vars(spec).items())])
