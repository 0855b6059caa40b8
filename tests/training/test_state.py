"""The training step: Adam's published settings, the average, and steps that must not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.training.state import adam, init_state, make_dispatch, make_step

DEVICES = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])


def quadratic(params, batch, key):
    return jnp.mean(jnp.square(params["w"] - batch))


def start(optimizer):
    return init_state(lambda key: {"w": jnp.zeros(3)}, optimizer, seed=0)


def test_the_learning_rate_warms_up_from_zero():
    optimizer = adam(learning_rate=0.1, warmup=4, clip_norm=0.0)
    state = start(optimizer)
    step = jax.jit(make_step(quadratic, optimizer, 0.9))
    moves = []
    for _ in range(6):
        before = state.params["w"]
        state, _ = step(state, jnp.full((3,), 1e4))  # far away: the gradient hardly changes, so Adam moves by its rate
        moves.append(float((state.params["w"] - before)[0]))
    np.testing.assert_allclose(moves, [0, 0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-3, atol=1e-7)


def test_gradients_are_clipped_to_the_global_norm():
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    optimizer = adam(1.0, 0, clip_norm=1.0, eps=1e6)  # a huge eps makes Adam proportional to the gradient
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose([-updates["a"][0] * 1e6, -updates["b"][0] * 1e6], [0.6, 0.8], rtol=1e-5)


def test_the_average_is_the_published_recursion_whose_rate_starts_low():
    optimizer = adam(0.1, 0, 0.0)
    state, step = start(optimizer), jax.jit(make_step(quadratic, optimizer, 0.25))
    expected = np.zeros(3)
    for rate in (1 / 10, 2 / 11, 3 / 12, 0.25, 0.25):
        state, _ = step(state, jnp.ones(3))
        expected = rate * expected + (1 - rate) * np.asarray(state.params["w"])
    np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(bad):
    optimizer = adam(0.1, 0, 1.0)
    step = jax.jit(make_step(quadratic, optimizer, 0.9))
    good, _ = step(start(optimizer), jnp.ones(3))
    state, _ = step(good, jnp.full((3,), bad))
    state, _ = step(state, jnp.full((3,), bad))
    for name in ("params", "ema", "opt_state"):
        for old, new in zip(jax.tree.leaves(getattr(good, name)), jax.tree.leaves(getattr(state, name)), strict=True):
            np.testing.assert_array_equal(old, new)
    assert (int(state.step), int(state.bad_steps), int(state.skipped)) == (3, 2, 2)
    state, _ = step(state, jnp.ones(3))
    assert (int(state.bad_steps), int(state.skipped)) == (0, 2)


def test_several_steps_in_one_dispatch_are_the_same_steps():
    def noisy(params, batch, key):
        return jnp.mean(jnp.square(params["w"] - batch + jax.random.normal(key, (3,))))

    optimizer = adam(0.1, 2, 1.0)
    dispatch = make_dispatch(make_step(noisy, optimizer, 0.9), state_sharding=DEVICES, batch_sharding=DEVICES)
    batches = jnp.arange(12.0).reshape(4, 3)
    together, metrics = dispatch(start(optimizer), batches)
    single = start(optimizer)
    for batch in batches:
        single, _ = dispatch(single, batch[None])
    assert metrics.loss.shape == (4,)
    # one program against four: to rounding
    np.testing.assert_allclose(together.params["w"], single.params["w"], rtol=1e-5)
    assert int(together.step) == int(single.step) == 4


def test_no_second_compilation():
    optimizer = adam(0.1, 2, 1.0)
    dispatch = make_dispatch(make_step(quadratic, optimizer, 0.9), state_sharding=DEVICES, batch_sharding=DEVICES)
    state = jax.device_put(start(optimizer), DEVICES)
    for value in (1.0, 2.0, 3.0):
        state, _ = dispatch(state, jnp.full((1, 3), value))
    assert dispatch._cache_size() == 1
