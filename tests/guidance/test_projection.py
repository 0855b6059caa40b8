"""Projection and RePaint: the mended defects of the published samplers, and how near they come on a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.guidance.operators import GreyScale, Mask
from tests.guidance.exact import SDE, Counted

PRIOR = np.array([[1.0, 0.8], [0.8, 1.0]])
KNOWN = 1.5  # of the first coordinate: the second is then N(1.2, 0.36)


def prior():
    return ss.Gaussian(jnp.zeros(2), jnp.array(PRIOR.tolist()))


def inpaint(kind=ss.Projection, sampler=None, **options):
    mask = Mask((2,), jnp.array([1.0, 0.0]))
    return kind(ss.Ancestral() if sampler is None else sampler, mask, jnp.array([[KNOWN, jnp.nan]]), **options)


def run(sampler, n=4000, key=0, **options):
    return ss.sample(jax.random.key(key), SDE, prior().score(SDE), (n, 2), sampler=sampler, **options)


def test_known_region_is_as_noisy_as_the_marginal_and_denoising_leaves_no_noise():
    """Of published code the start is without noise there, and the end keeps a step of noise elsewhere."""
    seen, n = [], 4000

    def score(x, t):
        jax.debug.callback(lambda x, t: seen.append((np.asarray(x), float(t[0]))), x, t)
        return prior().score(SDE)(x, t)

    x = jnp.zeros((n, 2))  # a start that is far from any marginal: only what is known is put right
    run = dict(sampler=inpaint(), steps=4, x_init=x, t_start=0.6, t_end=0.1, denoise=True)
    out = ss.sample(jax.random.key(0), SDE, score, x.shape, **run)
    jax.effects_barrier()
    for x, t in seen:  # the states at which the score is asked, the first is the start
        alpha, sigma = float(SDE.alpha(jnp.array(t))), float(SDE.sigma(jnp.array(t)))
        np.testing.assert_allclose(x[:, 0].mean(), alpha * KNOWN, atol=5 * sigma / np.sqrt(n))
        np.testing.assert_allclose(x[:, 0].std(), sigma, rtol=5 / np.sqrt(2 * n))
    assert len(seen) == 5 and (seen[0][0][:, 1] == 0).all()
    # What is known is y itself; the rest the posterior mean at the last state, alpha C (alpha^2 C + sigma^2)^-1 x.
    tweedie = x @ np.linalg.inv(alpha**2 * PRIOR + sigma**2 * np.eye(2)) @ PRIOR * alpha
    np.testing.assert_array_equal(out.x[:, 0], KNOWN)
    np.testing.assert_allclose(out.x[:, 1], tweedie[:, 1], atol=1e-5)


def error(sampler, **options):
    """Of the unknown coordinate: |mean - 1.2| and standard deviation over 0.6."""
    x = np.asarray(run(sampler, n=2000, steps=50, denoise=True, **options).x[:, 1])
    return abs(x.mean() - 0.8 * KNOWN), x.std() / 0.6


@pytest.mark.slow
def test_repaint_comes_nearer_than_projection():
    """Neither is exact; going back makes what is unknown agree with what is known."""
    once, often = error(inpaint()), error(inpaint(ss.RePaint, jump=5, repeats=10))
    assert once[0] > 0.1  # measured 0.20: projection does not reach the conditional mean
    assert often[0] < 0.5 * once[0]


def test_colours_keep_their_grey(x64):
    """In the image of A^T alone: what grey-scale does not see is left as it is."""
    grey = GreyScale((2, 2, 3))
    y, x = jnp.linspace(-1.0, 1.0, 4).reshape(1, 2, 2, 1), jax.random.normal(jax.random.key(0), (3, 2, 2, 3))
    put = ss.Projection(ss.Ancestral(), grey, y, iterations=1).finish(x)  # A A^T is a multiple of 1
    np.testing.assert_allclose(grey(put), jnp.broadcast_to(y, (3, 2, 2, 1)), atol=1e-12)
    weights = np.array([0.299, 0.587, 0.114])
    moved = np.asarray(put - x)
    np.testing.assert_allclose(moved, (moved @ weights / (weights @ weights))[..., None] * weights, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ss.Projection, pytest.param(ss.RePaint, marks=pytest.mark.slow)])
def test_samples_do_not_know_their_batch(kind):
    keys = jax.random.split(jax.random.key(1), 64)
    x = ss.sample(keys, SDE, prior().score(SDE), (64, 2), sampler=inpaint(kind), steps=20).x
    one = ss.sample(keys[9:10], SDE, prior().score(SDE), (1, 2), sampler=inpaint(kind), steps=20).x
    np.testing.assert_allclose(one[0], x[9], atol=1e-5)


def test_repaint_counts_its_evaluations_and_keeps_its_steps():
    """23 steps in blocks of 10, 10 and 3, each three times; a trajectory holds each step's last visit."""
    score = Counted(prior().score(SDE))
    sampler = inpaint(ss.RePaint, jump=10, repeats=3)
    out = ss.sample(jax.random.key(0), SDE, score, (4, 2), sampler=sampler, steps=23, trajectory=23)
    assert out.nfe.tolist() == [69] * 4 == [len(score.counted())] * 4
    np.testing.assert_array_equal(out.trajectory[-1], out.x)
    assert np.isfinite(out.trajectory).all() and np.abs(np.diff(out.trajectory, axis=0)).max((1, 2)).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", [ss.Heun(), ss.DPMSolverPP(2), ss.PredictorCorrector(ss.ReverseDiffusion(), ss.Langevin())]
)
def test_projection_goes_with_every_sampler(sampler):
    out = run(inpaint(sampler=sampler), n=500, steps=50, denoise=True)
    np.testing.assert_array_equal(out.x[:, 0], KNOWN)
    assert 0.5 < out.x[:, 1].mean() < 1.4


def test_they_have_no_likelihood_and_say_so():
    sampler = inpaint()
    with pytest.raises(TypeError, match="no probability-flow ODE and so no likelihood"):
        ss.log_prob(jax.random.key(0), SDE, sampler, jnp.zeros((1, 2)))
    with pytest.raises(TypeError, match="no probability-flow ODE"):
        ss.sample_adaptive(jax.random.key(0), SDE, sampler, (1, 2))
    with pytest.raises(ValueError, match="deterministic"):
        ss.encode(SDE, prior().score(SDE), jnp.zeros((1, 2)), sampler=sampler)


def test_bad_input_is_refused():
    mask = Mask((2,), jnp.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="finite values of y"):
        ss.Projection(ss.Ancestral(), mask, jnp.array([[jnp.nan, 0.0]]))
    with pytest.raises(ValueError, match="expected y of shape"):
        ss.Projection(ss.Ancestral(), mask, jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="a batch of 4, got 3"):
        run(ss.Projection(ss.Ancestral(), mask, jnp.zeros((3, 2))), n=4, steps=2)
    with pytest.raises(ValueError, match="expected x of shape"):
        ss.sample(jax.random.key(0), SDE, lambda x, t: -x, (4, 5), sampler=inpaint(), steps=2)
    with pytest.raises(ValueError, match="remembers none, got Heun"):
        run(inpaint(ss.RePaint, ss.Heun()), n=4, steps=2)
    with pytest.raises(ValueError, match="remembers none, got DPMSolverPP"):
        run(inpaint(ss.RePaint, ss.DPMSolverPP(2)), n=4, steps=2)
    with pytest.raises(ValueError, match="at least 1"):
        inpaint(ss.RePaint, jump=0)
