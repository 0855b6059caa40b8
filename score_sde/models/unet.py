"""The U-Net of DDPM, DDPM++ and NCSN++.

An image goes down through levels of halving resolution, each of `num_res_blocks` residual blocks, and up again through
`num_res_blocks + 1` of them, each of which also sees the output that the way down left at its height.  A real-valued
label, embedded and passed through two affine maps, tells every block the noise level.  What the label means (999 t, log
sigma) and what the output stands for (noise, score, data) is the caller's affair, but for `scale_by_sigma`.

The published networks, as fields that differ from the defaults:

    DDPM++     none; deep: num_res_blocks = 8
    NCSN++     fir_kernel = (1, 3, 3, 1), embedding_type = "fourier", scale_by_sigma = center_input = True,
               progressive_input = "residual" on CIFAR-10; "input_skip" with progressive = "output_skip" from 256 pixels
    DDPM       resblock_type = "ddpm", skip_rescale = False, num_res_blocks = 2, attend_each_up = True
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from .blocks import (
    RESCALE,
    AttentionBlock,
    FourierEmbedding,
    ResBlock,
    check_inputs,
    conv,
    default_init,
    dense,
    group_norm,
    positional_embedding,
)
from .resampling import Combine, Downsample, Upsample, downsample, upsample

CHOICES = {
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "attend_middle": ("normed", "plain", "none"),
    "dtype": ("float32", "bfloat16"),
}


class UNet(nn.Module):
    """Time-conditional U-Net; the defaults are DDPM++ for CIFAR-10.

    h = conv(x);  down: [ResBlock, attention?]*n, halve;  middle: ResBlock, attention, ResBlock;
    up: [ResBlock(h | skip)]*(n+1), attention?, double;  out = conv(act(GN(h))).

    `ch_mult` is the width of each level in units of `nf`.  Attention, in heads of `head_channels` channels (0: one
    head), is at levels whose height is in `attn_resolutions`, once on the way up or, as in DDPM, after each block
    (`attend_each_up`), and always in the middle.  `init_scale` scales the variance of the initial weights in the last
    layer of each block and of the network (0: 1e-10, so that the network starts out as almost 0).  `skip_rescale`
    divides every sum of two branches by sqrt(2).

    Blocks of `resblock_type` 'biggan' change the resolution themselves; with 'ddpm' a 3x3 convolution does
    (`resamp_with_conv`), or nothing that is learned.  `fir_kernel`, (1, 3, 3, 1) as published, smooths wherever the
    resolution changes.  `progressive_input` takes the shrunken image in again at each level: 'input_skip' as it is,
    added or concatenated to the features (`progressive_combine`), 'residual' through convolutions that go on from level
    to level.  `progressive` is its mirror: 'output_skip' adds up an image of each level, 'residual' their features.

    `embedding_type` is 'positional' for labels that span about a thousand (999 t) or 'fourier', of standard deviation
    `fourier_scale`, for labels of order one (log sigma).  With `scale_shift` it multiplies features as well.
    `num_classes` admits class labels below that number, beside a null label, and `augment_dim` real-valued labels that
    say how an image was augmented (Karras et al. 2022, appendix F.2).

    The next fields are for networks that others have trained: `norm_groups` (0: min(channels // 4, 32)) and `norm_eps`
    of every normalisation; `frequency_endpoint`, whether the positional frequencies reach 1e-4; `symmetric_padding` of
    the convolutions of stride 2; `up_attn_resolutions`, the heights with attention on the way up where they are others
    than on the way down ((0,): none); `attend_middle`, whether the attention in the middle normalises its input
    ('normed'), does not ('plain'), or is left out ('none'); `class_first`, whether the class is added to the embedded
    label before the affine maps, as in EDM's networks, and not after them.

    So are `log_label`, which embeds log(label), as Song et al. do with 'fourier' and VP; and `sigma_levels`, (largest
    sigma, smallest, N): of a label log sigma the embedding sees the number of the nearest of N levels, 0 the largest,
    evenly spaced in log sigma, and `scale_by_sigma` divides by that level's sigma (their networks of discrete VE).

    `center_input` maps images in [0, 1] to [-1, 1] first.  `scale_by_sigma` divides the output by exp(label): the label
    has to be log sigma, which is that of VE and of no other process, and the output is then a score, of size 1/sigma.

    `dtype` 'bfloat16' is for convolutions, matrix products and what flows between them.  Parameters, statistics of
    normalisations, embeddings and the last layers stay float32.  `remat` keeps only the inputs of blocks for the
    gradient and computes the rest twice: less memory, a third more time.

    Source: Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", section 4.4
    and appendix H; Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B.
    """

    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    attend_each_up: bool = False
    head_channels: int = 0
    dropout: float = 0.1
    skip_rescale: bool = True
    init_scale: float = 0.0
    resblock_type: str = "biggan"
    resamp_with_conv: bool = True
    fir_kernel: tuple[int, ...] = ()
    progressive: str = "none"
    progressive_input: str = "none"
    progressive_combine: str = "sum"
    embedding_type: str = "positional"
    fourier_scale: float = 16.0
    scale_shift: bool = False
    num_classes: int = 0
    augment_dim: int = 0
    center_input: bool = False
    scale_by_sigma: bool = False
    norm_groups: int = 0
    norm_eps: float = 1e-6
    frequency_endpoint: bool = True
    symmetric_padding: bool = False
    log_label: bool = False
    sigma_levels: tuple[float, ...] = ()
    up_attn_resolutions: tuple[int, ...] = ()
    attend_middle: str = "normed"
    class_first: bool = False
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        label: Float[Array, " b"],
        class_label: Int[Array, " b"] | None = None,
        augment_label: Float[Array, "b a"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """The network's output for images `x` at time labels `label`.

        Args:
            x: images (B, H, W, C); 2**(levels - 1) divides H and W.
            label: one real number per image (B,).
            class_label: one class per image (B,), from 0 to num_classes, the last of which is the null label: class
                unknown, as is None.
            augment_label: (B, augment_dim); None and zeros: not augmented.
            train: dropout is on, and draws from the rng collection 'dropout'.

        Returns: an array of the shape and dtype of `x`.

        Raises: ValueError for shapes and options that do not fit together.
        """
        self._check(x.shape, label.shape, class_label, augment_label)
        fir, norms = self.fir_kernel, dict(norm_groups=self.norm_groups, norm_eps=self.norm_eps)
        common = dict(skip_rescale=self.skip_rescale, init_scale=self.init_scale, dtype=self.dtype, **norms)
        block = partial(ResBlock, dropout=self.dropout, scale_shift=self.scale_shift, **common)
        attention = partial(AttentionBlock, head_channels=self.head_channels, **common)
        shrink = partial(Downsample, fir_kernel=fir, dtype=self.dtype, symmetric_padding=self.symmetric_padding)
        enlarge = partial(Upsample, fir_kernel=fir, dtype=self.dtype)
        widths, (attend_down, attend_up) = [self.nf * mult for mult in self.ch_mult], self.attends(x.shape[1])
        label = label.astype(jnp.float32)
        told, label = self._told(label)
        temb = self._embed(told, class_label, augment_label)

        def run(module: nn.Module, *args: Array, **kwargs: bool) -> Array:
            if self.remat:  # of the call, not of the class: the automatic names stay
                return nn.remat(lambda module, *args: module(*args, **kwargs))(module, *args)
            return module(*args, **kwargs)

        def residual(h: Array, width: int, resample: Callable | None = None) -> Array:
            return run(block(width, resample=resample), h, temb, train=train)

        def change(h: Array, width: int, module: Callable, resample: Callable) -> Array:
            resample = partial(resample, kernel=fir)
            if self.resblock_type == "biggan":
                return residual(h, width, resample)
            return module(width)(h) if self.resamp_with_conv else resample(h)

        def merge(a: Array, b: Array) -> Array:
            return (a + b) * RESCALE if self.skip_rescale else a + b

        def last(h: Array, width: int, init_scale: float, dtype: str = "float32") -> Array:
            h = nn.swish(group_norm(h.shape[-1], dtype, self.norm_groups, self.norm_eps)(h))
            return conv(width, init_scale=init_scale, dtype=dtype)(h)

        image = x.astype(jnp.float32)
        image = 2.0 * image - 1.0 if self.center_input else image
        h = conv(self.nf, dtype=self.dtype)(image)
        skips = [h]
        for level, (width, attend) in enumerate(zip(widths, attend_down, strict=True)):
            for _ in range(self.num_res_blocks):
                h = residual(h, width)
                h = run(attention(), h) if attend else h
                skips.append(h)
            if level < len(widths) - 1:
                h = change(h, width, shrink, downsample)
                if self.progressive_input == "input_skip":
                    image = downsample(image, fir)
                    h = Combine(self.progressive_combine, self.dtype)(image, h)
                elif self.progressive_input == "residual":
                    image = h = merge(shrink(width)(image), h)
                skips.append(h)

        h = residual(h, width)  # the width of the lowest level
        if self.attend_middle != "none":
            h = run(attention(normed=self.attend_middle == "normed"), h)
        h = residual(h, width)

        out = None
        for level, (width, attend) in reversed(list(enumerate(zip(widths, attend_up, strict=True)))):
            for i in range(self.num_res_blocks + 1):
                h = residual(jnp.concatenate([h, skips.pop()], axis=-1), width)
                if attend and (self.attend_each_up or i == self.num_res_blocks):
                    h = run(attention(), h)
            if self.progressive == "output_skip":
                found = last(h, x.shape[-1], self.init_scale)
                out = found if out is None else upsample(out, fir) + found
            elif self.progressive == "residual" and out is None:
                out = last(h, width, 1.0, self.dtype)
            elif self.progressive == "residual":
                out = h = merge(enlarge(width)(out), h)
            if level > 0:
                h = change(h, width, enlarge, upsample)

        if self.progressive != "output_skip":
            out = last(h, x.shape[-1], self.init_scale)
        if self.scale_by_sigma:
            out = out * jnp.exp(-label)[:, None, None, None]
        return out.astype(x.dtype)

    def attends(self, height: int) -> tuple[list[bool], list[bool]]:
        """Whether there is attention at each level for images of this height: on the way down, on the way up."""
        heights = [height >> level for level in range(len(self.ch_mult))]
        where = (self.attn_resolutions, self.up_attn_resolutions or self.attn_resolutions)
        down, up = ([h in resolutions for h in heights] for resolutions in where)
        return down, up

    def _told(self, label: Float[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """(what is embedded, the log sigma that `scale_by_sigma` divides by) of a label."""
        if self.log_label:
            return jnp.log(label), label
        if not self.sigma_levels:
            return label, label
        high, low, last = math.log(self.sigma_levels[0]), math.log(self.sigma_levels[1]), self.sigma_levels[2] - 1
        number = jnp.clip(jnp.round((high - label) * (last / (high - low))), 0, last)
        return number, high - number * ((high - low) / last)

    def _embed(self, label: Array, class_label: Array | None, augment_label: Array | None) -> Float[Array, "b e"]:
        """What the blocks are told: the embedded label, through two affine maps, and the class."""

        def add_class(temb: Array) -> Array:  # named, as is `augment`: the automatic names do not depend on them
            known = jnp.full(label.shape, self.num_classes) if class_label is None else class_label
            return temb + nn.Embed(self.num_classes + 1, temb.shape[-1], name="classes")(known)

        if self.embedding_type == "fourier":
            temb = FourierEmbedding(self.nf, self.fourier_scale)(label)
        else:
            temb = positional_embedding(label, self.nf, self.frequency_endpoint)
        if self.num_classes and self.class_first:
            temb = add_class(temb)
        if self.augment_dim:
            augment = jnp.zeros((len(label), self.augment_dim)) if augment_label is None else augment_label
            augment = augment.astype(jnp.float32)
            temb = temb + nn.Dense(temb.shape[-1], use_bias=False, name="augment", kernel_init=default_init())(augment)
        temb = dense(4 * self.nf)(temb)
        temb = dense(4 * self.nf)(nn.swish(temb))
        return add_class(temb) if self.num_classes and not self.class_first else temb

    def _check(
        self, shape: tuple[int, ...], label_shape: tuple[int, ...], class_label: Any, augment_label: Any
    ) -> None:
        check_inputs(shape, label_shape, self.embedding_type)
        if len(shape) != 4:
            raise ValueError(f"expected images (B, H, W, C), got {shape}. Add the axes that are missing.")
        factor = 2 ** (len(self.ch_mult) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"expected height and width divisible by {factor} for the {len(self.ch_mult)} levels of ch_mult, "
                f"got {shape[1]}x{shape[2]}. Pad the images, or give ch_mult fewer levels."
            )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"expected {name} among {known}, got {getattr(self, name)!r}. Use one of them.")
        if self.fir_kernel and (len(self.fir_kernel) < 2 or sum(self.fir_kernel) <= 0):
            raise ValueError(
                f"expected a fir_kernel of two or more numbers of positive sum, or none, got {self.fir_kernel}. "
                "Use (1, 3, 3, 1)."
            )
        if self.resblock_type == "biggan" and not self.resamp_with_conv:
            raise ValueError(
                "expected resamp_with_conv=True with resblock_type='biggan', whose blocks change the resolution "
                "themselves, got False. Use resblock_type='ddpm', or leave it out."
            )
        if self.progressive_combine == "cat" and self.progressive_input != "input_skip":
            raise ValueError(
                f"expected progressive_input='input_skip' with progressive_combine='cat', got "
                f"{self.progressive_input!r}. Use 'sum', or 'input_skip'."
            )
        if self.scale_by_sigma and self.log_label:
            raise ValueError(
                "expected log_label=False with scale_by_sigma, whose label is log sigma already, got True. Drop one."
            )
        if self.scale_by_sigma and self.embedding_type != "fourier" and not self.sigma_levels:
            raise ValueError(
                "expected embedding_type='fourier' or sigma_levels with scale_by_sigma, whose label is log sigma, got "
                f"{self.embedding_type!r}. Use 'fourier', or divide by sigma outside."
            )
        if self.log_label and self.embedding_type != "fourier":
            raise ValueError("expected embedding_type='fourier' with log_label, got 'positional'. Leave log_label out.")
        good = (
            len(self.sigma_levels) == 3 and self.sigma_levels[0] > self.sigma_levels[1] > 0 < self.sigma_levels[2] - 1
        )
        if self.sigma_levels and (not good or self.embedding_type != "positional"):
            raise ValueError(
                "expected sigma_levels (largest sigma, smallest, two levels or more) with embedding_type='positional', "
                f"got {self.sigma_levels} with {self.embedding_type!r}. Use (50.0, 0.01, 1000.0), or leave them out."
            )
        if self.class_first and not self.num_classes:
            raise ValueError("expected num_classes above 0 with class_first, got 0. Set num_classes, or leave it out.")
        if class_label is not None and (not self.num_classes or class_label.shape != label_shape):
            raise ValueError(
                f"expected one class_label per image, {label_shape}, and num_classes above 0, got shape "
                f"{class_label.shape} and num_classes={self.num_classes}. Set num_classes, or leave the classes out."
            )
        if augment_label is not None and augment_label.shape != (*label_shape, self.augment_dim):
            raise ValueError(
                f"expected augment_label of shape {(*label_shape, self.augment_dim)}, got {augment_label.shape}. "
                "Set augment_dim to its length, or leave it out."
            )
