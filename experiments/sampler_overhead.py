"""What a step of the first-order samplers costs beyond its arithmetic: time per step against a hand-written scan.

The score is trivial, s = -x, so what is left is the sampler.  The scan by hand is x <- a x + b s + c z with the same
noise, from one threefry key per sample and step, and does nothing else: it does not watch for values that are not
finite, and knows no times.  Time per step is the slope between two numbers of steps, from runs that alternate between
the two programs; the ratio is of their medians.

For samplers without noise the time of the scan without noise is printed too, without a bound: XLA makes one
multiplication of it, so it says only what reading the state a few times more costs, against a network's evaluation
nothing.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from common import Figures, arguments

import score_sde as ss

SHAPES = {(64, 8, 8, 1): (100, 1100), (64, 32, 32, 3): (10, 60)}  # the two numbers of steps of each
SAMPLERS = {
    "EulerMaruyama": ss.EulerMaruyama(),
    "ReverseDiffusion": ss.ReverseDiffusion(),
    "Ancestral": ss.Ancestral(),
    "DDIM, eta = 1": ss.DDIM(eta=1.0),
    "SDEDPMSolverPP of order 1": ss.SDEDPMSolverPP(order=1),
    "DDIM": ss.DDIM(),
    "ProbabilityFlowEuler": ss.ProbabilityFlowEuler(),
}
REPEATS = 7


@functools.cache
def by_hand(noisy: bool):
    """x after a scan over coefficients (n, 3), as one compiled program."""

    @jax.jit
    def run(key, x, coefficients):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(x.shape[0]))

        def step(x, inputs):
            n, (a, b, c) = inputs
            new = a * x + b * -x
            if noisy:
                draw = lambda key: jax.random.normal(jax.random.fold_in(key, n), x.shape[1:])  # noqa: E731
                new = new + c * jax.vmap(draw)(keys)
            return new, None

        return jax.lax.scan(step, x, (jnp.arange(coefficients.shape[0]), coefficients))[0]

    return run


def seconds(run) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def per_step(sampler: ss.Sampler, shape: tuple[int, ...]) -> np.ndarray:
    """Seconds per step of the sampler, of the scan by hand, and of the scan without noise."""
    sde, key, counts = ss.VP(), jax.random.key(0), SHAPES[shape]
    x = jax.random.normal(jax.random.key(1), shape)
    programs = []
    for steps in counts:
        times = ss.grids.uniform(sde, steps, sde.t_max, sde.t_sampling)
        coefficients = jnp.tile(jnp.array([0.9, 0.1, 0.1]), (steps, 1))
        programs += [
            lambda times=times: ss.sample(key, sde, minus, shape, sampler=sampler, grid=times, x_init=x).x,
            lambda coefficients=coefficients: by_hand(True)(key, x, coefficients),
            lambda coefficients=coefficients: by_hand(False)(key, x, coefficients),
        ]
    for program in programs:
        jax.block_until_ready(program())
    medians = np.median([[seconds(program) for program in programs] for _ in range(REPEATS)], axis=0)
    return (medians[3:] - medians[:3]) / (counts[1] - counts[0])


def minus(x, t):
    return -x


if __name__ == "__main__":
    args = arguments(__doc__).parse_args()
    figures = Figures()
    for shape in SHAPES:
        for name, sampler in SAMPLERS.items():
            ours, hand, bare = per_step(sampler, shape)
            without = f", without noise {1e6 * bare:.0f} us" if sampler.deterministic else ""
            size = "x".join(map(str, shape[1:]))
            print(f"{name}, {size}: {1e6 * ours:.0f} us per step, by hand {1e6 * hand:.0f} us{without}")
            figures.at_most(f"{name}, batch {shape[0]} of {size}: ratio", ours / hand, 1.5)
    figures.end(args.check)
