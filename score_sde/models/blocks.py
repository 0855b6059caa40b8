"""Parts of the score networks: time embeddings, resampling, residual and attention blocks.

Images are NHWC.  Each block takes its numbers as fields and knows neither the SDE nor the network around it.
Parameters keep the automatic Flax names (`GroupNorm_0`, `Conv_0`, ...) in the order of the published networks, which
is how readers of published checkpoints find them: a new part has to be created at its published place.

Source: Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", appendix H
(DDPM++ and NCSN++), on top of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

RESCALE = 2.0**-0.5  # (a + b)/sqrt(2) keeps the variance of two independent branches
EMBEDDINGS = ("positional", "fourier")


def check_inputs(shape: tuple[int, ...], label_shape: tuple[int, ...], embedding_type: str) -> None:
    """What every network asks of its input: a batch, a label for each sample, a known kind of embedding."""
    if not shape or label_shape != shape[:1]:
        raise ValueError(
            f"expected x of shape (B, ...) and one label per sample, (B,); got x {shape} and label {label_shape}. "
            "Repeat a label that all samples share: jnp.full(x.shape[:1], label)."
        )
    if embedding_type not in EMBEDDINGS:
        raise ValueError(f"expected embedding_type among {EMBEDDINGS}, got {embedding_type!r}. Use one of them.")


def default_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform initialiser of variance `scale`/((fan_in + fan_out)/2); 0 stands for 1e-10 (Ho et al. 2020, code)."""
    # not exactly zero: a zero kernel would stop every gradient on its way down
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def dense(features: int, init_scale: float = 1.0) -> nn.Dense:
    """Affine map of the last axis, the 1x1 convolution of the attention block included."""
    return nn.Dense(features, kernel_init=default_init(init_scale))


def conv(features: int, size: int = 3, init_scale: float = 1.0) -> nn.Conv:
    """`size` x `size` convolution of stride 1 which keeps height and width."""
    return nn.Conv(features, (size, size), kernel_init=default_init(init_scale))


def group_count(channels: int) -> int:
    """Groups of a GroupNorm: min(channels // 4, 32), lowered to the next divisor of `channels`, at least 1.

    The published widths (multiples of 128, and sums of them) divide as they are; 144 channels get 24 groups, not 32.
    """
    return next((g for g in range(min(channels // 4, 32), 1, -1) if channels % g == 0), 1)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm over `group_count(channels)` groups with the published epsilon."""
    return nn.GroupNorm(group_count(channels), epsilon=1e-6)


def positional_embedding(label: Float[Array, " b"], features: int) -> Float[Array, "b f"]:
    """Sines and cosines of the label at fixed frequencies from 1 down to 1e-4.

    [sin(w_k label) | cos(w_k label)],  w_k = 10000^(-k / (h - 1)),  k = 0 ... h - 1,  h = features // 2;
    an odd number of features ends in a zero.  Made for labels that span about a thousand, such as 999 t.

    Source: Ho et al. 2020, after Vaswani et al. 2017, section 3.5 (there the last frequency stops short of 1e-4).
    """
    half = features // 2
    frequencies = np.exp(-math.log(10000.0) / max(half - 1, 1) * np.arange(half)).astype(np.float32)
    phase = label[:, None] * frequencies[None, :]
    embedding = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features % 2)))


class FourierEmbedding(nn.Module):
    """Sines and cosines of the label at random frequencies, drawn once and never trained.

    [sin(2 pi W label) | cos(2 pi W label)],  W ~ N(0, scale^2) of shape (frequencies,).
    Made for labels of order one, such as log sigma.

    W counts as a parameter, as in the published networks, so that it is saved with the weights it belongs to; its
    gradient is zero.  An optimizer with weight decay has to leave it out.

    Source: Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional
    Domains"; Song et al. 2021, appendix H.
    """

    frequencies: int
    scale: float

    @nn.compact
    def __call__(self, label: Float[Array, " b"]) -> Float[Array, "b f"]:
        w = self.param("W", nn.initializers.normal(self.scale), (self.frequencies,))
        phase = 2.0 * math.pi * label[:, None] * jax.lax.stop_gradient(w)[None, :]
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Nearest neighbour: each pixel becomes a 2x2 square."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def downsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Mean of each 2x2 square; height and width must be even."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


class ResBlock(nn.Module):
    """Residual block of the BigGAN type, at one resolution or across two.

    h = conv(resample(act(GN(x)))) + Dense(act(temb));  h = conv(dropout(act(GN(h))));
    out = shortcut(resample(x)) + h, divided by sqrt(2) if `skip_rescale`.

    The shortcut is a 1x1 convolution where the channels change or a `resample` is given (`upsample`, `downsample`, or
    another map of images), the identity elsewhere.

    Source: Brock et al. 2019 (BigGAN), appendix B; Song et al. 2021, appendix H.
    """

    features: int
    dropout: float
    skip_rescale: bool
    init_scale: float
    resample: Callable | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b e"], *, train: bool = False
    ) -> Float[Array, "b h2 w2 {self.features}"]:
        h = nn.swish(group_norm(x.shape[-1])(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(self.features)(h)
        h = h + dense(self.features)(nn.swish(temb))[:, None, None, :]
        h = nn.swish(group_norm(self.features)(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(self.features, init_scale=self.init_scale)(h)
        if self.resample is not None or x.shape[-1] != self.features:
            x = conv(self.features, size=1)(x)
        return (x + h) * RESCALE if self.skip_rescale else x + h


class AttentionBlock(nn.Module):
    """Self-attention of one head over all pixels, added to its input.

    out = x + Dense(softmax(q k^T / sqrt(C)) v),  q, k, v = Dense(GN(x)),  divided by sqrt(2) if `skip_rescale`.

    Source: Ho et al. 2020, appendix B; Song et al. 2021, appendix H.
    """

    skip_rescale: bool
    init_scale: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        h = group_norm(c)(x).reshape(b, height * width, c)
        q, k, v = (dense(c, init_scale=0.1)(h) for _ in range(3))
        weights = nn.softmax(jnp.einsum("bqc,bkc->bqk", q, k) * c**-0.5, axis=-1)
        h = dense(c, init_scale=self.init_scale)(jnp.einsum("bqk,bkc->bqc", weights, v)).reshape(x.shape)
        return (x + h) * RESCALE if self.skip_rescale else x + h
