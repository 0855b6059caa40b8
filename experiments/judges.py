"""Judges of samples: small convolutional classifiers, trained in minutes on clean images, that know of no noise."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_sde.data import batches

SLICE = 1000  # images at once, so that ten thousand fit in memory


class Judge(nn.Module):
    """The logits of the classes of 8x8 or 28x28 images with grey levels in 0..levels-1."""

    levels: int

    @nn.compact
    def __call__(self, x, key=None):
        x = x.astype(jnp.float32) * (2 / (self.levels - 1)) - 1
        if x.shape[1] > 8:  # blocks of 2x2 pixels as channels: pooling would take most of the time
            n, side, _, channels = x.shape
            x = x.reshape(n, side // 2, 2, side // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
            x = x.reshape(n, side // 2, side // 2, 4 * channels)
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.max_pool(nn.relu(nn.Conv(64, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(0.5, deterministic=key is None)(x, rng=key)
        return nn.Dense(10)(x)


def train_judge(train, test, steps: int = 1500, batch: int = 64) -> tuple[Callable, float]:
    """`f(images (N, H, W, C)) -> probabilities (N, 10)` of a judge of one source, and its accuracy on another."""
    net, optimizer = Judge(train.levels), optax.adam(1e-3)
    params = net.init(jax.random.key(0), jnp.zeros((1, *train.shape)))
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, batch, key):
        def loss(p):
            logits = net.apply(p, batch["x"], key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    stream = batches(train, batch, seed=0)
    for n in range(steps):
        params, opt_state = step(params, opt_state, next(stream), jax.random.fold_in(jax.random.key(1), n))
    stream.close()
    of_slice = jax.jit(lambda x: jax.nn.softmax(net.apply(params, x)))

    def probabilities(x):
        return np.concatenate([of_slice(x[i : i + SLICE]) for i in range(0, len(x), SLICE)])

    images = test[np.arange(len(test))]
    return probabilities, float(np.mean(np.argmax(probabilities(images["x"]), -1) == images["label"]))
