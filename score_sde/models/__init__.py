"""Networks: arrays in, arrays out.  They know their own hyper-parameters, no SDE and no config object."""

from .mlp import MLP as MLP
from .unet import UNet as UNet
