"""Data sets, and the order in which training and evaluation see them.

A source holds examples (`sources.py`); `digits`, `cifar10`, `mnist`, `fashion_mnist` and the toys make sources;
`batches` and `in_order` walk over any of them (`pipeline.py`).  Everything here is NumPy: pixels stay integers until
they are on the device.
"""

from score_sde.data.cifar10 import cifar10
from score_sde.data.digits import digits
from score_sde.data.idx import fashion_mnist, mnist
from score_sde.data.pipeline import batch_indices, batches, in_order
from score_sde.data.sources import ArraySource, DataError, Source
from score_sde.data.toys import checkerboard, eight_gaussians, swiss_roll, two_moons

__all__ = [
    "ArraySource",
    "DataError",
    "Source",
    "batch_indices",
    "batches",
    "checkerboard",
    "cifar10",
    "digits",
    "eight_gaussians",
    "fashion_mnist",
    "in_order",
    "mnist",
    "swiss_roll",
    "two_moons",
]
