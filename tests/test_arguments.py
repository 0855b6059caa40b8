"""Every public function says in one line what it wants where a key, an array, a count, a time or a tolerance is wrong.

The tables walk over the public names: a new function cannot stay out, nor a new argument of a known name.
"""

import inspect
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.arguments import checked
from score_sde.likelihood import density
from score_sde.sampling import adaptive, loop
from score_sde.trees import Number

KEY, X = jax.random.key(0), jnp.ones((4, 2))
TARGET = ss.Gaussian(jnp.zeros(2), jnp.array([[1.0, 0.2], [0.2, 1.0]]))
MASK = ss.operators.Mask((2,), jnp.array([1, 0]))
FUNCTIONS = {name: f for name, f in vars(ss).items() if inspect.isfunction(f)}


def still(x, t):
    return -x


TILTED = ss.pigdm(still, ss.VP(), MASK, jnp.zeros((4, 2)), 0.1)
GOOD = {
    "key": KEY, "sde": ss.VP(), "score": still, "shape": (4, 2), "x": X, "x0": X, "x_init": X, "a": X, "b": X,
    "weights": jnp.ones(3), "source": still, "target": still, "guided": TILTED, "predict": still, "steps": 10,
    "draws": 2, "levels": 256, "chain": ss.discrete.ddpm(100), "t_start": 0.5, "times": jnp.ones(2),
}  # fmt: skip
WRONG = {  # of each name, values of another kind
    "key": [3, 0.5, "seed", np.ones(2), [KEY]],
    **dict.fromkeys(("x", "x0", "x_init", "a", "b", "weights"), [3, 0.5, "x", [[1.0, 2.0]], lambda: X]),
    "steps": [2.5, "10", True, np.ones(2)],
    **dict.fromkeys(("draws", "repeats", "particles", "max_steps", "trajectory", "bins", "samples"), [2.5, "10", True]),
    **dict.fromkeys(("rtol", "atol", "t_start", "t_end", "temperature", "resolution"), ["1", True, [0.1], 1j]),
    **dict.fromkeys(("first_step", "threshold", "prior_std"), ["1", True, [0.1], 1j]),
    **dict.fromkeys(("score", "predict", "source", "target", "guided"), [3, "score", X]),
    "shape": [4, None, (4, 2.0), "42", X],
    "sde": [3, "vp", ss.VP],
    "sampler": [3, "ddim", ss.DDIM],
    "grid": [3, "uniform", [1.0, 0.1]],
    "divergence": [3, ss.ExactDivergence],
}
BAD = {  # of each name, values of the right kind that cannot be
    **dict.fromkeys(("steps", "draws", "repeats", "particles", "max_steps", "trajectory", "bins"), [0, -1]),
    "rtol": [0.0, -1, np.nan],
    "atol": [-1e-3, np.nan],
    "temperature": [-1, np.nan],
    "t_start": [np.nan, 2, np.ones(3)],
    "t_end": [np.nan, 2],
    "shape": [(), (0, 2), (4, -1)],
    **dict.fromkeys(("x", "x0", "x_init"), [jnp.ones((4, 2), bool), jnp.ones(())]),
}
MUST_BE_CHECKED = {"key", "shape", *BAD}
LEVELS = ("dequantise", "importance_weighted")  # their x are whole numbers


def cases(table):
    """(function, argument, value) for each value of the table that a public function could be given."""
    for name, function in FUNCTIONS.items():
        for argument, parameter in inspect.signature(function).parameters.items():
            if name in LEVELS and argument == "x" and table is BAD:
                continue
            if getattr(function, "is_checked", False):
                yield from ((name, argument, value) for value in table.get(argument, []))
                if (
                    table is WRONG
                    and argument in ("key", "x", "steps")
                    and parameter.default is inspect.Parameter.empty
                ):
                    annotation = str(parameter.annotation)
                    if "None" not in annotation:
                        yield name, argument, None


def call(name, **changes):
    """The function with good values for what it must be given, and these changes."""
    function = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    arguments = {argument: GOOD.get(argument) for argument in needed} | changes
    if name in LEVELS:
        arguments["x"] = changes.get("x", jnp.ones((4, 2), int))
    if name == "score_error":
        arguments["target"] = changes.get("target", TARGET)
    return function(**arguments)


def test_every_public_function_that_solves_or_draws_is_checked():
    left_out = [
        name
        for name, function in FUNCTIONS.items()
        if MUST_BE_CHECKED & set(inspect.signature(function).parameters) and not getattr(function, "is_checked", False)
    ]
    assert not left_out


def test_every_number_and_count_of_a_checked_function_is_in_the_tables():
    kinds = {str(Number), str(Number | None), str(int), str(int | None)}
    missing = {
        (name, p.name)
        for name, function in FUNCTIONS.items()
        if getattr(function, "is_checked", False)
        for p in inspect.signature(function).parameters.values()
        if str(p.annotation) in kinds and p.name not in WRONG and p.name != "levels"
    }
    assert not missing


@pytest.mark.parametrize("table, kind", [(WRONG, TypeError), (BAD, ValueError)], ids=["another kind", "cannot be"])
def test_what_is_wrong_is_told_in_one_line_before_anything_compiles(table, kind):
    programs = [loop._solve, adaptive._solve_flow, adaptive._solve_sde, density._log_prob]
    compiled, faults, number = [p.cache_size() for p in programs], [], 0
    for name, argument, value in cases(table):
        number += 1
        try:
            call(name, **{argument: value})
        except kind as error:
            text = str(error)
            if not (type(error) is kind and "\n" not in text and argument in text and "got " in text):
                faults.append((name, argument, value, text))
        except Exception as error:  # noqa: BLE001 - any other one is a fault
            faults.append((name, argument, value, repr(error)[:200]))
        else:
            faults.append((name, argument, value, "accepted"))
    assert number > (200 if table is WRONG else 60)
    assert not faults, "\n".join(map(str, faults))
    assert [p.cache_size() for p in programs] == compiled


@pytest.mark.parametrize(
    "make",
    [
        lambda: ss.sample_adaptive(KEY, ss.VP(), still, (4, 2), t_start=0.1, t_end=0.5),
        lambda: ss.sample_sde(KEY, ss.VP(), still, (4, 2), t_start=0.1, t_end=0.5),
        lambda: ss.sample(KEY, ss.VP(), still, (4, 2), t_start=0.1, t_end=0.5),
        lambda: ss.encode(ss.VP(), still, X, t_start=0.5, t_end=0.1),
        lambda: ss.encode_adaptive(ss.VP(), still, X, t_start=0.5, t_end=0.1),
        lambda: ss.Clipped(still, ss.VP(), 1.0, -1.0),
        lambda: ss.DynamicThreshold(still, ss.VP(), 1.0, -1.0),
        lambda: ss.VP(0.1, 400.0),
        lambda: ss.sample(KEY, ss.RectifiedFlow(), still, (4, 2), x_init=X.astype(jnp.bfloat16), steps=20),
        lambda: ss.sample(KEY, ss.VP(), still, (4, 2), x_init=X.astype(jnp.bfloat16), steps=1000),
        lambda: ss.sample_adaptive(KEY, ss.VP(), still, (4, 2), x_init=X.astype(jnp.bfloat16)),
        lambda: ss.sample_sde(KEY, ss.VP(), still, (4, 2), x_init=X.astype(jnp.float16)),
        lambda: ss.encode_adaptive(ss.VP(), still, X.astype(jnp.bfloat16)),
        lambda: ss.log_prob(KEY, ss.VP(), still, X.astype(jnp.bfloat16)),
        lambda: ss.sample(KEY, ss.VP(), still, (4, 2), grid=jnp.array([1.0, 0.5, 0.5, 0.1])),
    ],
    ids=range(15),
)
def test_values_that_do_not_go_together_are_refused(make):
    with pytest.raises(ValueError, match="expected|must be") as error:
        make()
    assert "\n" not in str(error.value) and "got " in str(error.value)


# --- one form --------------------------------------------------------------------------------------------------------


def test_a_whole_number_shares_the_program_of_the_float():
    """`trees.jit` compiles for each integer: what is a real number must reach it as a float."""
    seen = []

    @checked
    def solve(x: Number, count: int = 3, other: Number | None = None):
        seen.append((x, count, other))

    for two in (2, 2.0, np.int64(2), jnp.int32(2), np.float32(2)):
        solve(two, np.int64(3), two)
    assert {type(x) for x, _, _ in seen[:3]} == {float} and all(x == other == 2 for x, _, other in seen)
    assert all(jnp.issubdtype(jnp.result_type(x), jnp.floating) and type(count) is int for x, count, _ in seen)

    ss.sample(KEY, ss.VP(), still, (4, 2), steps=3, temperature=2.0)
    compiled = loop._solve.cache_size()
    for temperature in (2, 1, 0, np.int32(3)):
        ss.sample(KEY, ss.VP(), still, (4, 2), steps=3, temperature=temperature, t_start=1)
    assert loop._solve.cache_size() == compiled


SECOND_CALLS = """
import jax, jax.numpy as jnp, sys
import score_sde as ss
assert "diffrax" not in sys.modules
count = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: count.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
)
def score(x, t): return -x
key, sde, x = jax.random.key(0), ss.VP(), jnp.ones((2, 2))
def one(number): jax.block_until_ready({call})
one(1.0); first = len(count); one(1.0); one(1)
print(first, len(count) - first)
"""


@pytest.mark.parametrize(
    "solve",
    [
        "ss.sample_adaptive(key, sde, score, (2, 2), temperature=number)",
        pytest.param("ss.sample_sde(key, sde, score, (2, 2), temperature=number, t_end=0.5)", marks=pytest.mark.slow),
        pytest.param("ss.log_prob(key, sde, score, x, rtol=number)", marks=pytest.mark.slow),
    ],
    ids=lambda solve: solve.split("(")[0].removeprefix("ss."),
)
def test_the_first_call_of_a_process_is_the_only_one_that_compiles(solve):
    code = SECOND_CALLS.replace("{call}", solve)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, later = map(int, done.stdout.split())
    assert first > 0 and later == 0


# --- processes of one's own ------------------------------------------------------------------------------------------


class Constant(ss.AffineSDE):
    """alpha as one number, sigma as asked for."""

    T = 2.0
    wrong: bool = ss.static(False)

    def alpha(self, t):
        return 1.0

    def sigma(self, t):
        return jnp.ones((2, 2)) if self.wrong else t


def test_a_constant_alpha_may_be_a_number_and_another_shape_is_told():
    loss = ss.denoising_score_matching(KEY, Constant(), still, X)
    assert loss.shape == (4,) and np.isfinite(ss.sample(KEY, Constant(), still, (4, 2), steps=5).x).all()
    with pytest.raises(TypeError, match=r"Constant.sigma\(t\) of shape \(4,\) and dtype float32 like t, got an array"):
        ss.denoising_score_matching(KEY, Constant(wrong=True), still, X)
