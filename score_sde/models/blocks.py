"""Parts of the score networks: layers, time embeddings, residual and attention blocks.

Images are NHWC.  Each block takes its numbers as fields and knows neither the SDE nor the network around it.
Parameters keep the automatic Flax names (`GroupNorm_0`, `Conv_0`, ...) in the order of the published networks, which
is how readers of published checkpoints find them: a new part has to be created at its published place.

`dtype` is that of the arithmetic in convolutions and matrix products.  Parameters, statistics of normalisations, time
embeddings and softmax are float32 at any rate.

Source: Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", appendix H
(DDPM++ and NCSN++), on top of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from .cpu import convolve

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


def dense(features: int, init_scale: float = 1.0, dtype: str = "float32") -> nn.Dense:
    """Affine map of the last axis, the 1x1 convolution of the attention block included."""
    return nn.Dense(features, kernel_init=default_init(init_scale), dtype=dtype)


def conv(
    features: int,
    size: int = 3,
    init_scale: float = 1.0,
    stride: int = 1,
    padding: str | tuple = "SAME",
    dtype: str = "float32",
) -> nn.Conv:
    """`size` x `size` convolution, which keeps height and width unless told otherwise."""
    window, strides = (size, size), (stride, stride)
    how = dict(kernel_init=default_init(init_scale), dtype=dtype, conv_general_dilated=convolve)
    return nn.Conv(features, window, strides, padding, **how)


def group_count(channels: int) -> int:
    """Groups of a GroupNorm: min(channels // 4, 32), lowered to the next divisor of `channels`, at least 1.

    The published widths (multiples of 128, and sums of them) divide as they are; 144 channels get 24 groups, not 32.
    """
    return next((g for g in range(min(channels // 4, 32), 1, -1) if channels % g == 0), 1)


class GroupNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) of each image and group of neighbouring channels, then scale and bias.

    Mean and variance, E[x^2] - E[x]^2, are float32.  What flax.linen.GroupNorm computes, 2 to 4 times as fast on a CPU:
    the two numbers of a group are written out for each of its channels (the barriers keep XLA from doing without),
    since a loop over pixels that looks up channel c at c // size is not vectorised; the same goes for the gradient.

    Source: Wu & He 2018, "Group Normalization", section 3.
    """

    groups: int
    eps: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n c"]:
        b, *_, c = x.shape
        scale = self.param("scale", nn.initializers.ones, (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
        size = c // self.groups
        pixels = x.reshape(b, -1, c).astype(jnp.float32)
        sums = jax.lax.optimization_barrier((jnp.sum(pixels, 1), jnp.sum(jnp.square(pixels), 1)))
        mean, square = (jnp.mean(s.reshape(b, self.groups, size), -1) / pixels.shape[1] for s in sums)
        rate = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + self.eps)
        rate = jnp.repeat(rate, size, axis=-1) * scale[None]
        shift = bias[None] - jnp.repeat(mean, size, axis=-1) * rate
        rate, shift = jax.lax.optimization_barrier((rate, shift))
        return (pixels * rate[:, None] + shift[:, None]).astype(self.dtype).reshape(x.shape)


def group_norm(channels: int, dtype: str = "float32", groups: int = 0, eps: float = 1e-6) -> GroupNorm:
    """GroupNorm over `groups` groups, or `group_count(channels)`, as published."""
    return GroupNorm(groups or group_count(channels), eps, dtype)


def positional_embedding(label: Float[Array, " b"], features: int, endpoint: bool = True) -> Float[Array, "b f"]:
    """Sines and cosines of the label at fixed frequencies from 1 down to 1e-4.

    [sin(w_k label) | cos(w_k label)],  w_k = 10000^(-k / (h - 1)),  k = 0 ... h - 1,  h = features // 2;
    an odd number of features ends in a zero.  Made for labels that span about a thousand, such as 999 t.

    Source: Ho et al. 2020, after Vaswani et al. 2017, section 3.5 (there, and without `endpoint`, the last frequency
    stops short of 1e-4: k / h).
    """
    half = features // 2
    frequencies = np.exp(-math.log(10000.0) / max(half - endpoint, 1) * np.arange(half)).astype(np.float32)
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
        # in the published order: of phases of a thousand, rounding otherwise would change the fourth digit of the sine
        phase = label[:, None] * jax.lax.stop_gradient(w)[None, :] * (2.0 * math.pi)
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


class ResBlock(nn.Module):
    """Residual block, at one resolution or (the BigGAN type) across two.

    h = conv(resample(act(GN(x)))) + Dense(act(temb));  h = conv(dropout(act(GN(h))));
    out = shortcut(resample(x)) + h, divided by sqrt(2) if `skip_rescale`.

    With `scale_shift` the label multiplies as well: [a | b] = Dense(act(temb)) makes GN(h) (1 + a) + b of GN(h).
    The shortcut is a 1x1 convolution where the channels change or a `resample` is given (`upsample`, `downsample`, or
    another map of images), the identity elsewhere.

    Source: Ho et al. 2020, appendix B; Brock et al. 2019 (BigGAN), appendix B; Song et al. 2021, appendix H;
    scale_shift: Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", appendix A.
    """

    features: int
    dropout: float
    skip_rescale: bool
    init_scale: float
    resample: Callable | None = None
    scale_shift: bool = False
    dtype: str = "float32"
    norm_groups: int = 0
    norm_eps: float = 1e-6

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b e"], *, train: bool = False
    ) -> Float[Array, "b h2 w2 {self.features}"]:
        norm = partial(group_norm, dtype=self.dtype, groups=self.norm_groups, eps=self.norm_eps)
        h = nn.swish(norm(x.shape[-1])(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(self.features, dtype=self.dtype)(h)
        told = dense((1 + self.scale_shift) * self.features)(nn.swish(temb))[:, None, None, :].astype(h.dtype)
        if self.scale_shift:
            scale, shift = jnp.split(told, 2, axis=-1)
            h = norm(self.features)(h) * (1 + scale) + shift
        else:
            h = norm(self.features)(h + told)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.swish(h))
        h = conv(self.features, init_scale=self.init_scale, dtype=self.dtype)(h)
        if self.resample is not None or x.shape[-1] != self.features:
            x = conv(self.features, size=1, dtype=self.dtype)(x)
        return (x + h) * RESCALE if self.skip_rescale else x + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, added to its input.

    out = x + Dense(softmax(q k^T / sqrt(d)) v),  q, k, v = Dense(GN(x)),  divided by sqrt(2) if `skip_rescale`.
    Heads of d = `head_channels` channels each attend on their own; 0: one head of all channels, as published.
    Without `normed` there is no GN.

    Source: Ho et al. 2020, appendix B; Song et al. 2021, appendix H; heads: Vaswani et al. 2017, section 3.2.
    """

    skip_rescale: bool
    init_scale: float
    head_channels: int = 0
    dtype: str = "float32"
    norm_groups: int = 0
    norm_eps: float = 1e-6
    normed: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        d = self.head_channels or c
        if c % d:
            raise ValueError(
                f"expected head_channels to divide the width of every level with attention, got {d} for width {c}. "
                "Use a divisor, or 0 for one head."
            )
        h = group_norm(c, self.dtype, self.norm_groups, self.norm_eps)(x) if self.normed else x
        h = h.reshape(b, height * width, c)
        heads = (b, height * width, c // d, d)
        q, k, v = (dense(c, init_scale=0.1, dtype=self.dtype)(h).reshape(heads) for _ in range(3))
        # scaled here, not as (pixels, pixels) numbers; not by cuDNN's kernel: likelihoods need its forward mode
        h = jax.nn.dot_product_attention(q * d**-0.5, k, v, scale=1.0, implementation="xla").reshape(x.shape)
        h = dense(c, init_scale=self.init_scale, dtype=self.dtype)(h)
        return (x + h) * RESCALE if self.skip_rescale else x + h
