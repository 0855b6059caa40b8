"""The loop: a sample depends on its own key alone, nothing compiles twice, what went wrong is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import score_sde as ss
from score_sde.sampling import loop

KEY = jax.random.key(0)
MIXTURE = ss.GaussianMixture(np.array([[1.0, -0.5], [-0.8, 0.6]], np.float32), np.array([0.3, 0.5], np.float32))
# float32 rounding of one step is 1e-7 of x; the reverse process forgets, and 50 steps add up to at most 5e-6 (50 eps).
ROUNDING = dict(rtol=5e-6, atol=5e-6)


def sample_keys(n):
    return jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(n))


def linear(params, x, t):
    """A score with weights."""
    return -params * x


def linear_score(scale):
    return jax.tree_util.Partial(linear, jnp.float32(scale))


def count_calls(score):
    """`score`, and a list that grows at each evaluation on the device."""
    calls = []

    def counted(x, t):
        jax.debug.callback(lambda _: calls.append(None), t[0])
        return score(x, t)

    return counted, calls


# --- randomness ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch_of_64():
    sde = ss.VP()
    return ss.sample(KEY, sde, MIXTURE.score(sde), (64, 2), steps=50, denoise=True).x


@pytest.mark.parametrize("samples", [slice(5, 6), slice(0, 7)], ids=["batch of 1", "batch of 7"])
def test_a_sample_depends_on_its_key_alone(batch_of_64, samples):
    sde, keys = ss.VP(), sample_keys(64)[samples]
    alone = ss.sample(keys, sde, MIXTURE.score(sde), (keys.size, 2), steps=50, denoise=True).x
    np.testing.assert_allclose(alone, batch_of_64[samples], **ROUNDING)


def test_samples_are_the_same_spread_over_devices(batch_of_64):
    sde, mesh = ss.VP(), Mesh(np.array(jax.devices()), ("data",))
    keys = jax.device_put(sample_keys(64), NamedSharding(mesh, PartitionSpec("data")))
    spread = ss.sample(keys, sde, MIXTURE.score(sde), (64, 2), steps=50, denoise=True).x
    assert len(spread.sharding.device_set) == jax.device_count()
    assert {shard.data.shape for shard in spread.addressable_shards} == {(64 // jax.device_count(), 2)}
    np.testing.assert_allclose(spread, batch_of_64, **ROUNDING)


def test_other_keys_give_other_samples(batch_of_64):
    sde = ss.VP()
    other = ss.sample(jax.random.key(1), sde, MIXTURE.score(sde), (64, 2), steps=50, denoise=True).x
    assert np.all(other != batch_of_64)
    assert np.unique(np.concatenate([other, batch_of_64])).size == 256  # no two coordinates share their noise


# --- programs --------------------------------------------------------------------------------------------------------


def test_other_numbers_do_not_compile_again():
    def solve(key=KEY, sde=ss.VP(), scale=1.0, t_end=1e-3, **options):  # noqa: B008
        return ss.sample(key, sde, linear_score(scale), (3, 2), steps=7, t_end=t_end, **options).x

    first, compiled = solve(), loop._solve.cache_size()
    changed = [solve(key=jax.random.key(1)), solve(sde=ss.VP(0.2, 15.0)), solve(scale=0.5), solve(t_end=0.2)]
    changed += [solve(t_start=0.9), solve(temperature=0.9)]
    assert loop._solve.cache_size() == compiled
    for other in changed:  # the new numbers were used
        assert np.all(other != first)


@pytest.mark.parametrize("steps", [1, 3, 300])
def test_the_score_is_traced_as_often_for_any_number_of_steps(steps):
    traces = []

    def score(x, t):
        traces.append(None)
        return -x

    ss.sample(KEY, ss.VP(), score, (3, 2), steps=steps)
    assert len(traces) == 1


def test_memory_does_not_grow_with_the_steps():
    shape, state = (16, 1024), 16 * 1024 * 4

    def temporary_bytes(steps):
        program = jax.jit(lambda key: ss.sample(key, ss.VP(), linear_score(1.0), shape, steps=steps).x)
        return program.lower(KEY).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(10), temporary_bytes(1010)
    assert few >= state  # the analysis does count states
    assert many - few < 1000 * 64  # times and step numbers; states would be 1000 * 65536


def test_sampling_inside_a_jit_with_a_traced_sde_gives_the_same(batch_of_64):
    solve = jax.jit(lambda key, sde: ss.sample(key, sde, MIXTURE.score(sde), (64, 2), steps=50, denoise=True).x)
    np.testing.assert_allclose(solve(KEY, ss.VP()), batch_of_64, **ROUNDING)


# --- evaluations, trajectory, denoising ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"denoise": True}, {"trajectory": 4}, {"trajectory": 2, "denoise": True}])
def test_nfe_is_the_number_of_evaluations(options):
    score, calls = count_calls(lambda x, t: -x)
    out = ss.sample(KEY, ss.VP(), score, (3, 2), steps=12, **options)
    jax.effects_barrier()
    assert out.nfe.tolist() == [len(calls)] * 3
    assert len(calls) == 12 + options.get("denoise", False)


@pytest.mark.parametrize("denoise", [False, True])
def test_trajectory_holds_the_states_on_the_way_and_does_not_change_the_result(denoise):
    sde = ss.VP()
    score, x_init = MIXTURE.score(sde), sde.prior_sample(jax.random.key(5), (3, 2))
    plain = ss.sample(KEY, sde, score, (3, 2), steps=12, x_init=x_init, denoise=denoise)
    out = ss.sample(KEY, sde, score, (3, 2), steps=12, x_init=x_init, denoise=denoise, trajectory=4)
    assert plain.trajectory is None and out.trajectory.shape == (5, 3, 2)
    np.testing.assert_allclose(out.x, plain.x, **ROUNDING)
    np.testing.assert_array_equal(out.trajectory[0], x_init)
    if not denoise:
        np.testing.assert_array_equal(out.trajectory[-1], out.x)
        times = ss.grids.uniform(sde, 12, sde.t_max, sde.t_sampling)
        halfway = ss.sample(KEY, sde, score, (3, 2), x_init=x_init, grid=times[:7]).x
        np.testing.assert_allclose(out.trajectory[2], halfway, **ROUNDING)


def test_trajectory_need_not_divide_the_steps():
    """States are those after the steps nearest to even spacing, whatever the rows of a step (2, then 1 each)."""
    sde, x_init = ss.VP(), jnp.ones((3, 2))
    options = dict(sampler=ss.DPMSolverPP(3), steps=10, x_init=x_init)
    every = ss.sample(KEY, sde, linear_score(1.0), (3, 2), trajectory=10, **options).trajectory
    for kept, steps in ((3, [0, 3, 7, 10]), (4, [0, 2, 5, 8, 10])):  # 2.5 and 7.5 to even numbers
        out = ss.sample(KEY, sde, linear_score(1.0), (3, 2), trajectory=kept, **options)
        np.testing.assert_allclose(out.trajectory, every[np.array(steps)], **ROUNDING)
        np.testing.assert_array_equal(out.trajectory[-1], out.x)
    assert np.unique(every, axis=0).shape == (11, 3, 2)  # no two are the same


def test_a_solve_may_start_anywhere():
    """From the prior of its start, N(0, sigma(t_start)^2); two solves that meet are one."""
    sde, score = ss.VE(), linear_score(0.0)  # with no score a step adds noise to what was there, and no more
    start = ss.sample(KEY, sde, score, (4000, 1), steps=1, t_start=0.5, t_end=0.25, trajectory=1).trajectory[0]
    assert abs(float(start.std()) / float(sde.sigma(jnp.float32(0.5))) - 1) < 0.06  # 5 standard errors of 4000 draws

    def solve(x, steps, t_start, t_end):
        ends = dict(t_start=t_start, t_end=t_end)
        return ss.sample(KEY, ss.VP(), linear_score(1.0), x.shape, sampler=ss.DDIM(), steps=steps, x_init=x, **ends).x

    x = jnp.ones((3, 2))
    np.testing.assert_allclose(solve(solve(x, 6, 1.0, 0.4), 3, 0.4, 0.1), solve(x, 9, 1.0, 0.1), **ROUNDING)


def test_temperature_scales_all_noise():
    sde = ss.VP()

    def solve(temperature, key=KEY, x_init=None):
        return ss.sample(
            key, sde, linear_score(1.0), (3, 2), steps=7, temperature=temperature, x_init=x_init, trajectory=1
        ).trajectory

    whole, half, none = solve(1.0), solve(0.5), solve(0.0)
    np.testing.assert_allclose(half, 0.5 * whole, rtol=1e-5, atol=1e-6)  # a linear score: all is linear in the noise
    np.testing.assert_array_equal(none, 0)
    start = jnp.ones((3, 2))
    np.testing.assert_array_equal(solve(0.0, x_init=start), solve(0.0, jax.random.key(1), x_init=start))
    assert np.all(solve(0.5, x_init=start)[-1] != solve(0.5, jax.random.key(1), x_init=start)[-1])


@pytest.mark.parametrize("sampler, steps", [(ss.EulerMaruyama(), 7), (ss.Heun(), 130)], ids=["few", "many"])
def test_progress_is_told_on_the_way(sampler, steps):
    told = []

    def progress(done):
        told.append(int(done))

    plain = ss.sample(KEY, ss.VP(), linear_score(1.0), (3, 2), sampler=sampler, steps=steps)
    out = ss.sample(KEY, ss.VP(), linear_score(1.0), (3, 2), sampler=sampler, steps=steps, progress=progress)
    jax.effects_barrier()
    every = max(steps // 50, 1)
    assert sorted(told) == sorted({*range(every, steps + 1, every), steps})  # once a step, not once a row
    np.testing.assert_allclose(out.x, plain.x, **ROUNDING)


@pytest.mark.parametrize("sde", [ss.VP(), ss.VE()], ids=["VP", "VE"])
def test_denoising_gives_the_posterior_mean(sde):
    mean, covariance = np.array([1.0, -0.5], np.float32), np.array([[0.5, 0.2], [0.2, 0.3]], np.float32)
    score = ss.Gaussian(mean, covariance).score(sde)
    t = float(sde.inverse_log_snr(jnp.float32(0.0)))  # as much noise as data
    noisy, clean = (ss.sample(KEY, sde, score, (8, 2), steps=20, t_end=t, denoise=d) for d in (False, True))
    alpha, sigma = (float(f(jnp.float32(t))) for f in (sde.alpha, sde.sigma))
    gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(2))  # of E[x_0 | x_t]
    expected = mean + (np.asarray(noisy.x) - alpha * mean) @ gain.T
    np.testing.assert_allclose(clean.x, expected, rtol=1e-4, atol=1e-4)  # VE: x is a difference of numbers near 100
    assert np.abs(np.asarray(clean.x - noisy.x)).max() > 0.1


@pytest.mark.parametrize("event", [(), (2, 3, 4, 1)], ids=str)
def test_events_of_any_shape_are_sampled_as_their_flat_selves(event):
    size, sde = int(np.prod(event)), ss.VP()
    flat = ss.sample(KEY, sde, linear_score(1.0), (2, size), steps=5, denoise=True, trajectory=1)
    out = ss.sample(KEY, sde, linear_score(1.0), (2, *event), steps=5, denoise=True, trajectory=1)
    assert out.x.shape == (2, *event) and out.trajectory.shape == (2, 2, *event)
    np.testing.assert_allclose(out.x.reshape(2, size), flat.x, **ROUNDING)
    np.testing.assert_allclose(out.trajectory.reshape(2, 2, size), flat.trajectory, **ROUNDING)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_samples_have_the_dtype_of_x_init(dtype, x64):
    sde = ss.VP()
    x_init = jnp.ones((3, 2), dtype)
    assert ss.sample(KEY, sde, lambda x, t: -x, (3, 2), x_init=x_init, steps=2).x.dtype == dtype


def test_a_grid_of_whole_numbers_is_one_of_times():
    sde = ss.EDM()
    whole, times = (
        ss.sample(KEY, sde, linear_score(0.01), (3, 2), grid=jnp.array(grid)).x
        for grid in ([80, 9, 1], [80.0, 9.0, 1.0])
    )
    np.testing.assert_array_equal(whole, times)


# --- what went wrong -------------------------------------------------------------------------------------------------


def failing(x, t):
    """nan for sample 2 at the times of steps 6 and later of 10."""
    bad = (jnp.arange(x.shape[0]) == 2) & (t < 0.45)
    return jnp.where(bad[:, None], jnp.nan, -x)


def test_the_first_bad_step_is_raised():
    told = r"1 of 4 samples .* first at step 6 \(sample 2\)\. .* ss\.Clipped\(score, sde, low, high\)"
    with pytest.raises(FloatingPointError, match=told):
        ss.sample(KEY, ss.VP(), failing, (4, 2), steps=10)


def test_the_first_bad_step_is_reported_inside_a_jit():
    out = jax.jit(lambda key: ss.sample(key, ss.VP(), failing, (4, 2), steps=10))(KEY)
    assert out.first_bad_step.tolist() == [-1, -1, 6, -1]
    assert np.isfinite(out.x).all(1).tolist() == [True, True, False, True]


def test_a_bad_denoising_is_reported_as_the_step_after_the_last():
    out = jax.jit(lambda key: ss.sample(key, ss.VP(), failing, (4, 2), steps=1, t_end=0.3, denoise=True))(KEY)
    assert out.first_bad_step.tolist() == [-1, -1, 1, -1]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=0), "steps must be at least 1, got 0"),
        (dict(t_end=0.0), r"t_end must be in \[t_min, t_max\] = \[1e-05, 1\] of VP, got 0"),
        (dict(t_end=1.5), "t_end must be in"),
        (dict(t_end=1.0), "strictly falling"),
        (dict(grid=np.array([0.1, 0.5, 1.0], np.float32)), "strictly falling"),
        (dict(grid=np.array([1.0, 0.5, 0.5, 0.1], np.float32)), "strictly falling"),
        (dict(grid=np.array([1.0, np.nan, 0.1], np.float32)), "strictly falling"),
        (dict(grid=np.array([2.0, 0.5], np.float32)), "start of the grid"),
        (dict(grid=np.array([1.0], np.float32)), "at least two times"),
        (dict(grid=np.ones((2, 2), np.float32)), "at least two times"),
        (dict(x_init=np.ones((4, 3), np.float32)), r"x_init of shape \(4, 2\), got \(4, 3\)"),
        (dict(x_init=np.ones((4, 2), np.int32)), "x_init must be an array of floating-point numbers, got .* int32"),
        (dict(trajectory=11), r"trajectory must be in 1..10, the number of steps; got 11"),
        (dict(trajectory=0), "trajectory must be at least 1, got 0"),
        (dict(trajectory=3, grid=np.array([1.0, 0.5, 0.1], np.float32)), "trajectory must be in 1..2"),
        (dict(t_start=1.5), r"t_start must be in \[t_min, t_max\] = \[1e-05, 1\] of VP, got 1.5"),
        (dict(t_start=0.0), "t_start must be in"),
        (dict(t_start=0.5, t_end=0.5), "strictly falling"),
        (dict(t_start=0.2, t_end=0.5), "strictly falling"),
        (dict(key=jax.random.split(KEY, 3)), "one key or 4 keys"),
        (dict(key=jax.random.key(0, impl="rbg")), "threefry"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_before_anything_compiles(options, message):
    compiled = loop._solve.cache_size()
    arguments = dict(key=KEY, steps=10) | options
    arguments |= {k: jnp.asarray(v) for k, v in options.items() if k in ("grid", "x_init")}
    with pytest.raises(ValueError, match=message):
        ss.sample(sde=ss.VP(), score=lambda x, t: -x, shape=(4, 2), **arguments)
    assert loop._solve.cache_size() == compiled


@pytest.mark.parametrize(
    "score, got",
    [
        (lambda x, t: -x[:, :1], r"got shape \(4, 1\)"),
        (lambda x, t: -x.sum(), r"got shape \(\)"),
        (lambda x, t: -x.astype(jnp.bfloat16), "bfloat16"),
    ],
    ids=["event", "scalar", "dtype"],
)
def test_a_score_that_is_not_like_x_is_refused(score, got):
    with pytest.raises(TypeError, match=got):
        ss.sample(KEY, ss.VP(), score, (4, 2), steps=10)


def test_a_sampler_of_ones_own_needs_advance_only():
    class Shrink(ss.Sampler):
        def advance(self, sde, score, x, memory, row, draw):
            return x * (row.t_next / row.t), memory

    x_init = jnp.ones((3, 2))
    out = ss.sample(KEY, ss.VP(), lambda x, t: -x, (3, 2), sampler=Shrink(), steps=8, t_end=0.25, x_init=x_init)
    np.testing.assert_allclose(out.x, 0.25, rtol=1e-6)  # the product of all t_next / t


def test_a_sampler_without_advance_says_so():
    class Idle(ss.Sampler):
        pass

    with pytest.raises(TypeError, match="Idle must define advance"):
        ss.sample(KEY, ss.VP(), lambda x, t: -x, (3, 2), sampler=Idle(), steps=2)
