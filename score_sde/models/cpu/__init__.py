"""The cellar: what makes XLA fast on CPUs, and nothing that changes a value.

`convolve` is `jax.lax.conv_general_dilated` of images, faster; `set_up_cpu` prepares a process.
"""

import warnings

from .process import has_onednn as has_onednn
from .process import set_up_cpu as set_up_cpu

try:
    from .convolution import convolve as convolve
except (ImportError, AttributeError) as missing:  # a primitive of our own stands on parts of JAX that it may remove
    from jax.lax import conv_general_dilated as convolve  # noqa: F401

    warnings.warn(
        f"this JAX lacks what fast convolutions need ({missing}): the same values, but slow in loops on CPUs. "
        "Use a JAX that score_sde's release notes name.",
        RuntimeWarning,
        stacklevel=2,
    )
