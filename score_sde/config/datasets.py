"""The data section: from a name to a source, its shape and its levels."""

import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

from ml_collections import ConfigDict

from score_sde import data

from .kinds import Builder
from .trust import resolve


def _toy(draw: Callable, split: str) -> data.Source:
    """50,000 points to train on, 5,000 others to test on."""
    return draw(50_000, seed=0) if split == "train" else draw(5_000, seed=1)


# name -> (load(split, directory), shape, levels) of what is published; users' own data are in `_data`.
DATASETS = {
    "digits": (lambda split, directory: data.digits(split), (8, 8, 1), 17),
    "cifar10": (data.cifar10, (32, 32, 3), 256),
    "fashion_mnist": (data.fashion_mnist, (28, 28, 1), 256),
    "mnist": (data.mnist, (28, 28, 1), 256),
    **{
        draw.__name__: (lambda split, directory, draw=draw: _toy(draw, split), (2,), None)
        for draw in (data.swiss_roll, data.two_moons, data.checkerboard, data.eight_gaussians)
    },
}
# name -> settings of the data section; `module:function` beside them, a function(split, directory) -> Source.
OWN_DATA = {"images": ("channels", "size"), "arrays": ("levels",)}


DataSet = tuple[Callable[[str], data.Source], tuple[int, ...], int | None]  # load(split), shape, levels


def data_set(make: Builder, c: ConfigDict) -> DataSet | None:
    """The data section.  Of users' own files only what tells the shape is read."""
    if c.name not in DATASETS and c.name not in OWN_DATA and ":" not in c.name:
        return make.choose("data.name", {**DATASETS, **OWN_DATA, "module:function": None}, c.name)
    settings = {key: c[key] for key in OWN_DATA.get(c.name, ())}
    make.used["data"] = {"name", "dir", "flip", "range", *settings}
    make.unused("data", c, ["name"])
    if c.name in DATASETS:
        load, shape, levels = DATASETS[c.name]
        return cache(lambda split: load(split, c.dir)), shape, levels
    if c.name not in OWN_DATA:
        return users_source(make, c.name, c.dir)
    found = len(make.problems)
    unseen = c.name == "images" and c.dir is None and c.size is not None  # which sampling does with
    make.check(unseen or c.dir is not None, f"data.dir must say where the {c.name} are, got None")
    if c.name == "images":
        make.check(c.channels in (1, 3), f"data.channels must be 1 (grey) or 3 (RGB) for images, got {c.channels}")
        make.check(c.size is None or c.size >= 1, f"data.size must be at least 1, got {c.size}")
    good = c.levels is None or 2 <= c.levels <= 2**16
    make.check(good, f"data.levels must be in 2..65536, got {c.levels}")
    if len(make.problems) > found:
        return None
    if unseen:
        return _no_images, (c.size, c.size, c.channels), 256
    try:
        if c.name == "images":
            return cache(lambda split: data.images(split, c.dir, **settings)), data.image_shape(c.dir, **settings), 256
        return cache(lambda split: data.arrays(split, c.dir, **settings)), *data.array_shape(c.dir, **settings)
    except data.DataError as error:
        make.problems.append(str(error))
        return None


def _no_images(split: str) -> data.Source:
    raise data.DataError("data.dir must say where the images are, got None. Give --config.data.dir=FOLDER.")


def users_source(make: Builder, name: str, directory: str | None) -> DataSet | None:
    """The data set of `module:function`, which is called with (split, directory) and returns a `Source`."""
    load = cache(lambda split: resolve(name)(split, directory))
    try:
        source = load("train")
        if not isinstance(source, data.Source):
            raise TypeError(f"{type(source).__name__} returned, which lacks something of score_sde.data.Source")
        data.describe(source)  # what it gives is what it says
        return load, tuple(source.shape), source.levels
    except Exception as error:  # of the user's code
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}: {error}"
        make.problems.append(
            f"data.name={name} must be a function(split, directory) -> Source of a module, got {where}"
        )
        return None
