"""Networks: arrays in, arrays out.  They know their own hyper-parameters, no SDE and no config object."""

from .classifier import Classifier as Classifier
from .classifier import MLPClassifier as MLPClassifier
from .mlp import MLP as MLP
from .unet import UNet as UNet
