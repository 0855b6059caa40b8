"""Data sets, and the order in which training and evaluation see them.

A source holds examples (`sources.py`, which also shows how to write one).  `digits`, `cifar10`, `mnist`,
`fashion_mnist` and the toys make sources; `images` and `arrays` make them from users' own files; `fetch.py` downloads
the published ones.  `batches` and `in_order` walk over any source (`pipeline.py`), `describe` says what is in it.
Everything here is NumPy: pixels stay integers until they are on the device.
"""

from score_sde.data.cifar10 import cifar10
from score_sde.data.digits import digits
from score_sde.data.idx import fashion_mnist, mnist
from score_sde.data.images import image_shape, images, read_image
from score_sde.data.numpy_files import array_shape, arrays
from score_sde.data.pipeline import batch_indices, batches, in_order
from score_sde.data.shuffle import drawn_rows
from score_sde.data.sources import ArraySource, DataError, Source, Subset, split_rows
from score_sde.data.statistics import describe
from score_sde.data.toys import checkerboard, eight_gaussians, swiss_roll, two_moons

__all__ = [
    "ArraySource",
    "DataError",
    "Source",
    "Subset",
    "array_shape",
    "arrays",
    "batch_indices",
    "batches",
    "checkerboard",
    "cifar10",
    "describe",
    "digits",
    "drawn_rows",
    "eight_gaussians",
    "fashion_mnist",
    "image_shape",
    "images",
    "in_order",
    "mnist",
    "read_image",
    "split_rows",
    "swiss_roll",
    "two_moons",
]
