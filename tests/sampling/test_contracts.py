"""What every sampler promises, for every public sampler, SDE and prediction type, with exact scores.

One program per sampler serves all of this (see planned.py), so `solve` is called with one batch size per sampler:
16 where the flow map is exact, 1024 where moments are estimated.
"""

import functools
from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import score_sde as ss
from score_sde.sampling import loop
from tests.catalogue import (
    GRIDS,
    PREDICTIONS,
    PREDICTOR_CORRECTORS,
    SAMPLER_CLASSES,
    SAMPLERS,
    SDES,
    describe,
    name,
    order_of,
)
from tests.sampling import planned
from tests.sampling.planned import STEPS, Straight, gaussian, grid, mixture, probe, replay, solve
from tests.scores import WAYS

# One of each class, and where classes hold formulas of two kinds both of them; the rest are slow tests.
DEFAULT = [
    *(s for s in SAMPLERS if s == type(s)()),
    ss.DDIM(0.5),
    ss.DPMSolverPP(3),
    *PREDICTOR_CORRECTORS[:2],
]
SLOW = [s for s in SAMPLERS if s not in DEFAULT]
STRAIGHT = len(SDES)  # the number of the process that ends without noise
TYPES = range(-1, len(PREDICTIONS))  # the numbers of WAYS in planned.Probe


def cases(samplers):
    marks = {True: pytest.mark.slow, False: ()}
    return [pytest.param(s, id=describe(s), marks=marks[s in SLOW]) for s in samplers]


def is_langevin(sampler):
    """The published norm rule, which two dimensions are too few for (see Langevin)."""
    return isinstance(sampler, ss.PredictorCorrector) and isinstance(sampler.corrector, ss.Langevin)


DETERMINISTIC = [s for s in SAMPLERS if s.deterministic]
STOCHASTIC = [s for s in SAMPLERS if not s.deterministic]


def grid_of(index):
    """Its times; the process without noise goes down to 0."""
    return grid(index).at[-1].set(0.0) if index == STRAIGHT else grid(index)


@functools.cache
def samples(target, index, n):
    """Of the target's exact marginal at the first time."""
    return target().marginal(planned.AnySDE(jnp.int32(index)), grid_of(index)[0]).sample(jax.random.key(1), n)


@functools.cache
def carried(index, n):
    """Where the Gaussian's flow takes them."""
    times = grid(index)
    return gaussian().flow_map(planned.AnySDE(jnp.int32(index)), samples(gaussian, index, n), times[0], times[-1])


def run(sampler, index, target=gaussian, way=-1):
    x = samples(target, index, 16 if sampler.deterministic else 1024)
    return x, solve(sampler, grid_of(index), probe(index, way=way, mixed=target is mixture), x)


# --- nothing stays out -----------------------------------------------------------------------------------------------


def test_every_public_sampler_is_in_the_catalogue():
    assert {type(sampler) for sampler in SAMPLERS} == set(SAMPLER_CLASSES)
    exported = {c for c in vars(ss.sampling).values() if isinstance(c, type) and issubclass(c, ss.Sampler)}
    assert exported - {ss.Sampler, ss.LinearSampler} == set(SAMPLER_CLASSES)
    assert len(set(SAMPLERS)) == len(SAMPLERS)
    assert {type(s) for s in SAMPLERS if s not in SLOW} == set(SAMPLER_CLASSES)


@pytest.mark.parametrize("kind", [c for c in SAMPLER_CLASSES if hasattr(c, "order")], ids=lambda c: c.__name__)
def test_every_order_is_in_the_catalogue(kind):
    for order in range(1, 9):
        try:
            sampler = kind(order=order)
        except ValueError:
            continue
        assert any(type(s) is kind and s.order == sampler.order for s in SAMPLERS)


# --- exact scores ----------------------------------------------------------------------------------------------------

# 160 steps of h = 0.05 in half of the log-SNR.  Largest error measured, over the SDEs: order 1: 0.2 h (Euler
# in t), 2: 0.21 h^2 (DEIS(2) in t), 3: 0.5 h^3 (DEIS(3) in t), 4: 1.8 h^4 (DEIS(4) in t), most far smaller.
BOUND = {1: 0.015, 2: 1e-3, 3: 1e-4, 4: 2e-5}


def flow_error(sampler, index, way):
    x, (out, _) = run(sampler, index, way=way)
    return float(jnp.sqrt(jnp.mean(jnp.square(out.x - carried(index, len(x))))))


def flow_bound(sampler, index):
    # Runge-Kutta in t is no exponential solver: its errors are larger on VE, 1.3 h for Euler
    if isinstance(sampler, ss.RungeKutta) and isinstance(SDES[index], ss.VE):
        return {1: 0.08, 2: 2e-3, 3: 2e-5, 4: 2e-7}[sampler.order]  # 6.3e-2, 9.9e-4, 8.3e-6, 8.9e-8
    return BOUND[order_of(sampler)]


@pytest.mark.parametrize("index", range(len(SDES)), ids=[name(sde) for sde in SDES])
@pytest.mark.parametrize("sampler", cases(DETERMINISTIC))
def test_deterministic_samplers_follow_the_exact_flow(sampler, index, x64):
    way = (SAMPLERS.index(sampler) + index) % len(WAYS) - 1  # over all cases: every pair with sampler and with SDE
    assert flow_error(sampler, index, way) < flow_bound(sampler, index)


def test_the_default_run_covers_every_pair():
    kept = [i for i, sampler in enumerate(SAMPLERS) if sampler not in SLOW]
    chosen = [(i, j, (i + j) % len(WAYS)) for i in kept for j in range(len(SDES))]
    assert len({(i, way) for i, _, way in chosen}) == len(kept) * len(WAYS)
    assert len({(j, way) for _, j, way in chosen}) == len(SDES) * len(WAYS)


def two_of_the_sdes(sampler):
    """The numbers of two SDEs; over the samplers every SDE has its turn."""
    return [(SAMPLERS.index(sampler) + more) % len(SDES) for more in (0, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [pytest.param(s, id=describe(s)) for s in DETERMINISTIC])
def test_deterministic_samplers_give_the_same_for_every_prediction(sampler, x64):
    for index in two_of_the_sdes(sampler):
        errors = [flow_error(sampler, index, way) for way in TYPES]
        assert max(errors) < flow_bound(sampler, index)
        np.testing.assert_allclose(errors, errors[0], rtol=1e-6)  # the types are exact conversions of each other


def whitened(target, index, t, x):
    """x in the coordinates in which a Gaussian target's marginal is N(0, I)."""
    law = target.marginal(planned.AnySDE(jnp.int32(index)), t)
    return ((np.asarray(x) - np.asarray(law.mean)) @ np.asarray(law.axes)) / np.sqrt(np.asarray(law.variances))


def moment_scores(z, bias):
    """Standard scores of the means and second moments of N(0, I), each freed of at most `bias` first."""
    n, d = z.shape
    second = z.T @ z / n - np.eye(d)
    errors = np.concatenate([z.mean(0), second[np.triu_indices(d)] / np.sqrt(1 + np.eye(d))[np.triu_indices(d)]])
    return np.sqrt(n) * np.maximum(np.abs(errors) - bias, 0)


# False alarms: 5 scores a case, |score| > 5 has probability 6e-7, 500 cases: 1.4e-3 for all keys that could be chosen.
SCORE = 5.0


def bias_of(sampler):
    """What means and second moments of whitened samples may be off by, after 160 steps of h = 0.05.

    Measured with 16384 samples (standard error 0.008 to 0.011): up to 0.058 = 1.2 h where the weak order is 1 (DDPM's
    larger variance, at the last step), 0.024 = snr^2 where a corrector comes last; 0.014 where it is 2.
    """
    second = isinstance(sampler, ss.EDMStochastic) or (isinstance(sampler, ss.SDEDPMSolverPP) and sampler.order == 2)
    return 0.02 if second else 0.07


def exact_law(sampler):
    """Whether the law tends to the target's: the norm rule, and a corrector on its own, have biases of their own."""
    return not (is_langevin(sampler) or (isinstance(sampler, ss.PredictorCorrector) and sampler.predictor is None))


@pytest.mark.parametrize("index", range(len(SDES)), ids=[name(sde) for sde in SDES])
@pytest.mark.parametrize("sampler", cases(filter(exact_law, STOCHASTIC)))
def test_stochastic_samplers_have_the_targets_law(sampler, index, x64):
    _, (out, _) = run(sampler, index, way=(SAMPLERS.index(sampler) + index) % len(WAYS) - 1)
    z = whitened(gaussian(), index, grid(index)[-1], out.x)
    assert moment_scores(z, bias_of(sampler)).max() < SCORE


@pytest.mark.slow
@pytest.mark.parametrize("sampler", cases(filter(exact_law, STOCHASTIC)))
def test_stochastic_samplers_give_the_same_for_every_prediction(sampler, x64):
    for index in two_of_the_sdes(sampler):
        samples = [run(sampler, index, way=way)[1][0].x for way in TYPES]
        z = whitened(gaussian(), index, grid(index)[-1], samples[0])
        assert moment_scores(z, bias_of(sampler)).max() < SCORE
        for other in samples[1:]:
            np.testing.assert_allclose(other, samples[0], rtol=1e-8, atol=1e-8)  # float64, 160 steps; keys are the same


@pytest.mark.parametrize("sampler", cases(filter(exact_law, STOCHASTIC)))
def test_stochastic_samplers_sample_a_mixture(sampler, x64):
    index = SAMPLERS.index(sampler) % len(SDES)
    _, (out, _) = run(sampler, index, mixture)
    law, x = mixture().marginal(SDES[index], grid(index)[-1]), np.asarray(out.x)
    weights, means, stds = (np.asarray(part) for part in (law.weights, law.means, law.stds[:, 0]))
    # E x, E x x' and the components' posterior probabilities, against the exact law; spreads from the samples
    mean = weights @ means
    second = np.einsum("k,ki,kj->ij", weights, means, means) + (weights @ stds**2) * np.eye(2)
    logs = np.log(weights) - 0.5 * np.square((x[:, None] - means) / stds[:, None]).sum(2) - 2 * np.log(stds)
    posterior = np.exp(logs - logs.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    products = (x[:, :, None] * x[:, None]).reshape(-1, 4)[:, [0, 1, 3]]
    values = np.concatenate([x, products, posterior], 1)
    exact = np.concatenate([mean, second.ravel()[[0, 1, 3]], weights])
    spread = values.std(0)
    errors = np.maximum(np.abs(values.mean(0) - exact) / spread - bias_of(sampler), 0)
    assert np.sqrt(len(x)) * errors.max() < SCORE


def test_the_corrector_alone_has_the_law_of_its_recursion(x64):
    """On N(0, v I) a Langevin step is x <- (1 - e/c) x + sqrt(2 e) z, c the marginal's variance at its level."""
    sampler = next(s for s in SAMPLERS if isinstance(s, ss.PredictorCorrector) and s.predictor is None)
    for index, sde in enumerate(SDES):
        times = grid(index)
        x, (out, _) = run(sampler, index)
        variances = np.asarray(gaussian().variances)
        v = np.asarray(gaussian().marginal(sde, times[0]).variances)
        mean = np.zeros(2)  # of x - alpha m, in the target's axes
        centre = np.asarray(gaussian().axes.T @ gaussian().mean)
        alphas, sigmas = np.asarray(sde.alpha(times)), np.asarray(sde.sigma(times))
        for before, alpha, sigma in zip(alphas[:-1], alphas[1:], sigmas[1:], strict=True):
            mean = mean + (before - alpha) * centre
            c, e = alpha**2 * variances + sigma**2, 2 * (sampler.corrector.snr * sigma) ** 2
            for _ in range(sampler.corrector.steps):
                mean, v = (1 - e / c) * mean, (1 - e / c) ** 2 * v + 2 * e
        z = (np.asarray(out.x) @ np.asarray(gaussian().axes) - alphas[-1] * centre - mean) / np.sqrt(v)
        assert moment_scores(z, 0.0).max() < SCORE


# --- evaluations, traces, programs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", cases(SAMPLERS))
def test_one_program_serves_other_numbers_and_evaluates_as_often_as_it_says(sampler, x64):
    x, (first, _) = run(sampler, 0)
    compiled, evaluated = loop._solve.cache_size(), planned.COUNTS["evaluated"]
    again, _ = solve(sampler, grid(0), probe(0, count=True), x)
    assert again.nfe.tolist() == [planned.COUNTS["evaluated"] - evaluated] * len(x)
    np.testing.assert_array_equal(again.x, first.x)
    # every number of the sampler (eta, snr, churn ...), of the SDEs, of the targets; the times; key and temperature
    other = jax.tree.map(lambda v: 0.9 * v, sampler)
    score = jax.tree.map(lambda v: 0.95 * v if jnp.issubdtype(jnp.result_type(v), jnp.floating) else v, probe(0))
    times = grid(0, high=8.0)
    changed = [
        solve(sampler, grid(0), score, x)[0].x,
        solve(sampler, times, probe(0), x)[0].x,
        *([solve(other, grid(0), probe(0), x)[0].x] if jax.tree.leaves(sampler) else []),
    ]
    if not sampler.deterministic:
        changed.append(solve(sampler, grid(0), probe(0), x, key=1)[0].x)
        changed.append(solve(sampler, grid(0), probe(0), x, temperature=0.9)[0].x)
    assert loop._solve.cache_size() == compiled
    for i, result in enumerate(changed):  # the new numbers were used
        same = np.all(result == first.x)
        zero = isinstance(sampler, (ss.DDIM, ss.SASolver)) and sampler.deterministic  # eta, tau: 0.9 * 0
        assert not same or (i == 2 and zero)


def march_jaxpr(sampler, steps):
    """(program, calls of the score in tracing it, evaluations that it says it takes) of a solve with few numbers."""
    calls, said, sde = [], [], ss.VP()

    def score(x, t):
        calls.append(None)
        jax.debug.callback(lambda _: None, t[0])
        return -x

    def trace(times, x):
        x, evaluations, *_ = loop.march(sde, score, sampler, times, x, lambda row, k, like: jnp.zeros_like(like))
        said.append(evaluations)
        return x

    program = jax.make_jaxpr(trace)(jnp.linspace(1.0, 1e-3, steps + 1), jnp.ones((2, 3)))
    return program.jaxpr, len(calls), said[0]


def evaluations_in(jaxpr, steps, times=1):
    """How often a program calls back: a scan's body as often as it is long, what a row does conditionally once a step.

    `times` is how often this part of it runs.
    """
    total = 0
    for equation in jaxpr.eqns:
        kind, often = equation.primitive.name, times
        if kind == "debug_callback":
            total += times
        elif kind == "scan":
            often = times * equation.params["length"]
        elif kind == "cond":
            often = steps
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else [value]:
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    total += evaluations_in(part, steps, often)
    return total


def per_step(sampler):
    """The evaluations per step that the docstrings state."""
    match sampler:
        case ss.PredictorCorrector():
            return sampler.corrector.steps + (0 if sampler.predictor is None else per_step(sampler.predictor))
        case ss.RungeKutta() | ss.DPMSolver():
            return sampler.order
        case ss.Heun() | ss.DPMSolverPP2S() | ss.EDMStochastic():
            return 2
        case _:
            return 1


@pytest.mark.parametrize("sampler", cases(SAMPLERS))
def test_the_score_is_traced_as_often_for_any_number_of_steps_and_evaluated_as_often_as_said(sampler):
    """The program is read, not run: at 1 to 3 steps multistep methods are other formulas."""
    composed = isinstance(sampler, ss.PredictorCorrector)
    expected = (sampler.predictor is not None) + 1 if composed else 1
    said = {}
    for steps in (1, 2, 3, 10, 50):
        program, calls, said[steps] = march_jaxpr(sampler, steps)
        assert calls == expected
        assert evaluations_in(program, steps) == said[steps]
    assert said[50] - said[10] == 40 * per_step(sampler)
    assert 0 <= said[10] - 10 * per_step(sampler) <= 4  # what multistep methods start with: 1 or 1 + 3 stages more


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler, steps", [pytest.param(s, n, id=f"{describe(s)}-{n}") for s, n in zip(SAMPLERS, cycle((3, 1, 10, 2)))]
)
def test_nfe_is_the_number_of_evaluations_when_run(sampler, steps):
    calls = []

    def score(x, t):
        jax.debug.callback(lambda _: calls.append(None), t[0])
        return -x

    with planned.compiled_quickly():
        out = ss.sample(jax.random.key(0), ss.VP(), score, (2, 3), sampler=sampler, steps=steps, grid=ss.grids.log_snr)
    jax.effects_barrier()
    assert out.nfe.tolist() == [len(calls)] * 2
    assert np.isfinite(out.x).all()


MEMORY = [ss.EulerMaruyama(), ss.UniPC(3), ss.PredictorCorrector(ss.Heun(), ss.AnnealedLangevin())]
MEMORY_SLOW = [ss.DEIS(4), ss.DPMSolver(3), ss.RungeKutta(4), ss.EDMStochastic(), ss.SDEDPMSolverPP(2)]


@pytest.mark.parametrize(
    "sampler",
    [pytest.param(s, id=describe(s), marks=pytest.mark.slow if s in MEMORY_SLOW else ()) for s in MEMORY + MEMORY_SLOW],
)
def test_memory_does_not_grow_with_the_steps(sampler):
    shape, state = (16, 1024), 16 * 1024 * 4

    def temporary_bytes(steps):
        def program(x):
            return ss.sample(
                jax.random.key(0), ss.VP(), lambda x, t: -x, shape, sampler=sampler, grid=times, x_init=x
            ).x

        times = jnp.linspace(1.0, 1e-3, steps + 1)
        return jax.jit(program).lower(jnp.zeros(shape)).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(20), temporary_bytes(520)
    assert few >= state  # the analysis does count states
    # a plan is 10 to 20 numbers a row, weights by quadrature take 32 nodes in a few arrays; a state is 65536 bytes
    assert many - few < 500 * 4000


# --- one program for all: is a replay the same as a solve? -----------------------------------------------------------


def close(actual, expected, unit):
    """To rounding: `unit` at the scale of the largest state, which 160 steps and the score's gain multiply."""
    np.testing.assert_allclose(actual, expected, rtol=unit, atol=unit)


@pytest.mark.parametrize("sampler", cases(SAMPLERS))
def test_a_plan_replayed_gives_what_the_solve_gave(sampler, x64):
    if is_langevin(sampler):
        pytest.skip("its steps are without bound where the score vanishes, and so is rounding")
    x, (out, plan) = run(sampler, 1)
    close(replay(sampler, plan, probe(1), x), out.x, 1e-9)


@pytest.mark.parametrize("sampler", cases(DETERMINISTIC))
def test_without_noise_the_last_step_is_the_posterior_mean(sampler, x64):
    """Solves may end at sigma = 0, where there is no score: as if ended a step before and denoised."""
    times = grid_of(STRAIGHT)
    x, (out, plan) = run(sampler, STRAIGHT)
    assert np.isfinite(out.x).all()
    before = replay(sampler, plan, probe(STRAIGHT), x, steps=STEPS - 1)
    expected = before + times[-2] ** 2 * gaussian().score(Straight())(before, jnp.full(x.shape[:1], times[-2]))
    # Runge-Kutta's stages in between see the score change: sigma^2 over the least variance is 8e-4, measured 2.7e-4
    close(out.x, expected, 1e-3 if isinstance(sampler, ss.RungeKutta) and sampler.order > 1 else 1e-10)


@pytest.mark.parametrize("sampler", cases(STOCHASTIC))
def test_stochastic_samplers_are_finite_without_noise(sampler, x64):
    assert np.isfinite(run(sampler, STRAIGHT)[1][0].x).all()


# --- batches ---------------------------------------------------------------------------------------------------------

ROUNDING = dict(rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sampler", cases(SAMPLERS))
def test_a_sample_depends_on_its_key_alone(sampler):
    """In batches of 1, 7 and 64, and on 1 and 4 devices, to float32 rounding of 40 steps."""
    with jax.enable_x64(True):
        plan = run(sampler, 1)[1][1]
    score = ss.GaussianMixture(np.float32([[1.0, -0.5], [-0.8, 0.6]]), np.float32([0.3, 0.5])).score(ss.VP())
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(jnp.arange(64))
    x = jax.random.normal(jax.random.key(2), (64, 2))
    whole = replay(sampler, plan, score, x, keys=keys)
    devices = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    spread = replay(sampler, plan, score, jax.device_put(x, devices), keys=jax.device_put(keys, devices))
    assert len(spread.sharding.device_set) == jax.device_count() > 1
    np.testing.assert_allclose(spread, whole, **ROUNDING)
    for part in (np.s_[5:6], np.s_[0:7]):
        np.testing.assert_allclose(replay(sampler, plan, score, x[part], keys=keys[part]), whole[part], **ROUNDING)


# --- shapes and numbers of any kind ----------------------------------------------------------------------------------


def number(low, high):
    return st.floats(low, high, allow_subnormal=False)


def shrinking(x, t):
    """A score that treats every coordinate alike."""
    return -x / (1 + t.reshape(-1, *(1,) * (x.ndim - 1)))


@settings(max_examples=6)
@given(
    st.one_of(
        st.builds(ss.VP, number(0.05, 1.0), number(1.5, 25.0)),
        st.builds(ss.VE, number(0.001, 0.1), number(1.0, 300.0)),
    ),
    st.sampled_from(GRIDS),
    st.sampled_from([ss.UniPC(2), ss.SDEDPMSolverPP(2), ss.Heun()]),
    st.sampled_from([(), (3,), (2, 3, 4, 1)]),
    number(0.5, 1.0),
    number(0.01, 0.1),
)
def test_any_process_grid_and_shape(sde, spacing, sampler, event, t_start, t_end):
    size = int(np.prod(event))
    options = dict(sampler=sampler, steps=6, grid=spacing, t_start=t_start, t_end=t_end, trajectory=2)
    with planned.compiled_quickly():
        out = ss.sample(jax.random.key(0), sde, shrinking, (2, *event), **options)
        flat = ss.sample(jax.random.key(0), sde, shrinking, (2, size), **options)
    assert out.x.shape == (2, *event) and out.trajectory.shape == (3, 2, *event)
    assert out.x.dtype == out.trajectory.dtype == np.float32 and out.nfe.shape == out.first_bad_step.shape == (2,)
    assert np.isfinite(out.x).all() and (out.first_bad_step == -1).all()
    scale = float(jnp.abs(flat.trajectory).max())  # of states on the way, in whose units numbers are rounded
    np.testing.assert_allclose(out.x.reshape(2, size), flat.x, rtol=1e-5, atol=1e-6 * scale)
    np.testing.assert_allclose(out.trajectory.reshape(3, 2, size), flat.trajectory, rtol=1e-5, atol=1e-6 * scale)
