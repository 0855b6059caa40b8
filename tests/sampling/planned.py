"""One compiled program per sampler, for all contracts: compiling takes a second, running it a few milliseconds.

`solve` is the package's own loop with traced numbers in place of the catalogue's choices of SDE, target and prediction
type, so that one program serves them all.  It also hands out the plan that the program made.

`replay` runs a plan, or its first steps, with the package's loop and the sampler's own `advance`, but with rows that
are data: one program serves all samplers and all numbers of steps.  A plan's first n steps are the plan of a grid that
ends there (test_contracts.py shows both).
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import score_sde as ss
from score_sde.arrays import expand
from score_sde.sampling import loop
from score_sde.sampling.sampler import LinearRow, Row
from tests.catalogue import PREDICTIONS, SDES

STEPS = 160  # of every grid given to `solve`: another number would compile again
ROWS = 4 * STEPS  # of every replay: RungeKutta(4) has four a step
WIDTH = 5  # weights of a replayed row; UniPC(3) with its corrector has four
# Half of the log-SNR from -3.45 to 4.5: all SDEs of the catalogue go that far, from noise to nearly clean data.
LOW, HIGH = -6.9, 9.0


class Straight(ss.AffineSDE):
    """A user's process that reaches the data: no noise is left at t_min = 0."""

    T = 40.0
    t_min = 0.0

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return t


class AnySDE(ss.AffineSDE):
    """One of several processes, chosen by a traced number."""

    index: Array
    processes: tuple = (*SDES, Straight())

    def _of_chosen(self, method: str, t):
        return jax.lax.switch(self.index, [getattr(process, method) for process in self.processes], t)

    def alpha(self, t):
        return self._of_chosen("alpha", t)

    def sigma(self, t):
        return self._of_chosen("sigma", t)

    def log_alpha(self, t):
        return self._of_chosen("log_alpha", t)

    def drift_factor(self, t):
        return self._of_chosen("drift_factor", t)

    def diffusion(self, t):
        return self._of_chosen("diffusion", t)

    def log_snr(self, t):
        return self._of_chosen("log_snr", t)

    def inverse_log_snr(self, log_snr):
        return self._of_chosen("inverse_log_snr", log_snr)

    def published_transition(self, t, earlier):
        return jax.lax.switch(self.index, [process.published_transition for process in self.processes], t, earlier)

    @property
    def t_max(self):
        return jnp.stack([jnp.asarray(p.t_max, jnp.result_type(float)) for p in self.processes])[self.index]


class Tangent(ss.AffineSDE):
    """A process that agrees with another near the time `at`, to first order: that is all a prediction type asks."""

    at: Array
    alphas: tuple[Array, Array]  # alpha and its slope
    sigmas: tuple[Array, Array]

    def alpha(self, t):
        return self.alphas[0] + (t - self.at) * self.alphas[1]

    def sigma(self, t):
        return self.sigmas[0] + (t - self.at) * self.sigmas[1]


class AnyPrediction(ss.predictions.Prediction):
    """One of the catalogue's prediction types, chosen by a traced number."""

    index: Array

    def coefficients(self, sde, t):
        return jax.lax.switch(self.index, [lambda t, k=k: k.coefficients(sde, t) for k in PREDICTIONS], t)


class Probe(ss.Frozen):
    """The exact score of one of two targets through the perfect network of a prediction type, with two counters.

    `way` is the number of the type, or -1 for the score itself; evaluations are reported where `counting`.
    """

    gaussian: ss.Gaussian
    mixture: ss.GaussianMixture
    mixed: Array
    sde: ss.AffineSDE
    way: Array
    counting: Array

    def __call__(self, x, t):
        COUNTS["traced"] += 1
        jax.lax.cond(self.counting, lambda: jax.debug.callback(_evaluated, t[0]), lambda: None)
        alphas, sigmas = (jax.jvp(f, (t,), (jnp.ones_like(t),)) for f in (self.sde.alpha, self.sde.sigma))

        def score_of(target, x):
            return jax.vmap(lambda x, a, s: target.noised(a, s).score_at(x))(x, alphas[0], sigmas[0])

        score = jax.lax.cond(self.mixed, lambda x: score_of(self.mixture, x), lambda x: score_of(self.gaussian, x), x)
        near, kind = Tangent(t, alphas, sigmas), AnyPrediction(jnp.maximum(self.way, 0))
        alpha, sigma = expand(alphas[0], x), expand(sigmas[0], x)
        network = kind.target(near, (x + sigma**2 * score) / alpha, -sigma * score, t)
        return jnp.where(self.way < 0, score, kind.score(near, network, x, t))


COUNTS = dict(traced=0, evaluated=0)
_PLANS = []


def _evaluated(_):
    COUNTS["evaluated"] += 1


def _bits(v):
    """float64 as pairs of whole numbers: callbacks run in a thread of their own, where float64 is not enabled."""
    v = jnp.asarray(v)
    return jax.lax.bitcast_convert_type(v, jnp.uint32) if v.dtype == jnp.float64 else v


def _report(plan):
    def unpacked(v):
        v = np.asarray(v)
        return np.ascontiguousarray(v).view(np.float64)[..., 0] if v.dtype == np.uint32 else v

    _PLANS.append(jax.tree.map(unpacked, plan))


class Spy(ss.Sampler):
    """A sampler whose plans are handed out from inside the compiled program."""

    inner: ss.Sampler

    def plan(self, sde, times):
        plan = self.inner.plan(sde, times)
        jax.debug.callback(_report, jax.tree.map(_bits, plan))
        return plan

    def evaluations(self, plan):
        return self.inner.evaluations(plan)

    def start(self, x, plan):
        return self.inner.start(x, plan)

    def advance(self, sde, score, x, memory, row, draw):
        return self.inner.advance(sde, score, x, memory, row, draw)


class Flagged(ss.Frozen):
    """Rows that are data: the loop wants to know `step` and `last` when it is compiled."""

    row: Row
    step: Array | np.ndarray
    last: Array | np.ndarray


class Planned(ss.Sampler):
    """`kind`'s way to advance, on rows that are given."""

    kind: ss.Sampler
    rows: Row

    def plan(self, sde, times):
        size = self.rows.t.size
        return Flagged(self.rows, np.arange(size), np.ones(size, bool))

    def evaluations(self, plan):
        return plan.step.size

    def start(self, x, plan):
        return self.kind.start(x, dataclasses.replace(plan.row, last=np.zeros(1, bool)))  # as if there were stages

    def advance(self, sde, score, x, memory, row, draw):
        return self.kind.advance(sde, score, x, memory, row.row, draw)


def kind_of(sampler: ss.Sampler) -> ss.Sampler:
    """The sampler without its plan."""
    if isinstance(sampler, ss.PredictorCorrector):
        return dataclasses.replace(sampler, predictor=sampler.predictor and kind_of(sampler.predictor))
    return ss.LinearSampler()


def rows_of(plan: Row, steps: int, dtype) -> Row:
    """The rows of the plan's first steps, filled up to ROWS with rows that belong to no step and change nothing."""
    size = int((np.asarray(plan.step) < steps).sum())
    plan = jax.tree.map(jnp.asarray, plan)
    if isinstance(plan, LinearRow):
        noise = np.zeros(plan.t.shape) if plan.noise is None else plan.noise
        weights = np.pad(plan.weights, ((0, 0), (0, WIDTH - plan.weights.shape[1])))
        plan = dataclasses.replace(plan, noise=jnp.asarray(noise), weights=jnp.asarray(weights))

    def fill(column, with_first=False):
        column = np.asarray(column)[:size]
        end = np.zeros((ROWS - size, *column.shape[1:]), column.dtype) + (column[:1] if with_first else 0)
        column = np.concatenate([column, end.astype(column.dtype)])
        return jnp.asarray(column, dtype if column.dtype.kind == "f" else None)

    rows = jax.tree.map(fill, plan)
    return dataclasses.replace(rows, t=fill(plan.t, True), t_next=fill(plan.t_next, True))  # a time that has a score


def gaussian():
    """A Gaussian with rotated axes, in float64 where that is enabled."""
    return ss.Gaussian(np.array([1.0, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]]))


def mixture():
    """Smooth and overlapping."""
    return ss.GaussianMixture(np.array([[0.6, -0.3], [-0.5, 0.4], [0.1, 0.7]]), np.array([0.3, 0.45, 0.6]))


@functools.cache  # a bisection, operation by operation; only ever called with float64 enabled
def grid(index: int, steps: int = STEPS, low: float = LOW, high: float = HIGH) -> Array:
    """Times of processes[index] with equal steps in log-SNR."""
    return AnySDE(jnp.int32(index)).processes[index].inverse_log_snr(jnp.linspace(low, high, steps + 1))


def probe(index: int, *, way: int = -1, mixed: bool = False, count: bool = False) -> Probe:
    return Probe(
        gaussian(), mixture(), jnp.bool_(mixed), AnySDE(jnp.int32(index)), jnp.int32(way), jnp.bool_(count)
    )  # fmt: skip


@contextlib.contextmanager
def compiled_quickly():
    """Without the optimisations that take most of the compiler's time."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def solve(sampler: ss.Sampler, times: Array, score: Probe, x: Array, key: int = 0, temperature: float = 1.0):
    """The samples from x at times[0], and the plan."""
    _PLANS.clear()
    with compiled_quickly():
        out = loop._solve(
            jax.random.key(key), x.shape, score.sde, score, Spy(sampler), times, x, temperature, False, None, None
        )
    jax.block_until_ready(out)
    jax.effects_barrier()
    return out, _PLANS[-1]


def replay(sampler: ss.Sampler, plan: Row, score: ss.sdes.Score, x: Array, *, keys=None, steps: int = STEPS):
    """x after the plan's first steps."""
    times = jnp.asarray(np.asarray(plan.t[:2]), x.dtype)
    keys = jax.random.key(0) if keys is None else keys
    with compiled_quickly():
        return loop._solve(
            keys, x.shape, score.sde, score, Planned(kind_of(sampler), rows_of(plan, steps, x.dtype)), times, x, 1.0,
            False, None, None,
        ).x  # fmt: skip
