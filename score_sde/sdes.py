"""Forward noise processes.

Every SDE here is affine, dx = a(t) x dt + g(t) dw, so that x_t given x_0 is Gaussian:

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I).

alpha and sigma are all that an SDE has to state.  The rest follows (Karras et al. 2022, appendix B):

    a = alpha'/alpha,    g^2 = 2 sigma (sigma' - a sigma),    log-SNR = 2 log(alpha/sigma).

With the score s(x, t) = grad log p_t(x) the same marginals are traced backwards by the reverse SDE, whose drift is
a x - g^2 s, and, without noise, by the probability flow dx/dt = a x - g^2 s / 2 (Song et al. 2021, eqs. 6 and 13).

A process of your own is a subclass with two methods; fields are numbers, traced and differentiable:

>>> import jax.numpy as jnp, score_sde as ss
>>> class Exponential(ss.AffineSDE):
...     rate: float = 3.0
...     def alpha(self, t): return jnp.exp(-self.rate * t)
...     def sigma(self, t): return jnp.sqrt(-jnp.expm1(-2 * self.rate * t))
>>> sde = Exponential(rate=2.0)
>>> round(float(sde.diffusion(jnp.array(0.5))), 4)  # constant: sqrt(2 rate)
2.0
"""

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde.arguments import describe
from score_sde.arrays import expand, normal, sample_keys, sum_event
from score_sde.trees import Frozen, Number, is_concrete

Score = Callable[[Array, Array], Array]  # score(x, t): x (B, *event), t (B,) -> like x
Times = Float[Array, "*b"]


def _slope(f: Callable, t: Array) -> tuple[Array, Array]:
    """f(t) and f'(t), for f that acts on each element of t alone."""
    return jax.jvp(f, (t,), (jnp.ones_like(t),))


def _like_times(method: Callable) -> Callable:
    """alpha or sigma of a process, as an array like t: a constant may be given as one number."""

    @functools.wraps(method)
    def call(self, t):
        value, shape, dtype = method(self, t), jnp.shape(t), jnp.result_type(t)
        if not jnp.issubdtype(dtype, jnp.floating):
            return value
        if isinstance(value, (int, float)) or (hasattr(value, "dtype") and value.shape == ()):
            value = jnp.full(shape, value, dtype)
        if not hasattr(value, "dtype") or (value.shape, value.dtype) != (shape, dtype):
            raise TypeError(
                f"expected {type(self).__name__}.{method.__name__}(t) of shape {shape} and dtype {dtype} like t, "
                f"got {describe(value)}."
            )
        return value

    return call


class AffineSDE(Frozen):
    """dx = a(t) x dt + g(t) dw on t in (0, T]; data at 0, noise at T.  A subclass states `alpha(t)` and `sigma(t)`.

    `t_min` and `t_max` say how far solves and training times may go: alpha, sigma and the log-SNR are finite there.
    `t_sampling` is where samplers stop unless told otherwise.  All are in the unit of t.
    """

    T = 1.0  # plain class attributes: a subclass may make fields or properties of them

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in ("alpha", "sigma"):
            if name in vars(cls):
                setattr(cls, name, _like_times(vars(cls)[name]))

    @property
    def t_min(self) -> Number:
        return 1e-5 * self.T

    @property
    def t_max(self) -> Number:
        return self.T

    @property
    def t_sampling(self) -> Number:
        return self.t_min

    @abstractmethod
    def alpha(self, t: Times) -> Times:
        """The factor of the data in x_t."""
        raise TypeError(f"{type(self).__name__} must define alpha(t)")

    @abstractmethod
    def sigma(self, t: Times) -> Times:
        """The standard deviation of the noise in x_t."""
        raise TypeError(f"{type(self).__name__} must define sigma(t)")

    def log_alpha(self, t: Times) -> Times:
        return jnp.log(self.alpha(t))

    def drift_factor(self, t: Times) -> Times:
        """a(t) = d log alpha / dt."""
        return _slope(self.log_alpha, t)[1]

    def diffusion(self, t: Times) -> Times:
        """g(t), from g^2 = 2 sigma (sigma' - a sigma)."""
        sigma, slope = _slope(self.sigma, t)
        return jnp.sqrt(2 * sigma * (slope - self.drift_factor(t) * sigma))

    def log_snr(self, t: Times) -> Times:
        """log(alpha^2 / sigma^2), falling in t."""
        return 2 * (self.log_alpha(t) - jnp.log(self.sigma(t)))

    def inverse_log_snr(self, log_snr: Times) -> Times:
        """The time in [t_min, t_max] at which the log-SNR has this value, by bisection; the end beyond which it lies.

        Its derivative is that of the root, dt = (dl - d log_snr)/log_snr'(t), in l and in the numbers of the SDE.
        """

        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            earlier = self.log_snr(middle) < log_snr
            return jnp.where(earlier, low, middle), jnp.where(earlier, middle, high)

        def bisect(*_):
            low, high = jax.lax.fori_loop(0, jnp.finfo(log_snr.dtype).nmant + 20, halve, (first, last))
            return 0.5 * (low + high)

        first, last = jnp.full_like(log_snr, self.t_min), jnp.full_like(log_snr, self.t_max)
        t = jax.lax.custom_root(
            lambda t: self.log_snr(t) - log_snr,
            first,
            bisect,
            lambda linear, y: y / linear(jnp.ones_like(y)),
        )
        t = jnp.where(log_snr > self.log_snr(first), first, t)
        return jnp.where(log_snr < self.log_snr(last), last, t)

    def label(self, t: Times) -> Times:
        """What a network is told of the time: 999 t / T, the published convention of VP and sub-VP."""
        return t * (999 / self.T)

    def drift(self, x: Float[Array, "b ..."], t: Float[Array, " b"]) -> Float[Array, "b ..."]:
        """f(x, t) = a(t) x of the forward SDE."""
        return expand(self.drift_factor(t), x) * x

    def reverse_drift(self, score: Score, x: Float[Array, "b ..."], t: Float[Array, " b"]) -> Float[Array, "b ..."]:
        """a x - g^2 s(x, t): the drift of the reverse-time SDE."""
        return self.drift(x, t) - expand(jnp.square(self.diffusion(t)), x) * evaluate(score, x, t)

    def flow_drift(self, score: Score, x: Float[Array, "b ..."], t: Float[Array, " b"]) -> Float[Array, "b ..."]:
        """a x - g^2 s(x, t) / 2: the velocity of the probability flow."""
        return self.drift(x, t) - expand(0.5 * jnp.square(self.diffusion(t)), x) * evaluate(score, x, t)

    def perturb(
        self, x0: Float[Array, "b ..."], noise: Float[Array, "b ..."], t: Float[Array, " b"]
    ) -> Float[Array, "b ..."]:
        """x_t = alpha(t) x_0 + sigma(t) eps."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise

    def transition(self, t: Times, earlier: Times) -> tuple[Times, Times]:
        """(m, v) of x_t ~ N(m x_t', v I) given an earlier x_t': m = alpha/alpha', v = sigma^2 - m^2 sigma'^2."""
        sigma, log_alpha = self.sigma(t), self.log_alpha(t) - self.log_alpha(earlier)
        # sigma^2 (1 - e^(-2h)), h from ratios: the difference of two variances loses digits where levels are close
        h = jnp.log(sigma / self.sigma(earlier)) - log_alpha
        return self.alpha(t) / self.alpha(earlier), -jnp.square(sigma) * jnp.expm1(-2 * h)

    def published_transition(self, t: Times, earlier: Times) -> tuple[Times, Times]:
        """(m, v) of the published chain whose limit this SDE is: `transition`, unless a subclass states another."""
        return self.transition(t, earlier)

    def prior_std(self, dtype=None) -> Array:
        """sigma(t_max): the prior is N(0, sigma(t_max)^2 I)."""
        return self.sigma(jnp.asarray(self.t_max, dtype or jnp.result_type(float)))

    def prior_sample(self, key: Array, shape: tuple[int, ...], dtype=None) -> Array:
        """Samples `shape` = (B, *event) of the prior; `key` is one key or one per sample."""
        x = jnp.zeros(shape, dtype or jnp.result_type(float))
        return self.prior_std(x.dtype) * normal(sample_keys(key, shape[0]), x)

    def prior_log_prob(self, z: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Log-density of the prior in nats."""
        std = self.prior_std(z.dtype)
        size = z[0].size
        return -0.5 * sum_event(jnp.square(z / std)) - size * (jnp.log(std) + 0.5 * jnp.log(2 * jnp.pi).astype(z.dtype))


def evaluate(score: Score, x: Float[Array, "b ..."], t: Float[Array, " b"]) -> Float[Array, "b ..."]:
    """`score(x, t)`, refused at tracing when it is not an array like x."""
    s = score(x, t)
    if jnp.shape(s) != x.shape or jnp.result_type(s) != x.dtype:
        raise TypeError(
            f"expected score(x, t) of shape {x.shape} and dtype {x.dtype} like x, "
            f"got shape {jnp.shape(s)} and dtype {jnp.result_type(s)}."
        )
    return s


def check_score(score: Score, shape: tuple[int, ...], dtype: Any = None) -> None:
    """Let a score that knows more than its weights (labels, a measurement) refuse x of this shape before any solve.

    Such a score defines `check_inputs(x)`, which raises ValueError; x has a shape and a dtype and no values.
    """
    x = jax.ShapeDtypeStruct(tuple(shape), jnp.result_type(float) if dtype is None else dtype)
    for part in jax.tree.leaves(score, is_leaf=lambda node: hasattr(node, "check_inputs")):
        if hasattr(part, "check_inputs"):
            part.check_inputs(x)


def check_time(sde: AffineSDE, name: str, t: Number, remedy: str = "") -> None:
    """Raise ValueError where a time, if concrete, lies outside [sde.t_min, sde.t_max] (to rounding of float32)."""
    limits = (sde.t_min, sde.t_max, t)
    if not is_concrete(limits):  # inside a jit even constants may be traced
        return
    low, high, t = map(float, limits)
    if not low * (1 - 1e-6) <= t <= high * (1 + 1e-6):
        limits = f"[t_min, t_max] = [{low:g}, {high:g}] of {type(sde).__name__}"
        raise ValueError(f"{name} must be in {limits}, got {t:g}.{remedy}")


def check_falling(t_start: Number, t_end: Number) -> None:
    """Raise ValueError where a solve from noise to data, if its times are concrete, would not go towards the data."""
    if is_concrete((t_start, t_end)) and not float(t_start) > float(t_end):
        raise ValueError(
            f"expected t_start above t_end, from noise to data, got t_start={t_start:g} and t_end={t_end:g}. "
            "For the way from data to noise use encode or encode_adaptive."
        )


def _positive(sde: AffineSDE, *names: str) -> None:
    for name in names:
        if not np.all(np.asarray(getattr(sde, name)) > 0):
            raise ValueError(f"{type(sde).__name__}: {name} must be positive, got {getattr(sde, name)}.")


def _ascending(sde: AffineSDE, low: str, high: str) -> None:
    if not np.all(np.asarray(getattr(sde, low)) < np.asarray(getattr(sde, high))):
        raise ValueError(
            f"{type(sde).__name__}: {low} must be below {high}, got {getattr(sde, low)} and {getattr(sde, high)}."
        )


class VE(AffineSDE):
    """Variance-exploding SDE, the continuous limit of SMLD (Song et al. 2021, eq. 9 and appendix C).

    dx = sigma(t) sqrt(2 log(sigma_max / sigma_min)) dw,  sigma(t) = sigma_min (sigma_max / sigma_min)^t on [0, 1].

    Published convention: x_t given x_0 has standard deviation sigma(t), so sigma(0) = sigma_min.  A process started at
    the data at t = 0 would have sqrt(sigma(t)^2 - sigma_min^2): x_0 here is data with noise sigma_min already in it.
    """

    sigma_min: Number = 0.01
    sigma_max: Number = 50.0

    def check(self):
        _positive(self, "sigma_min")
        _ascending(self, "sigma_min", "sigma_max")

    def _log_ratio(self):
        return jnp.log(self.sigma_max / self.sigma_min)

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return self.sigma_min * jnp.exp(t * self._log_ratio().astype(t.dtype))

    def drift_factor(self, t):
        return jnp.zeros_like(t)

    def diffusion(self, t):
        return self.sigma(t) * jnp.sqrt(2 * self._log_ratio()).astype(t.dtype)

    def log_snr(self, t):
        return -2 * (jnp.log(self.sigma_min).astype(t.dtype) + t * self._log_ratio().astype(t.dtype))

    def inverse_log_snr(self, log_snr):
        return (-0.5 * log_snr - jnp.log(self.sigma_min).astype(log_snr.dtype)) / self._log_ratio().astype(
            log_snr.dtype
        )

    def label(self, t):
        """log sigma(t), the published convention of VE."""
        return -0.5 * self.log_snr(t)


class VP(AffineSDE):
    """Variance-preserving SDE, the continuous limit of DDPM (Song et al. 2021, eq. 11).

    dx = -beta(t)/2 x dt + sqrt(beta(t)) dw,  beta linear from `beta_min` to `beta_max` on [0, 1].
    """

    beta_min: Number = 0.1
    beta_max: Number = 20.0
    t_sampling = 1e-3

    def check(self):
        _positive(self, "beta_min")
        if not np.all(np.asarray(self.beta_max) >= np.asarray(self.beta_min)):
            raise ValueError(
                f"{type(self).__name__}: beta_max must be at least beta_min, got {self.beta_max} and {self.beta_min}."
            )
        # Solvers square alpha; it is e^(-(beta_min + beta_max)/4) at t = 1.
        least = 0.5 * np.log(float(jnp.finfo(jnp.result_type(float)).tiny))
        if not np.all(0.25 * (np.asarray(self.beta_max) + np.asarray(self.beta_min)) <= -least):
            raise ValueError(
                f"{type(self).__name__}: beta_min + beta_max must be at most {-4 * least:.0f}, beyond which "
                f"{jnp.result_type(float)} does not hold alpha(1)^2, got {self.beta_min} and {self.beta_max}."
            )

    def beta(self, t: Times) -> Times:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_alpha(self, t):
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t):
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))  # expm1: 1 - exp loses half the digits at t = 1e-5

    def drift_factor(self, t):
        return -0.5 * self.beta(t)

    def diffusion(self, t):
        return jnp.sqrt(self.beta(t))

    def published_transition(self, t, earlier):
        """DDPM's chain: m = sqrt(1 - beta_i), v = beta_i from (i + 1)/N to i/N, beta_i = beta(i/(N - 1))/N of N steps.

        beta_i is at most 0.999, for grids of few steps (Ho et al. 2020; Nichol & Dhariwal 2021).
        """
        step = t - earlier
        v = jnp.minimum(self.beta(earlier / (1 - step)) * step, 0.999)  # 1 - step = (N - 1)/N
        return jnp.sqrt(1 - v), v

    def _time_of(self, log_alpha: Times) -> Times:
        """Root of log_alpha(t) = log_alpha, in the form that does not cancel and allows beta_min = beta_max."""
        half = 0.5 * self.beta_min
        return -2 * log_alpha / (half + jnp.sqrt(half**2 - (self.beta_max - self.beta_min) * log_alpha))

    def inverse_log_snr(self, log_snr):
        return self._time_of(-0.5 * jax.nn.softplus(-log_snr))  # alpha^2 = sigmoid(log_snr)


class SubVP(VP):
    """Sub-VP SDE (Song et al. 2021, eq. 12): the mean of VP with variance (1 - alpha^2)^2, below VP's at every t.

    dx = -beta(t)/2 x dt + sqrt(beta(t) (1 - alpha(t)^4)) dw.
    """

    def sigma(self, t):
        return -jnp.expm1(2 * self.log_alpha(t))

    def diffusion(self, t):
        return jnp.sqrt(self.beta(t) * -jnp.expm1(4 * self.log_alpha(t)))

    def published_transition(self, t, earlier):
        """Euler-Maruyama's: m = 1 - beta(t) dt/2, v = g(t)^2 dt."""
        step = t - earlier
        return 1 - 0.5 * self.beta(t) * step, jnp.square(self.diffusion(t)) * step

    def inverse_log_snr(self, log_snr):
        # With q = alpha / sigma: sigma = 1 - alpha^2 makes alpha = 2 q / (1 + sqrt(1 + 4 q^2)).
        q = jnp.exp(0.5 * log_snr)
        noisy = q < 1  # each form sees its own side alone, since at the far end of the other its slope is infinite
        small, large = jnp.where(noisy, q, 1), jnp.where(noisy, 1, q)
        low = jnp.log(2 * small / (1 + jnp.sqrt(1 + 4 * small**2)))
        return self._time_of(jnp.where(noisy, low, 0.5 * jnp.log1p(-2 / (1 + jnp.sqrt(1 + 4 * large**2)))))


class CosineVP(AffineSDE):
    """Variance-preserving SDE with the cosine schedule of Nichol & Dhariwal (2021, eq. 17), in continuous time.

    alpha(t) = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)),  sigma = sqrt(1 - alpha^2),  on [0, 1].

    alpha vanishes at 1 and sigma at 0: solves stay where the log-SNR is in [log_snr_min, log_snr_max].
    """

    s: Number = 0.008
    log_snr_min: Number = -12.0
    log_snr_max: Number = 14.0
    t_sampling = 1e-3

    def check(self):
        _positive(self, "s")
        _ascending(self, "log_snr_min", "log_snr_max")

    @property
    def t_min(self):
        return self.inverse_log_snr(jnp.asarray(self.log_snr_max, jnp.result_type(float)))

    @property
    def t_max(self):
        return self.inverse_log_snr(jnp.asarray(self.log_snr_min, jnp.result_type(float)))

    def _rate(self):
        return 0.5 * jnp.pi / (1 + self.s)  # of the angle in t

    def _offset(self):
        return self._rate() * self.s  # the angle at t = 0

    def alpha(self, t):
        return jnp.sin(self._rate() * (1 - t)) / jnp.cos(self._offset()).astype(t.dtype)  # cos(pi/2 - u) = sin u

    def sigma(self, t):
        a, b = self._rate() * t, self._offset()  # 1 - alpha^2 = sin(a + 2b) sin(a) / cos(b)^2
        return jnp.sqrt(jnp.sin(a + 2 * b) * jnp.sin(a)) / jnp.cos(b).astype(t.dtype)

    def drift_factor(self, t):
        return -self._rate() / jnp.tan(self._rate() * (1 - t))

    def diffusion(self, t):
        return jnp.sqrt(-2 * self.drift_factor(t))

    def inverse_log_snr(self, log_snr):
        b = self._offset()
        sin_b, cos_b = (jnp.asarray(f(b), log_snr.dtype) for f in (jnp.sin, jnp.cos))
        variance = jax.nn.sigmoid(-log_snr)
        cosine = jnp.sqrt(jax.nn.sigmoid(log_snr)) * cos_b  # of the angle a + b, a = rate t
        sine = jnp.sqrt(sin_b**2 + variance * cos_b**2)
        # sin a = (sin^2(a + b) - sin^2 b) / sin(a + 2b): the angle less b would cancel at small t
        sin_a = variance * cos_b**2 / (sine * cos_b + cosine * sin_b)
        return jnp.arctan2(sin_a, cosine * cos_b + sine * sin_b) / self._rate()


class EDM(AffineSDE):
    """The process of Karras et al. (2022): dx = sqrt(2 t) dw, alpha = 1, sigma = t, on [sigma_min, sigma_max]."""

    sigma_min: Number = 0.002
    sigma_max: Number = 80.0

    def check(self):
        _positive(self, "sigma_min")
        _ascending(self, "sigma_min", "sigma_max")

    @property
    def T(self):
        return self.sigma_max

    @property
    def t_min(self):
        return self.sigma_min

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return t

    def drift_factor(self, t):
        return jnp.zeros_like(t)

    def diffusion(self, t):
        return jnp.sqrt(2 * t)

    def log_snr(self, t):
        return -2 * jnp.log(t)

    def inverse_log_snr(self, log_snr):
        return jnp.exp(-0.5 * log_snr)

    def label(self, t):
        """log(sigma) / 4 (their table 1)."""
        return 0.25 * jnp.log(t)


class RectifiedFlow(AffineSDE):
    """The straight path x_t = (1 - t) x_0 + t eps of rectified flow and flow matching (Liu et al. 2023).

    As an SDE: dx = -x/(1 - t) dt + sqrt(2 t/(1 - t)) dw on [0, 1].  Both ends are singular for a score: solves stay in
    [t_min, t_max].  Networks are told 999 t, as with VP: positional embeddings hardly tell times in [0, 1] apart.
    """

    t_min: Number = 1e-4
    t_max: Number = 0.999

    def check(self):
        _positive(self, "t_min")
        _ascending(self, "t_min", "t_max")
        if not np.all(np.asarray(self.t_max) < 1):
            raise ValueError(f"RectifiedFlow: t_max must be below 1, where alpha vanishes, got {self.t_max}.")

    @property
    def t_sampling(self):
        return self.t_min

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t

    def log_alpha(self, t):
        return jnp.log1p(-t)

    def drift_factor(self, t):
        return -1 / (1 - t)

    def diffusion(self, t):
        return jnp.sqrt(2 * t / (1 - t))

    def inverse_log_snr(self, log_snr):
        return jax.nn.sigmoid(-0.5 * log_snr)
