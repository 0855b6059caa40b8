"""The U-Net of DDPM++ and NCSN++.

An image goes down through levels of halving resolution, each of `num_res_blocks` residual blocks, and up again through
`num_res_blocks + 1` of them, each of which also sees the output that the way down left at its height.  A real-valued
label, embedded and passed through two affine maps, tells every block the noise level.  What the label means (999 t, log
sigma) and what the output stands for (noise, score, data) is the caller's affair.
"""

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
    dense,
    downsample,
    group_norm,
    positional_embedding,
    upsample,
)


class UNet(nn.Module):
    """Time-conditional U-Net with residual blocks of the BigGAN type; the defaults are DDPM++ for CIFAR-10.

    h = conv(x);  down: [ResBlock, attention?]*n, ResBlock(downsample);  middle: ResBlock, attention, ResBlock;
    up: [ResBlock(h | skip)]*(n+1), attention?, ResBlock(upsample);  out = conv(act(GN(h))).

    `ch_mult` is the width of each level in units of `nf`.  Attention is at levels whose height is in
    `attn_resolutions`, and always in the middle.  `init_scale` scales the variance of the initial weights in the last
    layer of each block and of the network (0: 1e-10, so that the network starts out as almost 0).  `embedding_type` is
    'positional' for labels that span about a thousand (999 t) or 'fourier', of standard deviation `fourier_scale`, for
    labels of order one (log sigma).

    Source: Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", section 4.4
    and appendix H.
    """

    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    skip_rescale: bool = True
    init_scale: float = 0.0
    embedding_type: str = "positional"
    fourier_scale: float = 16.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], label: Float[Array, " b"], *, train: bool = False
    ) -> Float[Array, "b h w c"]:
        """The network's output for images `x` at time labels `label`; float32 inside.

        Args:
            x: images (B, H, W, C); 2**(levels - 1) divides H and W.
            label: one real number per image (B,).
            train: dropout is on, and draws from the rng collection 'dropout'.

        Returns: an array of the shape and dtype of `x`.

        Raises: ValueError for shapes that do not fit, and for an unknown `embedding_type`.
        """
        self._check(x.shape, label.shape)
        block = partial(ResBlock, dropout=self.dropout, skip_rescale=self.skip_rescale, init_scale=self.init_scale)
        attention = partial(AttentionBlock, skip_rescale=self.skip_rescale, init_scale=self.init_scale)
        levels = [
            (level, self.nf * mult, x.shape[1] >> level in self.attn_resolutions)
            for level, mult in enumerate(self.ch_mult)
        ]

        temb = dense(4 * self.nf)(self._embed(label.astype(jnp.float32)))
        temb = dense(4 * self.nf)(nn.swish(temb))

        h = conv(self.nf)(x.astype(jnp.float32))
        skips = [h]
        for level, width, attend in levels:
            for _ in range(self.num_res_blocks):
                h = block(width)(h, temb, train=train)
                h = attention()(h) if attend else h
                skips.append(h)
            if level < len(levels) - 1:
                h = block(width, resample=downsample)(h, temb, train=train)
                skips.append(h)

        h = block(width)(h, temb, train=train)  # the width of the lowest level
        h = attention()(h)
        h = block(width)(h, temb, train=train)

        for level, width, attend in reversed(levels):
            for _ in range(self.num_res_blocks + 1):
                h = block(width)(jnp.concatenate([h, skips.pop()], axis=-1), temb, train=train)
            h = attention()(h) if attend else h  # once per level on the way up, as published
            if level > 0:
                h = block(width, resample=upsample)(h, temb, train=train)

        h = nn.swish(group_norm(h.shape[-1])(h))
        return conv(x.shape[-1], init_scale=self.init_scale)(h).astype(x.dtype)

    def _embed(self, label: Float[Array, " b"]) -> Float[Array, "b f"]:
        if self.embedding_type == "fourier":
            return FourierEmbedding(self.nf, self.fourier_scale)(label)
        return positional_embedding(label, self.nf)

    def _check(self, shape: tuple[int, ...], label_shape: tuple[int, ...]) -> None:
        check_inputs(shape, label_shape, self.embedding_type)
        if len(shape) != 4:
            raise ValueError(f"expected images (B, H, W, C), got {shape}. Add the axes that are missing.")
        factor = 2 ** (len(self.ch_mult) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"expected height and width divisible by {factor} for the {len(self.ch_mult)} levels of ch_mult, "
                f"got {shape[1]}x{shape[2]}. Pad the images, or give ch_mult fewer levels."
            )
