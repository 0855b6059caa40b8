"""The 1,797 handwritten digits of 8x8 pixels that every experiment on a laptop starts with.

Origin: the test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak (1998), UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49, licensed CC BY 4.0 (see `digits.LICENSE` beside this file).
scikit-learn ships the same images, in the same order, as `sklearn.datasets.load_digits`.

A pixel counts the inked cells of a 4x4 block, hence 17 grey levels, 0 to 16.  `digits.npz` holds "images"
(1797, 8, 8) and "labels" (1797,), both uint8, with no value changed.
"""

import zipfile
import zlib
from importlib import resources

import numpy as np

from score_sde.data.sources import ArraySource, DataError, check_split

_FILE = resources.files("score_sde.data") / "digits.npz"


def digits(split: str) -> ArraySource:
    """8x8 handwritten digits, shape (8, 8, 1), 17 levels, 10 classes: 1,437 to train on, 360 to test on.

    Every fifth image, starting with the first, is a test image, which spreads the split over the whole set.

    Args:
        split: 'train' or 'test'.

    Raises:
        ValueError: another split is asked for.
        DataError: the installed file is missing or damaged.

    Source: Alpaydin & Kaynak (1998), https://doi.org/10.24432/C50P49.
    """
    check_split(split)
    try:
        with _FILE.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{_FILE}: expected the digits that come with score_sde, got {reason}; reinstall it") from error
    chosen = (np.arange(len(images)) % 5 == 0) == (split == "test")
    return ArraySource(images[chosen, ..., None], labels[chosen], levels=17, num_classes=10)
