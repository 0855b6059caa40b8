"""Adaptive sampling: the exact flow map of a Gaussian, per-sample steps, counts and failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.arrays import sample_keys
from score_sde.sampling import adaptive
from tests.catalogue import SDES, name

KEY = jax.random.key(0)


QUICK = ("VP", "VE", "RectifiedFlow")  # the others are slow tests: each compiles for two seconds


@pytest.mark.parametrize(
    "sde", [pytest.param(s, marks=[] if name(s) in QUICK else pytest.mark.slow) for s in SDES], ids=name
)
def test_the_exact_flow_map_of_a_gaussian_is_met_to_the_tolerance(sde, x64):
    target = ss.Gaussian(jnp.array([1.0, -0.5]), jnp.array([[0.5, 0.2], [0.2, 0.3]]))
    x_init = sde.prior_sample(KEY, (4, 2))
    exact = target.flow_map(sde, x_init, sde.t_max, sde.t_sampling)
    compiled, errors = adaptive._solve_flow.cache_size(), []
    for tolerance in (1e-4, 1e-7):
        out = ss.sample_adaptive(KEY, sde, target.score(sde), (4, 2), x_init=x_init, rtol=tolerance, atol=tolerance)
        errors.append(np.abs(out.x - exact).max())
    # The tolerance bounds the error of each of some 15 to 50 steps, which the flow carries on: measured at most 13
    # times the tolerance (SubVP at 1e-4, CosineVP at 1e-7).
    assert errors[0] < 30 * 1e-4 and errors[1] < 30 * 1e-7, errors
    assert adaptive._solve_flow.cache_size() == compiled + 1


def restless_far_out(x, t):
    """-x/2, but where |x| > 100, a field that needs very small steps."""
    far = jnp.abs(x).max(1, keepdims=True) > 100
    return -0.5 * x + jnp.where(far, 20 * jnp.sin(10 * x), 0.0)


CALM = np.array([[1.0, -0.5], [0.3, 2.0]])
FAR = np.full((2, 2), 200.0)


def test_a_sample_does_not_feel_its_batch_mates(x64):
    def solve(mates):
        x_init = jnp.asarray(np.concatenate([mates, CALM]))
        return ss.sample_adaptive(KEY, ss.VP(), restless_far_out, (4, 2), x_init=x_init)

    alike, mixed = solve(CALM), solve(FAR)
    assert mixed.nfe[:2].min() > 2 * mixed.nfe[2:].max()  # the mates did need other steps
    np.testing.assert_array_equal(mixed.nfe[2:], alike.nfe[2:])
    np.testing.assert_allclose(mixed.x[2:], alike.x[2:], rtol=1e-13)  # the same steps: rounding of float64


def test_rounding_hardly_ever_decides_of_a_step():
    """In float32 and another batch: 31 of these 64 took other steps as long as errors of rounding set them."""
    sde, target = ss.SubVP(), ss.GaussianMixture(means=[[-1.0, 0.0], [1.0, 0.5]], stds=[0.3, 0.2])

    def solve(keys):
        return ss.sample_adaptive(keys, sde, target.score(sde), (keys.size, 2))

    keys = sample_keys(KEY, 64)
    whole, alone = solve(keys), [solve(keys[i : i + 1]) for i in range(64)]
    other = np.concatenate([out.nfe for out in alone]) != whole.nfe
    distance = np.abs(np.concatenate([out.x for out in alone]) - whole.x).max(1)
    assert other.sum() <= 6  # measured 2
    assert np.quantile(distance, 0.9) < 2e-4  # measured 2e-5


def test_nfe_is_the_number_of_evaluations():
    calls = []

    def score(x, t):
        jax.debug.callback(lambda _: calls.append(None), t[0])
        return -x / 2

    out = ss.sample_adaptive(KEY, ss.VP(), score, (1, 2))
    jax.effects_barrier()
    assert out.nfe.tolist() == [len(calls)]
    assert out.first_bad_step.tolist() == [-1] and out.trajectory is None


def gentle(scale, x, t):
    return -scale * x


def test_samples_depend_on_their_keys_alone_and_other_numbers_do_not_compile_again():
    def solve(keys, sde=ss.VP(), scale=0.5, **options):  # noqa: B008
        score = jax.tree_util.Partial(gentle, jnp.float32(scale))
        return ss.sample_adaptive(keys, sde, score, (4, 2), **options).x

    keys, order = sample_keys(KEY, 4), jnp.array([2, 3, 0, 1])
    first, compiled = solve(keys), adaptive._solve_flow.cache_size()
    np.testing.assert_allclose(solve(keys[order]), first[order], rtol=1e-6)
    for options in (
        dict(sde=ss.VP(0.2, 15.0)), dict(scale=0.8), dict(t_end=0.3), dict(t_start=0.7), dict(temperature=0.5),
        dict(rtol=1e-3, atol=1e-2),
    ):  # fmt: skip
        assert np.all(solve(keys, **options) != first)
    assert adaptive._solve_flow.cache_size() == compiled
    np.testing.assert_allclose(solve(KEY), first, rtol=1e-6)  # one key is that key's `fold_in`s


def test_temperature_scales_the_start_and_t_start_is_where_it_is_drawn():
    # With the score -x/2 the flow is linear: dx/dt = -beta x/4 = x (log alpha)'/2, so x_end = growth * x_start.
    sde = ss.VP()

    def solve(**options):
        return ss.sample_adaptive(KEY, sde, jax.tree_util.Partial(gentle, jnp.float32(0.5)), (4, 2), **options).x

    def growth(t_start):
        ends = (sde.log_alpha(jnp.float32(t)) for t in (sde.t_sampling, t_start))
        return float(jnp.exp(0.5 * (next(ends) - next(ends))))

    whole, half = solve(), float(sde.sigma(jnp.float32(0.5)))
    np.testing.assert_allclose(solve(temperature=0.25), 0.25 * whole, rtol=2e-3, atol=2e-3)  # tolerance 1e-4 a step
    np.testing.assert_array_equal(solve(temperature=0.0), 0)
    draws = whole / growth(1.0) / sde.prior_std()
    np.testing.assert_allclose(solve(t_start=0.5), draws * half * growth(0.5), rtol=2e-3, atol=2e-3)


def test_a_solve_that_gives_up_raises_and_is_reported_inside_a_jit():
    sde, x_init = ss.VP(), jnp.asarray(np.stack([FAR[0], CALM[0]]))

    def solve(x_init):
        return ss.sample_adaptive(KEY, sde, restless_far_out, (2, 2), x_init=x_init, max_steps=40)

    with pytest.raises(FloatingPointError, match=r"1 of 2 samples .* at step 40 \(sample 0\)"):
        solve(x_init)
    out = jax.jit(solve)(x_init)
    assert out.first_bad_step.tolist() == [40, -1]
    # The other sample is right: with the score -x/2 its flow is dx/dt = -beta x/4 = x (log alpha)'/2.
    growth = jnp.exp(0.5 * (sde.log_alpha(jnp.float32(sde.t_sampling)) - sde.log_alpha(jnp.float32(sde.t_max))))
    np.testing.assert_allclose(out.x[1], CALM[0] * growth, rtol=2e-3)  # tolerance 1e-4 a step, some 20 steps


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(t_end=0.0), r"t_end must be in \[t_min, t_max\] = \[1e-05, 1\] of VP, got 0"),
        (dict(t_start=1.5), r"t_start must be in \[t_min, t_max\] = \[1e-05, 1\] of VP, got 1.5"),
        (dict(x_init=np.ones((4, 3), np.float32)), r"x_init of shape \(4, 2\), got \(4, 3\)"),
        (dict(key=jax.random.split(KEY, 3)), "one key or 4 keys"),
        (dict(key=jax.random.key(0, impl="rbg")), "threefry"),
    ],
    ids=["t_end", "t_start", "x_init", "number of keys", "generator"],
)
def test_bad_input_is_refused(options, message):
    arguments = dict(key=KEY) | {k: jnp.asarray(v) if k == "x_init" else v for k, v in options.items()}
    with pytest.raises(ValueError, match=message):
        ss.sample_adaptive(sde=ss.VP(), score=lambda x, t: -x, shape=(4, 2), **arguments)


def test_a_score_that_is_not_like_x_is_refused():
    with pytest.raises(TypeError, match=r"got shape \(1, 1\)"):
        ss.sample_adaptive(KEY, ss.VP(), lambda x, t: -x[:, :1], (4, 2))
