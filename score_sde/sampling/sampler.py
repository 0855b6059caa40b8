"""What a sampler is, and the one formula that all fixed-grid samplers of this package share.

A sampler turns a grid of times into a *plan*, one `Row` per evaluation of the score, and says how a row moves the
state.  Every solver that is linear in the score, which is every one here, is a plan and nothing else:

    F = p y + r s(y, t)                                    the quantity the solver works with: score, noise, data, drift
    y <- a x + w_0 F + w_1 F_1 + w_2 F_2 + ... + c z       F_j: earlier F's;  z ~ N(0, I)
    x <- y, where the row ends a step

x is the state at the start of the step and y the point of the next evaluation; the coefficients depend on the grid
alone.  So the network occurs once in the compiled program, whatever the solver and its number of stages.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde import derivatives
from score_sde.sdes import AffineSDE, Score, evaluate
from score_sde.trees import Frozen, Number

State = Float[Array, "b ..."]
Draw = Callable[[int | Array], Array]  # draw(k): the k-th standard normal array like x that belongs to a row


class Row(Frozen):
    """One evaluation of the score.  In a plan every field is an array with one entry per row.

    t: the time of the evaluation.  t_next: the time at which the state stands afterwards.
    step: the number of the step; `first` and `last` say whether the row begins and ends it.
    """

    t: Array
    t_next: Array
    step: Array | np.ndarray
    first: Array | np.ndarray
    last: Array | np.ndarray


class LinearRow(Row):
    """A row of the formula above: (p, r) = `gains`, a = `decay`, w = `weights` (rows, 1 + number of F's remembered),
    c = `noise` (None for a deterministic solver); `remember` says whether F is kept for later rows.
    """

    gains: tuple[Array, Array]
    decay: Array
    weights: Array
    noise: Array | None
    remember: Array | np.ndarray


class Sampler(Frozen):
    """A rule that takes samples from noise to data on a grid of times.

    One of your own needs `advance` alone; it is then called once per step, with one evaluation of the score:

    >>> import jax, score_sde as ss
    >>> class Euler(ss.Sampler):
    ...     def advance(self, sde, score, x, memory, row, draw):
    ...         t = jax.numpy.full(x.shape[:1], row.t)
    ...         return x + (row.t_next - row.t) * sde.flow_drift(score, x, t), memory
    >>> sde = ss.VP()
    >>> out = ss.sample(jax.random.key(0), sde, lambda x, t: -x, (4, 2), sampler=Euler(), steps=10)
    >>> out.x.shape, out.nfe.tolist()
    ((4, 2), [10, 10, 10, 10])
    """

    @property
    def deterministic(self) -> bool:
        """Whether steps draw no noise, so that they can be retraced from data to noise."""
        return False

    def plan(self, sde: AffineSDE, times: Float[Array, " n"]) -> Row:
        """The rows of a grid of times."""
        return one_row_per_step(times)

    def evaluations(self, plan: Row) -> int:
        """How often a plan evaluates the score."""
        return plan.step.shape[0]

    def start(self, x: State, plan: Row) -> Any:
        """What is remembered between rows, before the first."""
        return ()

    def finish(self, x: State) -> State:
        """The data x that denoising gives, as the sampler leaves them: for one that knows something of the data."""
        return x

    @abstractmethod
    def advance(self, sde: AffineSDE, score: Score, x: State, memory: Any, row: Row, draw: Draw) -> tuple[State, Any]:
        """(x, memory) after a row; `row.t` and the rest are scalars here."""
        raise TypeError(f"{type(self).__name__} must define advance")


class LinearSampler(Sampler):
    """A sampler that is its plan."""

    @abstractmethod
    def plan(self, sde: AffineSDE, times: Float[Array, " n"]) -> LinearRow:
        """The rows, with their coefficients, of a grid of times."""
        raise TypeError(f"{type(self).__name__} must define plan")

    def start(self, x, plan):
        staged = not np.all(plan.last)
        history = jnp.zeros((plan.weights.shape[1] - 1, *x.shape), x.dtype)
        return (x if staged else None), history

    def advance(self, sde, score, x, memory, row, draw):
        y, history = memory
        staged = y is not None
        y = jnp.where(row.first, x, y) if staged else x
        p, r = row.gains
        f = p * y + r * evaluate(score, y, jnp.full(x.shape[:1], row.t))
        new = row.decay * x + row.weights[0] * f
        for j in range(history.shape[0]):
            new = new + row.weights[j + 1] * history[j]
        if row.noise is not None:  # eta, churn, ... may be 0: nothing is drawn then
            still = new
            new = derivatives.cond(row.noise != 0, lambda: still + row.noise * draw(0), lambda: still)
        if history.shape[0]:
            longer = jnp.concatenate([f[None], history[:-1]])
            history = jnp.where(row.remember, longer, history)
        return (jnp.where(row.last, new, x), (new, history)) if staged else (new, (None, history))


def one_row_per_step(times: Float[Array, " n"]) -> Row:
    """The plan of a sampler that evaluates the score once per step, at its start."""
    steps = np.arange(times.size - 1)
    always = np.ones(steps.size, bool)
    return Row(times[:-1], times[1:], steps, always, always)


def check_range(sampler: Frozen, name: str, low: Number, high: Number) -> None:
    """Raise ValueError where a setting lies outside [low, high]."""
    value = np.asarray(getattr(sampler, name))
    if not np.all((value >= low) & (value <= high)):
        bounds = f"in [{low:g}, {high:g}]" if np.isfinite(high) else f"at least {low:g}"
        raise ValueError(f"{type(sampler).__name__}: {name} must be {bounds}, got {getattr(sampler, name)}.")


def check_choice(sampler: Frozen, name: str, choices: Sequence) -> None:
    """Raise ValueError where a setting is none of `choices`."""
    value = getattr(sampler, name)
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{type(sampler).__name__}: {name} must be one of {listed}; got {value!r}.")
