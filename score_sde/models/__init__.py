"""Networks: arrays in, arrays out.  They know their own hyper-parameters, no SDE and no config object."""

from .unet import UNet as UNet
