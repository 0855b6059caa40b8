"""The state of training, and the step that advances it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from score_sde.trees import Frozen


class State(Frozen):
    """All that training carries, as one pytree of arrays.

    Everything random in step n comes from fold_in(key, n), and batch n from (seed, n): a resumed run is the run.
    """

    step: Array  # steps done
    params: Any
    ema: Any  # exponential moving average of params
    opt_state: Any
    key: Array
    bad_steps: Array  # steps in a row whose loss or gradient was not finite
    skipped: Array  # all such steps so far


class StepMetrics(Frozen):
    """Of one step; `loss` and `grad_norm` may be nan where it was skipped, and are nan where training has halted."""

    loss: Array
    grad_norm: Array
    bad_steps: Array  # as in the state after the step


def adam(
    learning_rate: float, warmup: int, clip_norm: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam as published: learning_rate * min(step / warmup, 1), step from 0; gradients clipped to a global norm."""
    schedule = optax.linear_schedule(0.0, learning_rate, warmup) if warmup else learning_rate
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity()
    return optax.chain(clip, optax.adam(schedule, b1=beta1, b2=beta2, eps=eps))


def init_state(init: Callable[[Array], Any], optimizer: optax.GradientTransformation, seed: int) -> State:
    """The state at step 0, a function of the seed; `init(key)` makes the parameters."""
    key_params, key = jax.random.split(jax.random.key(seed))
    params = init(key_params)
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params)  # a copy: donated buffers must not be shared
    return State(zero, params, ema, optimizer.init(params), key, zero.copy(), zero.copy())


def make_step(
    loss: Callable[[Any, Any, Array], Array],
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    max_bad_steps: int = 20,
) -> Callable[[State, Any], tuple[State, StepMetrics]]:
    """The training step `(state, batch) -> (state, metrics)` for `loss(params, batch, key)`.

    A step whose loss or gradient is not finite changes neither parameters nor moments nor averages; it is counted.
    After `max_bad_steps` of them in a row training has halted: a step changes nothing, nor is it counted, until the
    host, which looks later, sees it.
    The rate of the average starts low, min(ema_rate, (1 + n) / (10 + n)) in step n: an average that still holds the
    initial weights predicts too little, and its samples are noise long after the network has learned.
    """

    def step(state: State, batch: Any) -> tuple[State, StepMetrics]:
        value, gradient = jax.value_and_grad(loss)(state.params, batch, jax.random.fold_in(state.key, state.step))
        norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = jnp.minimum(ema_rate, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, state.ema, 1 - rate)
        going = state.bad_steps < max_bad_steps
        good = jnp.isfinite(value) & jnp.isfinite(norm) & going
        old, new = (state.params, state.ema, state.opt_state), (params, ema, opt_state)
        params, ema, opt_state = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
        bad = jnp.where(good, 0, state.bad_steps + going)
        skipped = state.skipped + (going & ~good)
        state = State(state.step + going, params, ema, opt_state, state.key, bad, skipped)
        value, norm = (jnp.where(going, v, jnp.nan) for v in (value, norm))
        return state, StepMetrics(value, norm, bad)

    return step


def make_dispatch(step: Callable, *, state_sharding: Any, batch_sharding: Any) -> Callable:
    """Several steps in one compiled program: `(state, batches of (k, B, ...)) -> (state, metrics (k,))`.

    The old state's memory is given to the new one: do not touch it afterwards.
    """

    def dispatch(state: State, batches: Any) -> tuple[State, StepMetrics]:
        if len(jax.tree.leaves(batches)[0]) == 1:  # no loop where nothing is repeated
            state, metrics = step(state, jax.tree.map(lambda x: x[0], batches))
            return state, jax.tree.map(lambda m: m[None], metrics)
        return jax.lax.scan(step, state, batches)

    return jax.jit(
        dispatch,
        donate_argnums=0,
        in_shardings=(state_sharding, batch_sharding),
        out_shardings=(state_sharding, state_sharding),
    )
