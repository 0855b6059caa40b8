"""A folder of images.

    FOLDER/train/cat/1.png  FOLDER/test/cat/2.png      given splits
    FOLDER/cat/1.png        FOLDER/dog/2.png           every tenth file, sorted by path, is a test image
    FOLDER/1.png            FOLDER/2.png               the same without classes

PNG, JPEG and WebP; subfolders are the classes, numbered by their sorted names.  Every file is decoded once, before
anything else happens, so that each unusable one is named; the pixels go to a file in the cache, which later starts
compare with its checksum and map into memory.  Files whose names start with a dot are passed over in silence, those of
other kinds with a warning.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import threading
import uuid
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from score_sde.data.sources import ArraySource, DataError, Source, Subset, check_split, split_rows
from score_sde.reading import check_limit, limit, printable, read_bytes

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MODES = {1: "L", 3: "RGB"}
_FORMAT = 1  # of the decoded files in the cache: raise it where the same images would give other pixels
_PIECE = 1024  # files decoded before their pixels are written
_STRIP = 2**20  # pixels that are laid on white at a time
_DEEPEST = 50  # folders in folders
_SCANS = 100  # of a JPEG; each walks over all its pixels, in 50 bytes of the file


def images(split: str, directory: str | os.PathLike, *, channels: int, size: int | None = None) -> Source:
    """Images of a folder, shape (height, width, channels), 256 levels; classes where there are subfolders.

    Transparent places become white, palettes the colours they stand for, the orientation that a camera noted is
    applied, and of an animation the first picture is taken.  Files with 16 bits per channel are refused.

    Args:
        split: 'train' or 'test'.
        directory: the folder, laid out as the module's docstring says.
        channels: 1 converts to grey (ITU-R 601 luma), 3 to RGB.
        size: the shorter side is resized to this and the middle square cut out; None: as the images are, all alike.

    Raises:
        ValueError: another split, `channels` or `size` is asked for.
        DataError: there are no images; some are damaged, empty, foreign or of another size (the first are named); the
            cache cannot be written.
    """
    check_split(split)
    _check_options(channels, size)
    files, classes, rows = _listed(directory := os.fspath(directory))
    shape = _shape(directory, files[rows["train"][0]], channels, size)
    pixels = _decoded(directory, files, shape, size)
    source = ArraySource(pixels, classes, 256, None if classes is None else int(classes.max()) + 1)
    return Subset(source, rows[split])


def image_shape(directory: str | os.PathLike, *, channels: int, size: int | None = None) -> tuple[int, int, int]:
    """(height, width, channels) of the examples of `images`, from its first file where `size` is None; errors alike."""
    _check_options(channels, size)
    files, _, rows = _listed(directory := os.fspath(directory))
    return _shape(directory, files[rows["train"][0]], channels, size)


def read_image(file: str | os.PathLike, *, channels: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of one file, of the given shape (height, width, channels), uint8; DataError where it is none."""
    found = _decode(os.fspath(file), channels, None)
    if isinstance(found, str):
        raise DataError(f"{file}: expected a PNG, JPEG or WebP image, got {found}.")
    if found.shape != tuple(shape):
        raise DataError(f"{file}: expected {shape[1]}x{shape[0]} pixels, got {found.shape[1]}x{found.shape[0]}.")
    return found


def _check_options(channels: int, size: int | None) -> None:
    if channels not in _MODES:
        raise ValueError(f"expected channels=1 (grey) or 3 (RGB), got {channels}. Say which the images shall have.")
    if size is not None and size < 1:
        raise ValueError(f"expected size of at least 1 pixel, got {size}. Leave it out to keep the images' own.")
    if size is not None and size > (most := math.isqrt(limit("SCORE_SDE_MAX_PIXELS"))):
        raise ValueError(
            f"expected size of at most {most} pixels, got {size}. Choose less, or set SCORE_SDE_MAX_PIXELS."
        )


def _shape(directory: str, first: str, channels: int, size: int | None) -> tuple[int, int, int]:
    if size is not None:
        return size, size, channels
    found = _decode(file := os.path.join(directory, first), channels, None)
    if isinstance(found, str):
        raise DataError(f"{file}: expected a PNG, JPEG or WebP image, got {found}; repair it or move it away")
    return found.shape


def _listed(directory: str) -> tuple[list[str], np.ndarray | None, dict[str, np.ndarray]]:
    """Sorted paths of all images below `directory`, class of each or None, and the rows of each split."""
    if not os.path.isdir(directory):
        raise DataError(f"{directory}: expected a folder of images, got no folder; set config.data.dir")
    given = [name for name in ("train", "test") if os.path.isdir(os.path.join(directory, name))]
    if len(given) == 1:
        raise DataError(f"{directory}: expected train/ and test/, or neither, got {given[0]}/ alone; add the other")
    parts = {name: _images_below(os.path.join(directory, name)) for name in given or [""]}
    if empty := [name for name, files in parts.items() if not files]:
        where = os.path.join(directory, empty[0])
        raise DataError(f"{where}: expected {', '.join(_SUFFIXES)} files, got none; set config.data.dir")
    files = [os.path.join(name, file) for name, found in parts.items() for file in found]
    owners = [file.split(os.sep)[0] if os.sep in file else None for found in parts.values() for file in found]
    if None in owners and set(owners) != {None}:
        loose = files[owners.index(None)]
        raise DataError(
            f"{directory}: expected all images in subfolders, the classes, or none, got {loose} beside them"
        )
    numbers = {name: n for n, name in enumerate(sorted(set(owners) - {None}))}
    classes = np.array([numbers[owner] for owner in owners]) if numbers else None
    if not given:
        if len(files) < 2:
            raise DataError(f"{directory}: expected at least two images, to train and to test, got {files[0]} alone")
        return files, classes, {split: split_rows(split, len(files)) for split in ("train", "test")}
    count = len(parts["train"])
    if new := set(owners[count:]) - set(owners[:count]):
        raise DataError(f"{directory}/test: expected the classes of train/, got {sorted(map(str, new))[0]} too")
    return files, classes, {"train": np.arange(count), "test": np.arange(count, len(files))}


def _images_below(folder: str) -> list[str]:
    """Relative paths of the images below `folder`, in one order on every machine."""
    names, seen = [], {}
    for path, folders, files in os.walk(folder, followlinks=True):
        state = os.stat(path)
        if (first := seen.setdefault((state.st_dev, state.st_ino), path)) != path:
            raise DataError(f"{path}: expected each folder once, got {first} again by a link; take the link away")
        folders[:] = [name for name in folders if not name.startswith(".")]
        where = os.path.relpath(path, folder)
        if where.count(os.sep) > _DEEPEST:
            raise DataError(f"{path}: expected at most {_DEEPEST} folders in each other, got more; flatten them")
        inside = "" if where == os.curdir else where + os.sep
        names += [inside + name for name in files if not name.startswith(".")]
    found = sorted((name for name in names if name.lower().endswith(_SUFFIXES)), key=lambda name: name.split(os.sep))
    if others := sorted(set(names) - set(found)):
        logging.getLogger(__name__).warning(
            "note: %d files in %s are not %s and are left out: %s%s",
            len(others), printable(folder), "/".join(_SUFFIXES), printable(", ".join(others[:3])),
            " ..." if others[3:] else "",
        )  # fmt: skip
    return found


def _decoded(directory: str, files: list[str], shape: tuple[int, int, int], size: int | None) -> np.ndarray:
    """Pixels (N, *shape) uint8 of all files, mapped from the cache, where they are written first if need be."""
    from score_sde.data.fetch import cache_directory  # `python -m score_sde.data.fetch` wants to be the first import

    states = [_state(os.path.join(directory, file)) for file in files]
    key = json.dumps([_FORMAT, os.path.realpath(directory), files, states, shape, size])
    cached = cache_directory() / "images" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    checksum = cached.with_suffix(".sha256")
    with contextlib.suppress(OSError, EOFError, ValueError):  # not there, or cut short by a disk or a hand
        if checksum.read_text() == _digest_of(str(cached), _state(str(cached))):
            return np.load(cached, mmap_mode="r", allow_pickle=False)
    temporary = cached.with_name(f".{cached.name}.{uuid.uuid4().hex}")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:  # plain writes: a full disk is an error there, and a crash in a memory map
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for pixels in _decode_all(directory, files, shape, size):
                file.write(pixels)
            file.flush()
            os.fsync(file.fileno())
        digest = _digest_of(str(temporary), None)
        checksum.unlink(missing_ok=True)  # a stop between the three leaves no checksum, so the files are decoded again
        os.replace(temporary, cached)
        checksum.write_text(digest)
        return np.load(cached, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(
            f"{cached.parent}: expected room for {len(files) * np.prod(shape) / 1e6:,.0f} MB of decoded images, got "
            f"{error.strerror}; set $SCORE_SDE_DATA to another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _state(file: str) -> tuple[int, int] | None:
    """What changes when a file does; None for a link to nowhere, which decoding will name."""
    with contextlib.suppress(OSError):
        state = os.stat(file)
        return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=8)  # splits are loaded again and again, and a large file takes seconds
def _digest_of(file: str, state: tuple[int, int] | None) -> str:
    """The sha256 of a file in a state."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _decode_all(directory: str, files: list[str], shape: tuple[int, int, int], size: int | None) -> Iterator[bytes]:
    """The pixels of each file in order, decoded in threads; DataError at the end if some cannot be used."""
    from tqdm import tqdm

    bad = []

    def decode(file: str) -> np.ndarray | str:
        found = _decode(os.path.join(directory, file), shape[2], size)
        if not isinstance(found, str) and found.shape != shape:
            return f"{found.shape[1]}x{found.shape[0]} pixels beside {shape[1]}x{shape[0]} (data.size makes them alike)"
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(
        total=len(files), desc="decoding images", unit="file", leave=False, delay=1
    ) as bar:  # fmt: skip
        for first in range(0, len(files), _PIECE):
            piece = files[first : first + _PIECE]
            for file, found in zip(piece, pool.map(decode, piece), strict=True):
                if isinstance(found, str):
                    bad.append(f"{file} ({found})")
                elif not bad:
                    yield found.tobytes()
                bar.update()
    if bad:
        more = f" and {len(bad) - 5} more" if bad[5:] else ""
        raise DataError(
            f"{directory}: expected {len(files):,} usable images, got {len(bad)} that are not: "
            f"{', '.join(bad[:5])}{more}; repair them or move them away"
        )


def _decode(path: str, channels: int, size: int | None) -> np.ndarray | str:
    """Pixels (height, width, channels) of a file, or what is wrong with it in a few words."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        data = read_bytes(path)
        if not data:
            return "an empty file"
        if data.startswith(b"\x89PNG") and data[24:25] == b"\x10":  # Pillow would drop the lower byte without a word
            return "a PNG of 16 bits per channel"
        if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _SCANS:
            return f"a JPEG of more than {_SCANS} scans"
        with _header_of(data) as image, _room.take(image.width * image.height):
            if image.format == "PNG":
                _header_of(data).verify()  # checksums, to the last chunk
            ImageOps.exif_transpose(image, in_place=True)
            image = _plain(image, _MODES[channels])
            if size is not None:
                image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
            return np.asarray(image).reshape(image.height, image.width, channels)
    except UnidentifiedImageError:
        return "not a PNG, JPEG or WebP image"
    except Exception as error:  # of many kinds, depending on where the damage lies
        return printable(getattr(error, "strerror", None) or error) or type(error).__name__


def _header_of(data: bytes):
    """The image of a file, whose pixels are not decoded yet; OSError where there are too many of them."""
    from PIL import Image

    # Pillow's own limit is only a warning; filters of warnings are those of all threads, hence the lock
    with _one_by_one, warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
    check_limit("SCORE_SDE_MAX_PIXELS", image.width * image.height, "pixels")
    return image


def _plain(image, mode: str):
    """An image as `mode`, on white where it is transparent, strip by strip: each form of it takes 4 bytes a pixel."""
    from PIL import Image

    image.load()
    if image.mode == mode and not image.has_transparency_data:
        return image
    flat, rows = Image.new(mode, image.size), max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        if image.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        strip = strip.convert("RGB") if strip.mode not in ("L", "RGB") else strip  # the palette's colours
        flat.paste(strip.convert(mode), (0, top))
    return flat


class _Room:
    """Pixels that may be decoded at the same time, by all threads together: an image waits until there is room."""

    def __init__(self):
        self._taken, self._change = 0, threading.Condition()

    @contextlib.contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        with self._change:
            self._change.wait_for(lambda: not self._taken or self._taken + pixels <= limit("SCORE_SDE_MAX_PIXELS"))
            self._taken += pixels
        try:
            yield
        finally:
            with self._change:
                self._taken -= pixels
                self._change.notify_all()


_room, _one_by_one = _Room(), threading.Lock()
