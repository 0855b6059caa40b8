"""What is learned: an SDE, a network and data, and the few functions of them that every mode shares.

`Experiment` learns a score, `Classification` the class of noised data.  Both have `init(key)`, which makes parameters,
and `loss(params, batch, key)`; that is all that training knows of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.arrays import expand
from score_sde.data import Source
from score_sde.guidance import ConditionalScore
from score_sde.likelihood import dequantise, quantise
from score_sde.objectives import denoising_score_matching
from score_sde.objectives.times import TimeSampler
from score_sde.objectives.weightings import Weighting
from score_sde.predictions import Network, PredictedScore, Prediction
from score_sde.sdes import AffineSDE
from score_sde.training.augmentation import augment


def _dropout(key: Array) -> dict[str, Array]:
    """The network's generators.  Dropout draws from XLA's own: JAX's, unrolled for each layer, is 40 % of what there is
    to compile in a step of vp_cifar."""
    return {"dropout": jax.random.wrap_key_data(jax.random.bits(key, (4,), jnp.uint32), impl="rbg")}


class OnData:
    """Examples as a task's network sees them, and back, by its `levels` and `data_range`."""

    levels: int | None
    data_range: tuple[float, float]

    def scale(self, keys: Array, x: Array) -> Array:
        """Examples as densities see them: grey levels are dequantised into `data_range`, one key per example."""
        if self.levels is None:
            return x.astype(jnp.float32)
        return dequantise(keys, x, levels=self.levels, data_range=self.data_range)

    def unscale(self, x: Array) -> np.ndarray:
        """Samples as the data are stored: grey levels in the smallest integer type, or float32."""
        if self.levels is None:
            return np.asarray(x, np.float32)
        dtype = np.uint8 if self.levels <= 256 else np.uint16
        return np.asarray(quantise(x, levels=self.levels, data_range=self.data_range)).astype(dtype)


@dataclass(frozen=True, eq=False)
class Experiment(OnData):
    """What is learned: `load(split)` gives the data, `network` predicts `prediction` of `sde`.

    shape: of one example; levels: grey levels of integer data, None for continuous data; data_range: what grey levels
    are scaled to before noise is added.  num_classes: of the network, which is told the class of an example, and with
    probability label_dropout that it has none; 0 where it takes no classes.  augment_probability: of each of EDM's
    changes of an image, of which the network is told; None where it takes no such labels.
    """

    sde: AffineSDE
    network: nn.Module
    prediction: Prediction
    weighting: Weighting
    times: TimeSampler
    load: Callable[[str], Source]
    shape: tuple[int, ...]
    levels: int | None
    data_range: tuple[float, float]
    num_classes: int = 0
    label_dropout: float = 0.0
    augment_probability: float | None = None

    def init(self, key: Array) -> dict:
        """Fresh parameters of the network."""
        x, label = jnp.zeros((1, *self.shape)), jnp.zeros((1,))
        return self.network.init(key, x, label)["params"]

    def _apply(self, params: dict, x: Array, label: Array, class_label: Array | None = None, **how: Any) -> Array:
        classes = () if class_label is None else (class_label,)
        return self.network.apply({"params": params}, x, label, *classes, **how)

    def score(self, params: dict) -> PredictedScore:
        """The learned score(x, t), of data of every class; other parameters of the same shapes do not compile again."""
        network = Network(jax.tree_util.Partial(self._apply, params), self.sde, self.prediction)
        return PredictedScore(network, self.sde, self.prediction)

    def conditional_score(self, params: dict) -> ConditionalScore:
        """The learned score(x, t, label) of the data of a class, `num_classes` standing for all of them."""
        return ConditionalScore(jax.tree_util.Partial(self._apply, params), self.sde, self.prediction)

    def loss(self, params: dict, batch: dict[str, Array], key: Array) -> Array:
        """The training loss of a batch of examples as the source gives them: a scalar."""
        key_data, key_loss, key_dropout = jax.random.split(key, 3)
        x = self.scale(jax.random.split(key_data, len(batch["x"])), batch["x"])
        apply = partial(self._apply, params, train=True, rngs=_dropout(key_dropout))
        if self.num_classes:
            dropped = jax.random.bernoulli(jax.random.fold_in(key, 3), self.label_dropout, x.shape[:1])
            apply = partial(apply, class_label=jnp.where(dropped, self.num_classes, batch["label"]))
        if self.augment_probability is not None:
            x, told = augment(jax.random.fold_in(key, 4), x, self.augment_probability)
            apply = partial(apply, augment_label=told)
        losses = denoising_score_matching(
            key_loss,
            self.sde,
            Network(apply, self.sde, self.prediction),
            x,
            prediction=self.prediction,
            weighting=self.weighting,
            times=self.times,
        )
        return jnp.mean(losses)


@dataclass(frozen=True, eq=False)
class Classification(OnData):
    """What is learned: `network` tells the class of examples that the SDE has noised, at every noise level.

    The fields are those of `Experiment`; num_classes is of the network and of the data.
    """

    sde: AffineSDE
    network: nn.Module
    times: TimeSampler
    load: Callable[[str], Source]
    shape: tuple[int, ...]
    levels: int | None
    data_range: tuple[float, float]
    num_classes: int

    def init(self, key: Array) -> dict:
        """Fresh parameters of the network."""
        x, label = jnp.zeros((1, *self.shape)), jnp.zeros((1,))
        return self.network.init(key, x, label)["params"]

    def _log_prob(self, params: dict, x: Array, t: Array, **how: Any) -> Array:
        size = jnp.sqrt(jnp.square(self.sde.alpha(t)) + jnp.square(self.sde.sigma(t)))  # VE's grows to 50
        logits = self.network.apply({"params": params}, x / expand(size, x), self.sde.label(t), **how)
        return jax.nn.log_softmax(logits)

    def log_prob(self, params: dict) -> Callable[[Array, Array], Array]:
        """log p_t(class | x) as f(x, t) -> (B, classes), what `classifier_guidance` takes."""
        return jax.tree_util.Partial(self._log_prob, params)

    def loss(self, params: dict, batch: dict[str, Array], key: Array) -> Array:
        """The cross-entropy of the classes of a batch, noised to one random time each, in nats: a scalar."""
        key_data, key_noise, key_dropout, key_times = jax.random.split(key, 4)
        x = self.scale(jax.random.split(key_data, len(batch["x"])), batch["x"])
        t = self.times(key_times, self.sde, len(x)).astype(x.dtype)
        noised = self.sde.perturb(x, jax.random.normal(key_noise, x.shape, x.dtype), t)
        log_prob = self._log_prob(params, noised, t, train=True, rngs=_dropout(key_dropout))
        return -jnp.mean(jnp.take_along_axis(log_prob, batch["label"][:, None], axis=1))


Task = Experiment | Classification
