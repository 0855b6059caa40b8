"""EDM's augmentation: what the labels say is what happened, and images that nothing happens to stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.config import base_config, build
from score_sde.training import augmentation
from score_sde.training.augmentation import LABELS, Change, augment, draw
from tests.sampling.planned import compiled_quickly

IMAGE = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 16, 3)), jnp.float32)
change = jax.jit(augmentation.change)
NOTHING = dict(flip_x=0.0, flip_y=0.0, scale=0.0, angle=0.0, stretch=0.0, axis=0.0, shift=(0.0, 0.0))


def make(**how):
    return Change(*(jnp.asarray(value, jnp.float32) for value in {**NOTHING, **how}.values()))


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_flips_and_whole_pixels_are_exact():
    assert not make().label().any() and (change(IMAGE, make()) == IMAGE).all()
    assert (change(IMAGE, make(flip_x=1.0)) == IMAGE[:, ::-1]).all()
    assert (change(IMAGE, make(flip_y=1.0)) == IMAGE[::-1]).all()
    shifted = change(IMAGE, make(shift=(0.5, 2.0)))  # eighths: one pixel to the right, two down
    assert (shifted[2:, 1:] == IMAGE[:-2, :-1]).all()
    assert (shifted[1, 1:] == IMAGE[1, :-1]).all() and (shifted[2:, 0] == IMAGE[:-2, 1]).all()  # reflected at the edge
    square = IMAGE[:, :8]
    close(change(square, make(angle=np.pi / 2)), jnp.rot90(square))
    close(change(square, make(angle=np.pi)), square[::-1, ::-1])


def test_scales_and_stretches_go_about_the_centre():
    """Of an image that is linear, where cubic convolution is exact: away from its edges."""
    y, x = jnp.meshgrid(jnp.arange(16.0) - 7.5, jnp.arange(16.0) - 7.5, indexing="ij")
    ramps, inside = jnp.stack([x, y], -1), np.s_[4:12, 4:12]
    found = {key: change(ramps, make(**{key: 2.0}))[inside] for key in ("scale", "stretch")}
    s = 2**0.4
    close(found["scale"], ramps[inside] / s)
    close(found["stretch"], ramps[inside] * jnp.array([1 / s, s]))
    across = change(ramps, make(stretch=2.0, axis=np.pi / 2))[inside]
    close(across, ramps[inside] * jnp.array([s, 1 / s]))
    # at 45 degrees to the right and up, that is along (1, -1), with y downwards
    aslant = change(ramps, make(stretch=2.0, axis=np.pi / 4))[inside]
    along, across = (ramps @ jnp.array([1.0, sign])[:, None] for sign in (-1.0, 1.0))
    close(aslant @ jnp.array([1.0, -1.0]), along[inside][..., 0] / s)
    close(aslant @ jnp.array([1.0, 1.0]), across[inside][..., 0] * s)


def test_labels_are_those_of_the_change_and_of_its_key():
    keys = jax.random.split(jax.random.key(0), 2000)
    how = jax.vmap(draw, (0, None))(keys, 0.12)
    labels = np.asarray(jax.vmap(Change.label)(how))
    assert labels.shape == (2000, LABELS)
    rates = [
        np.mean(part != 0) for part in (how.flip_x, how.flip_y, how.scale, how.angle, how.stretch, how.shift[:, 0])
    ]
    np.testing.assert_allclose(rates, [0.5, 0.06, 0.12, 0.12, 0.12, 0.12], atol=0.045)  # four standard errors
    np.testing.assert_allclose(labels[:, 3], np.cos(how.angle) - 1, atol=1e-6)
    np.testing.assert_allclose(labels[:, 5:7] ** 2 @ np.ones(2), np.square(how.stretch), rtol=1e-4)
    np.testing.assert_array_equal(labels[:, 7:], how.shift)
    images = jnp.stack([IMAGE] * 6)
    run = jax.jit(augment)
    got, told = run(jax.random.key(1), images, 0.9)
    again, _ = run(jax.random.key(1), images, 0.9)
    np.testing.assert_array_equal(got, again)
    assert np.isfinite(got).all() and len({image.tobytes() for image in np.asarray(got)}) == 6
    same, zeros = run(jax.random.key(1), images, 0.0)
    assert (same == images).all() and not zeros.any() and told.any()


@pytest.fixture(scope="module")
def experiment():
    c = base_config()
    with c.unlocked():
        c.data.name, c.data.size, c.data.channels = "images", 8, 1
        c.model.nf, c.model.ch_mult, c.model.num_res_blocks, c.model.attn_resolutions = 8, (1,), 1, ()
        c.model.augment_dim, c.model.dropout, c.objective.augment_probability = 9, 0.0, 0.5
    return build(c).experiment


@pytest.mark.slow
def test_a_network_with_labels_trains_and_samples_without(experiment):
    params = experiment.init(jax.random.key(0))
    assert params["augment"]["kernel"].shape == (9, 8)
    batch = {"x": jax.random.randint(jax.random.key(1), (16, 8, 8, 1), 0, 40).astype(jnp.uint8)}

    @jax.jit
    def step(params, key):
        loss, slopes = jax.value_and_grad(experiment.loss)(params, batch, key)
        return jax.tree.map(lambda p, g: p - 0.03 * g, params, slopes), loss, slopes["augment"]["kernel"]

    trained, losses = params, []
    with compiled_quickly():
        for n in range(30):
            trained, loss, slope = step(trained, jax.random.key(n))
            losses.append(float(loss))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10]), losses
    assert jnp.abs(slope).max() > 0  # the labels do reach the network
    # sampling tells it nothing, which is zeros: the weights of the labels do not matter
    x, t = jnp.ones((2, 8, 8, 1)), jnp.array([0.3, 0.7])
    other = trained | {"augment": {"kernel": trained["augment"]["kernel"] + 1.0}}
    np.testing.assert_array_equal(experiment.score(trained)(x, t), experiment.score(other)(x, t))
