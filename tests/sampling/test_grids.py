"""Time grids: exact ends, equal steps in what defines them, strictly falling even in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.sampling.loop import make_times
from tests.catalogue import GRIDS, SDES, name

STEPS = 1000  # the most that is usual; one number, so that the operations compile once


def rho(sde, t):
    return np.exp(-0.5 * np.asarray(sde.log_snr(t)))


EQUAL_STEPS_IN = {  # what a grid has equal steps in
    "uniform": lambda sde, t: np.asarray(t),
    "quadratic": lambda sde, t: np.sqrt(t),
    "log_snr": lambda sde, t: np.asarray(sde.log_snr(t)),
    "edm": lambda sde, t: rho(sde, t) ** (1 / 7),
}
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.__name__)
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)


@every_sde
@every_grid
def test_steps_are_equal_in_the_grid_s_own_variable(sde, grid, x64):
    for start, end in ((sde.t_max, sde.t_sampling), (0.8 * sde.t_max, 0.03 * sde.t_max)):
        times = grid(sde, STEPS, start, end)
        assert times.dtype == jnp.float64 and times.shape == (STEPS + 1,)
        assert times[0] == start and times[-1] == end  # to the last bit
        assert np.all(np.diff(times) < 0)
        values = EQUAL_STEPS_IN[grid.__name__](sde, times)
        equal = np.linspace(values[0], values[-1], STEPS + 1)
        # float64; 1 - t, which CosineVP and RectifiedFlow hang on, loses two digits: measured at most 1.9e-14
        np.testing.assert_allclose(values, equal, rtol=0, atol=1e-13 * np.abs(values).max())


@every_sde
@every_grid
def test_grids_fall_strictly_in_float32(sde, grid):
    times = grid(sde, STEPS, sde.t_max, sde.t_sampling)
    assert times.dtype == jnp.float32
    assert times[0] == np.float32(sde.t_max) and times[-1] == np.float32(sde.t_sampling)
    assert np.all(np.diff(times) < 0)
    values = EQUAL_STEPS_IN[grid.__name__](sde, times)
    equal = np.linspace(values[0], values[-1], STEPS + 1)
    # measured at most 1e-5 (RectifiedFlow near t = 1; 4e-7 for SDEs whose alpha does not vanish)
    np.testing.assert_allclose(values, equal, rtol=0, atol=3e-5 * np.abs(values).max())


@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_edm_is_the_published_grid(rho, x64):
    sde, i = ss.EDM(0.002, 80.0), np.arange(STEPS + 1)
    grid = ss.grids.edm if rho == 7 else functools.partial(ss.grids.edm, rho=rho)
    published = (80 ** (1 / rho) + i / STEPS * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho  # eq. 5
    np.testing.assert_allclose(make_times(sde, grid, STEPS, None, 0.002), published, rtol=1e-12)


@every_grid
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_there_are_as_many_steps_as_asked_for(grid, steps):
    sde = ss.VP()
    times = make_times(sde, grid, steps, None, sde.t_sampling)
    assert times.shape == (steps + 1,) and times[0] == 1.0 and times[-1] == np.float32(1e-3)


def test_a_grid_of_one_s_own_is_used_as_it_is():
    sde, times = ss.VP(), jnp.array([1.0, 0.7, 0.1, 0.001])
    np.testing.assert_array_equal(make_times(sde, times, 0, None, None), times)
    out = ss.sample(jax.random.key(0), sde, lambda x, t: -x, (2, 3), grid=times, steps=99)
    assert out.nfe.tolist() == [3, 3]  # `steps` has no say


def cubic(sde, steps, t_start, t_end):
    return jnp.linspace(t_start ** (1 / 3), t_end ** (1 / 3), steps + 1) ** 3


def test_a_rule_of_one_s_own_serves_as_grid():
    sde = ss.VP()
    times = make_times(sde, cubic, 4, 0.9, 0.1)
    np.testing.assert_allclose(times, np.linspace(0.9 ** (1 / 3), 0.1 ** (1 / 3), 5) ** 3, rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(t_start=0.1, t_end=0.1), "strictly falling"),
        (dict(t_start=0.1, t_end=0.5), "strictly falling"),
        (dict(t_start=1.2), r"t_start must be in \[t_min, t_max\] = \[1e-05, 1\] of VP, got 1.2"),
        (dict(t_end=1e-7), r"t_end must be in \[t_min, t_max\] = \[1e-05, 1\] of VP, got 1e-07"),
        (dict(t_end=float("nan")), "t_end must be a real number, got nan"),
        (dict(steps=0), "steps must be at least 1, got 0"),
        (dict(steps=-3), "steps must be at least 1, got -3"),
    ],
    ids=str,
)
@every_grid
def test_bad_input_is_refused(grid, options, message):
    with pytest.raises(ValueError, match=message):
        ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (2, 3), grid=grid, **dict(steps=5) | options)
