"""Networks: arrays in, arrays out.  They know their own hyper-parameters, no SDE and no config object."""

from .classifier import Classifier as Classifier
from .mlp import MLP as MLP
from .mlp import MLPClassifier as MLPClassifier
from .unet import UNet as UNet
