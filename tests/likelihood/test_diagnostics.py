"""Diagnostics against what they must add up to, and against errors that were put in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss

KEY = jax.random.key(0)
SDE, TARGET = ss.VP(), ss.GaussianMixture([[1.0, -0.5], [-0.8, 0.6]], [0.3, 0.5])


@pytest.mark.slow
def test_the_parts_of_the_bound_add_up_to_it():
    x = TARGET.sample(jax.random.key(1), 400)
    log_snr, nats = ss.bound_by_noise_level(KEY, SDE, TARGET.score(SDE), x, bins=60)
    whole = ss.continuous_bound(jax.random.key(2), SDE, TARGET.score(SDE), x, draws=60)
    spread = float(whole.diffusion.std()) / 400**0.5
    assert abs(float(nats.sum() - whole.diffusion.mean())) < 4.5 * 2**0.5 * spread
    assert (np.diff(log_snr) > 0).all() and log_snr.shape == nats.shape == (60,)
    # Where all is noise nothing is lost; where there is none the noise cannot be told: 1/2 * 2 dimensions per log-SNR.
    width = float(log_snr[1] - log_snr[0])
    assert nats[0] < 1e-2 and nats[-1] == pytest.approx(width, rel=0.3)


def test_the_error_of_the_score_is_the_one_that_was_put_in():
    times = jnp.array([0.01, 0.3, 1.0])

    def wrong(x, t):
        return TARGET.score(SDE)(x, t) + 0.02 / SDE.sigma(t)[:, None]

    np.testing.assert_allclose(ss.score_error(KEY, SDE, wrong, TARGET, times), 0.02, rtol=1e-2)
    assert (ss.score_error(KEY, SDE, TARGET.score(SDE), TARGET, times) == 0).all()


def test_energy_distance_of_normals_is_that_of_the_closed_form():
    # E|N(d, 2)| in one dimension; for d = 0 all three terms are the same
    a, b = (jax.random.normal(key, (3000, 1)) for key in jax.random.split(KEY))
    assert abs(float(ss.energy_distance(a, b))) < 5e-3  # standard deviation of the estimate: some 1e-3
    far = ss.energy_distance(a, b + 10)
    assert float(far) == pytest.approx(2 * 10 - 2 * 2 / np.pi**0.5, rel=0.01)


@pytest.mark.slow
def test_the_flow_and_the_reverse_sde_agree_on_an_exact_score_alone():
    score = TARGET.score(SDE)

    def spread(score):
        flow = ss.sample_adaptive(KEY, SDE, score, (1500, 2)).x
        sde = ss.sample(jax.random.key(1), SDE, score, (1500, 2), sampler=ss.SDEDPMSolverPP(), steps=60,
                        grid=ss.grids.log_snr).x  # fmt: skip
        return float(ss.energy_distance(flow, sde))

    assert spread(score) < 0.01 < 0.05 < spread(lambda x, t: 0.6 * score(x, t))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="bins must be at least 1"):
        ss.bound_by_noise_level(KEY, SDE, TARGET.score(SDE), jnp.zeros((2, 2)), bins=0)
