"""Classifiers of noised data: what the class of x_t is, at every noise level."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from .blocks import (
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
from .resampling import downsample


class Classifier(nn.Module):
    """The way down of a U-Net, of images: the logits of their classes.

    h = conv(x);  [ResBlock, attention?]*n, halve, at each level;  logits = Dense(mean over pixels of act(GN(h))).

    Fields are those of `UNet`.  The logits start out as almost 0.

    Source: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4 (there with attention as
    pooling).
    """

    num_classes: int = 10
    nf: int = 32
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 1
    attn_resolutions: tuple[int, ...] = ()
    dropout: float = 0.0
    embedding_type: str = "positional"
    fourier_scale: float = 16.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], label: Float[Array, " b"], *, train: bool = False
    ) -> Float[Array, "b {self.num_classes}"]:
        """The logits of images `x` at time labels `label` (B,).

        Raises: ValueError for a label of another shape, and for images that cannot be halved at each level but the
        last.
        """
        check_inputs(x.shape, label.shape, self.embedding_type)
        factor = 2 ** (len(self.ch_mult) - 1)
        if len(x.shape) != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"expected images (B, H, W, C) with H and W divisible by {factor} for the {len(self.ch_mult)} levels "
                f"of ch_mult, got {x.shape}. Give ch_mult fewer levels; for other data there is MLPClassifier."
            )
        label = label.astype(jnp.float32)
        if self.embedding_type == "fourier":
            temb = FourierEmbedding(self.nf, self.fourier_scale)(label)
        else:
            temb = positional_embedding(label, self.nf)
        temb = dense(4 * self.nf)(nn.swish(dense(4 * self.nf)(temb)))

        block = partial(ResBlock, dropout=self.dropout, skip_rescale=True, init_scale=0.0)
        h = conv(self.nf)(x.astype(jnp.float32))
        for level, multiplier in enumerate(self.ch_mult):
            for _ in range(self.num_res_blocks):
                h = block(multiplier * self.nf)(h, temb, train=train)
                if h.shape[1] in self.attn_resolutions:
                    h = AttentionBlock(skip_rescale=True, init_scale=0.0)(h)
            if level < len(self.ch_mult) - 1:
                h = block(multiplier * self.nf, resample=downsample)(h, temb, train=train)
        h = nn.swish(group_norm(h.shape[-1])(h)).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=default_init(0.0))(h)
