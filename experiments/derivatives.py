"""Gradients in every number of every public function, against finite differences in float64 (`derivative_cases.py`).

By family, the largest relative error of an entry: at generic points and where settings are neutral (a scale of 1, an
eta of 0).  `--full` runs the products of samplers and SDEs too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Figures, arguments
from derivative_cases import Case, cases

# Programs are run a few hundred times in microseconds: what costs is to compile them.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def is_number(leaf: Any) -> bool:
    return isinstance(leaf, float) or jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating)


def worst_error(case: Case) -> float:
    """The largest relative error of the gradient in any number at any of the case's points.

    A number's part in the whole is its derivative times its size; parts below a thousandth of the largest are compared
    with that (in adaptive solves, whose tolerance is relative to the whole, all with the largest).  The derivative by
    forward mode along one direction is compared with reverse mode's.
    """
    _, tree = jax.tree.flatten(case.at)
    rest = [None if is_number(leaf) else leaf for leaf in jax.tree.leaves(case.at)]

    def total(run, numbers):
        numbers = iter(numbers)
        out = run(**jax.tree.unflatten(tree, [next(numbers) if leaf is None else leaf for leaf in rest]))
        parts = [leaf.ravel() for leaf in jax.tree.leaves(out) if is_number(leaf)]
        values = jnp.concatenate(parts)
        return values @ jnp.asarray(1 + 0.5 * np.cos(np.arange(values.size)))

    def run(numbers):
        value, gradient = jax.value_and_grad(lambda numbers: total(case.run, numbers))(numbers)
        if case.reverse_only:
            return value, gradient, 0.0
        direction = [jnp.cos(1 + jnp.arange(n.size)).reshape(n.shape) * (0.1 + abs(n)) for n in numbers]
        forward = jax.jvp(lambda numbers: total(case.run, numbers), (numbers,), (direction,))[1]
        backward = sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
        return value, gradient, (forward - backward) / (abs(forward) + 1e-3)

    run = jax.jit(run, compiler_options=QUICK)
    value = (lambda n: run(n)[0]) if case.exact is None else jax.jit(lambda n: total(case.exact, n))
    worst = 0.0
    for point in ({}, *case.neutral):
        leaves = jax.tree.leaves(case.at | point)
        numbers = [np.asarray(n, np.float64) for n, leaf in zip(leaves, rest, strict=True) if leaf is None]
        _, gradient, modes = run(numbers)
        gradient = np.concatenate([np.ravel(g) for g in gradient])
        slopes, sizes = differences(value, numbers)
        parts = np.abs(slopes) * sizes
        errors = np.abs(gradient - slopes) * sizes / np.maximum(parts, max(case.least * parts.max(), 1e-12))
        errors = np.append(errors, abs(float(modes)))
        worst = max(worst, float(np.where(np.isfinite(errors), errors, np.inf).max()))
    return worst


def differences(value: Callable, numbers: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Differences of order 4 in each entry of each number, central ones but at 0, and the entries' sizes."""
    slopes, sizes = [], []
    for k, number in enumerate(numbers):
        for index in np.ndindex(number.shape):
            size = abs(float(number[index])) or 1.0

            def at(step, k=k, number=number, index=index):
                moved = number.copy()
                moved[index] += step
                return float(value([*numbers[:k], moved, *numbers[k + 1 :]]))

            h = 1e-3 * size
            if number[index] == 0:  # may be the end of its range, with a kink beyond
                ahead = [at(k * h) for k in range(5)]
                slopes.append(np.dot([-25, 48, -36, 16, -3], ahead) / (12 * h))
            else:
                slopes.append((8 * (at(h / 2) - at(-h / 2)) - (at(h) - at(-h))) / (6 * h))
            sizes.append(size)
    return np.array(slopes), np.array(sizes)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--full", action="store_true", help="the slow cases too, some minutes more")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    figures, families = Figures(), {}
    for case in cases():
        if args.full or not case.slow:
            families.setdefault(case.family, []).append((worst_error(case), case.name, case.bound))
    for family, found in families.items():
        error, name, bound = max(found)
        figures.at_most(f"{family}: {len(found)} cases, the worst is {name}", error, bound)
    figures.end(args.check)
