"""Presets against the recurrences of the papers, written out in NumPy: the same noise, the same samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.config.names import SAMPLERS
from score_sde.config.presets import PRESETS
from score_sde.sampling.loop import march
from score_sde.trees import Frozen
from tests.sampling import planned

N = 1000
STD = 0.4  # of the data
START = np.array([[1.5, -0.3]])


class Score(Frozen):
    """Of N(0, STD^2)."""

    sde: ss.AffineSDE

    def __call__(self, x, t):
        return -x / ((self.sde.alpha(t) * STD) ** 2 + self.sde.sigma(t) ** 2)[:, None]


def ours(sde, sampler, times, x, z):
    """The state at the end of the grid, from x at its start; row k draws z[k]."""
    with planned.compiled_quickly():
        run = jax.jit(lambda x, z: march(sde, Score(sde), sampler, times, x, lambda n, k, like: z[n][None])[0])
        return np.asarray(run(jnp.asarray(x), jnp.asarray(z)))


def preset(name):
    values = dict(PRESETS[name][1])
    cls = SAMPLERS[values.pop("sampler")]
    return cls(**{field: values[field] for field in cls.__dataclass_fields__ if field in values}), values["steps"]


def reverse_diffusion(x, s, m, v, z):
    return (2 - m) * x + v * s + np.sqrt(v) * z


def ancestral(x, s, m, v, z):
    return (x + v * s) / m + np.sqrt(v) * z


@pytest.mark.parametrize("formula", [reverse_diffusion, ancestral])
def test_vp_takes_the_steps_of_ddpm_s_chain(formula, x64):
    """beta_i, linear from 0.1/N to 20/N, at the times from 1 to 1e-3 (Song et al. 2021, appendices E and F)."""
    sampler, steps = (ss.ReverseDiffusion(published=True), N - 1) if formula is reverse_diffusion else preset("ddpm")
    sde, times, z = ss.VP(), np.linspace(1.0, 1e-3, N), np.random.default_rng(0).normal(size=(N, 2))
    betas = np.linspace(0.1 / N, 20 / N, N)
    assert steps == N - 1  # the last step of the chain is that to the data: `denoise`
    variances = (np.asarray(sde.alpha(times)) * STD) ** 2 + np.asarray(sde.sigma(times)) ** 2
    x = START
    for k in range(N - 1):
        beta = betas[N - 1 - k]
        x = formula(x, -x / variances[k], np.sqrt(1 - beta), beta, z[k])
    np.testing.assert_allclose(ours(sde, sampler, jnp.asarray(times), START, z), x, rtol=1e-10)
    default = ss.ReverseDiffusion().plan(sde, jnp.asarray(times)).weights[:, 0]
    chain = sampler.plan(sde, jnp.asarray(times)).weights[:, 0]
    assert 1e-4 < np.abs(np.asarray(chain - default)).max() < 5e-3  # why it has a name


def test_ve_takes_the_steps_of_smld_s_chain(x64):
    """sigma_i, geometric from 0.01 to 50: the default and the published steps are one (Song et al. 2021, eq. 46)."""
    sampler, steps = preset("song_ve")
    sde, times, sigmas = ss.VE(), jnp.linspace(1.0, 1e-5, N), np.geomspace(0.01, 50, N)[::-1]
    assert steps == N - 1
    plan = sampler.plan(sde, times)
    np.testing.assert_allclose(plan.decay, 1.0, rtol=1e-12)
    # the published code truncates times to levels: 1.7e-4 of a variance, at the end
    np.testing.assert_allclose(plan.weights[:, 0], sigmas[:-1] ** 2 - sigmas[1:] ** 2, rtol=2e-4)
    np.testing.assert_allclose(plan.noise**2, plan.weights[:, 0], rtol=1e-12)
    np.testing.assert_allclose(plan.weights, ss.ReverseDiffusion().plan(sde, times).weights, rtol=0)


def test_subvp_takes_the_steps_of_euler_maruyama(x64):
    times = jnp.linspace(1.0, 1e-3, 20)
    one, two = (s.plan(ss.SubVP(), times) for s in (ss.ReverseDiffusion(published=True), ss.EulerMaruyama()))
    for field in ("decay", "weights", "noise"):
        np.testing.assert_allclose(getattr(one, field), getattr(two, field), rtol=1e-12)


def test_edm_stochastic_is_algorithm_2(x64):
    """All N steps of Karras et al. 2022, the last one to sigma = 0, with the churn of table 5."""
    sampler, steps = preset("edm_stochastic")
    n, sde = steps + 1, ss.EDM()
    z = np.random.default_rng(0).normal(size=(n, 2))
    t = (80 ** (1 / 7) + np.arange(n) / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    t[0], t[-1] = 80, 0.002
    x = START * 80
    for now, then, noise in zip(t[:-1], t[1:], z, strict=False):
        gamma = min(40 / n, 2**0.5 - 1) if 0.05 <= now <= 50 else 0
        hat = now + gamma * now
        x_hat = x + np.sqrt(hat**2 - now**2) * 1.003 * noise
        slope = x_hat * hat / (STD**2 + hat**2)  # (x - D)/sigma
        x = x_hat + (then - hat) * slope
        x = x_hat + (then - hat) * 0.5 * (slope + x * then / (STD**2 + then**2))
    rows = np.zeros((2 * steps, 2))
    rows[1:-1:2] = z[1:steps]  # the noise of a step is drawn at the end of the one before
    np.testing.assert_allclose(ours(sde, sampler, jnp.asarray(t), START * 80, rows), x, rtol=1e-9)
