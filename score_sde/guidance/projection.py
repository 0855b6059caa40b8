"""State transforms: samplers that put the measurement into the state after each step.

What is known of x_t = alpha x_0 + sigma z is its measurement alpha y + sigma A z, with fresh z at every step, so

    x <- x + A^+ (alpha y + sigma A z - A x),        A^+ = A^T (A A^T)^-1

replaces what the operator sees and leaves the rest (Song et al. 2021, appendix I.2 for masks and I.3 for grey-scale
images; here for any operator).  It starts before the first step, so that what is known is as noisy as its surroundings;
and after `denoise=True` what is known is y itself and nowhere is noise left over.

A step is not the flow of any score.  So these are samplers, not scores: they have no probability-flow ODE, no
likelihood and nothing for an adaptive solver, and say so where one is asked for.  The measurement is taken to be free
of noise.  They are not exact either: the rest never learns more of y than a step tells it.  RePaint goes back and forth
to mend that, and comes nearer as it repeats.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde.arrays import rows
from score_sde.guidance.inverse import measurement
from score_sde.guidance.linear import solve
from score_sde.guidance.operators import Operator
from score_sde.sampling.sampler import Draw, Row, Sampler, State
from score_sde.sdes import AffineSDE, Score
from score_sde.trees import static

KNOWN = 2**20  # number of the normal array of what is known; those of samplers are far below
BACK = KNOWN + 1  # of the way back


class Projection(Sampler):
    """`sampler` with the measurement y = A x_0 put in after each of its steps (see this module).

    Args:
        sampler: any sampler of a fixed grid.
        operator: of `score_sde.operators`: `Mask` for inpainting, `GreyScale` for colourisation.
        y: (B, *m), or (1, *m): the same for all.
        iterations: of the conjugate gradients for (A A^T)^-1; one is exact where A A^T is a multiple of a projection
            (mask, grey-scale, pooling).

    Raises: ValueError for nan in y and for shapes that do not fit.

    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> sde, target = ss.VP(), ss.Gaussian(jnp.zeros(2), jnp.array([[1.0, 0.9], [0.9, 1.0]]))
    >>> known = ss.operators.Mask((2,), jnp.array([1, 0]))
    >>> inpaint = ss.Projection(ss.EulerMaruyama(), known, jnp.array([[2.0, 0.0]]))
    >>> x = ss.sample(jax.random.key(0), sde, target.score(sde), (64, 2), sampler=inpaint, steps=100, denoise=True).x
    >>> x[:, 0].tolist() == [2.0] * 64, bool(x[:, 1].mean() > 1)
    (True, True)
    """

    sampler: Sampler
    operator: Operator
    y: Float[Array, "b ..."]
    iterations: int = static(20)

    def check(self):
        measurement(self.operator, self.y)

    def __call__(self, *_: Any) -> None:
        raise TypeError(
            f"{type(self).__name__} is a sampler, not a score: it changes states between steps, which no "
            "probability-flow ODE and so no likelihood describes. Give it as sampler= to sample; for a likelihood use "
            "moment_matching, pigdm or dps."
        )

    def plan(self, sde, times):
        return self.sampler.plan(sde, times)

    def evaluations(self, plan):
        return self.sampler.evaluations(plan)

    def start(self, x, plan):
        return self.sampler.start(x, plan)

    def advance(self, sde: AffineSDE, score: Score, x: State, memory: Any, row: Row, draw: Draw) -> tuple[State, Any]:
        x = self.begin(sde, x, row, draw)
        x, memory = self.sampler.advance(sde, score, x, memory, row, draw)
        return jax.lax.cond(row.last, lambda: self.known_at(sde, x, row.t_next, draw(KNOWN)), lambda: x), memory

    def begin(self, sde: AffineSDE, x: State, row: Row, draw: Draw) -> State:
        """The starting point, with what is known as noisy as the rest."""
        start = (row.step == 0) & row.first
        return jax.lax.cond(start, lambda: self.known_at(sde, x, row.t, draw(KNOWN + 2)), lambda: x)

    def known_at(self, sde: AffineSDE, x: State, t: Array, z: State) -> State:
        return self.impose(x, sde.alpha(t), sde.sigma(t) * z)

    def finish(self, x):
        return self.impose(x, jnp.ones((), x.dtype), jnp.zeros_like(x))

    def impose(self, x: State, alpha: Array, noise: State) -> State:
        """x + A^+ (alpha y + A noise - A x)."""
        y = rows(measurement(self.operator, self.y), len(x)).astype(x.dtype)
        wrong = alpha * y + self.operator(noise - x)
        solution = solve(lambda u: self.operator(self.operator.adjoint(u)), wrong, self.iterations)
        return x + self.operator.adjoint(solution)


class RePaintRow(Row):
    """A step of RePaint: a row of its sampler, and where the state then goes back to."""

    inner: Row
    back: np.ndarray | Array
    t_back: Array


class RePaint(Projection):
    """`Projection` that goes back `jump` steps by adding noise, and steps forward again, `repeats` times in all.

    So the rest hears of what is known repeatedly at each noise level, and agrees with it (Lugmayr et al. 2022; they
    use jump 10, repeats 10).  `repeats` times as many evaluations as the sampler.

    Args: as `Projection`; the sampler is one of a row per step that remembers nothing (EulerMaruyama, Ancestral,
    ReverseDiffusion, DDIM).
    """

    jump: int = static(10)
    repeats: int = static(10)

    def check(self):
        super().check()
        if self.jump < 1 or self.repeats < 1:
            raise ValueError(f"RePaint: jump and repeats must be at least 1, got {self.jump} and {self.repeats}.")

    def plan(self, sde, times):
        inner = self.sampler.plan(sde, times)
        n = times.size - 1
        remembered = getattr(inner, "weights", None)
        if inner.step.shape[0] != n or (remembered is not None and remembered.shape[1] > 1):
            raise ValueError(
                f"RePaint needs a sampler of one evaluation per step that remembers none, got "
                f"{type(self.sampler).__name__}. Use Ancestral, EulerMaruyama or DDIM."
            )
        path, back = [], []
        for block in np.split(np.arange(n), np.arange(self.jump, n, self.jump)):
            for repeat in range(self.repeats):
                path += list(block)
                back += [False] * (len(block) - 1) + [repeat < self.repeats - 1]
        path, back = np.array(path), np.array(back)
        last = np.zeros(path.size, bool)  # the visit of each step that is its last
        last[[np.flatnonzero(path == step)[-1] for step in range(n)]] = True
        always = np.ones(path.size, bool)
        rows_of = jax.tree.map(lambda leaf: leaf[path], inner)
        t_back = times[path // self.jump * self.jump]
        return RePaintRow(rows_of.t, rows_of.t_next, path, always, last, rows_of, back, t_back)

    def start(self, x, plan):
        return self.sampler.start(x, plan.inner)

    def advance(self, sde, score, x, memory, row, draw):
        x = self.begin(sde, x, row, draw)
        x, memory = self.sampler.advance(sde, score, x, memory, row.inner, draw)
        x = self.known_at(sde, x, row.t_next, draw(KNOWN))

        def renoised():
            ratio = sde.alpha(row.t_back) / sde.alpha(row.t_next)
            added = jnp.square(sde.sigma(row.t_back)) - jnp.square(ratio * sde.sigma(row.t_next))
            return ratio * x + jnp.sqrt(jnp.maximum(added, 0)) * draw(BACK)

        return jax.lax.cond(row.back, renoised, lambda: x), memory
