"""Folders of images made here: layouts, kinds of pixels, the cache, and every way a file can be unusable."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from score_sde.data import DataError, batch_indices, batches, image_shape, images
from score_sde.data.fetch import cache_directory


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def picture(number, height=5, width=4):
    """A formula for the value at each place, in which no two axes can be swapped unnoticed."""
    y, x, channel = np.ogrid[:height, :width, :3]
    return ((61 * number + 7 * y + 23 * x + 89 * channel + y * x) % 256).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def everything(split, folder, **options):
    source = images(split, folder, **dict(channels=3) | options)
    return source, source[np.arange(len(source))]


def error(folder, split="train", **options):
    with pytest.raises(DataError) as caught:
        images(split, folder, **dict(channels=3) | options)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


# --- layouts and splits ----------------------------------------------------------------------------------------------


def test_given_splits_with_classes(folder):
    files = ["train/cat/1.png", "train/cat/0.png", "train/ant/9.png", "test/cat/5.PNG", "train/eel/deep/er/3.png"]
    for n, file in enumerate(files):
        save(folder / file, picture(n))
    source, batch = everything("train", folder)
    assert (len(source), source.shape, source.levels, source.num_classes) == (4, (5, 4, 3), 256, 3)
    np.testing.assert_array_equal(batch["x"], [picture(n) for n in (2, 1, 0, 4)])  # sorted by path
    np.testing.assert_array_equal(batch["label"], [0, 1, 1, 2])
    source, batch = everything("test", folder)
    assert (len(source), source.num_classes) == (1, 3)
    np.testing.assert_array_equal(batch["x"], [picture(3)])
    np.testing.assert_array_equal(batch["label"], [1])


@pytest.mark.parametrize("classes", [False, True])
def test_one_folder_is_split_by_every_tenth_of_its_sorted_files(folder, classes):
    order = np.random.default_rng(0).permutation(23)  # the order of writing, and so of the directory, means nothing
    for n in order:
        save(folder / ("odd" if n > 11 else "even") / f"{n:02}.png" if classes else folder / f"{n:02}.png", picture(n))
    (train, in_train), (test, in_test) = everything("train", folder), everything("test", folder)
    np.testing.assert_array_equal(in_test["x"], [picture(n) for n in (0, 10, 20)])
    np.testing.assert_array_equal(in_train["x"], [picture(n) for n in range(23) if n % 10])
    assert train.num_classes == test.num_classes == (2 if classes else None)
    if classes:
        np.testing.assert_array_equal(in_test["label"], [0, 0, 1])
    else:
        assert in_test.keys() == {"x"}


def test_the_split_is_the_same_in_another_process_and_place(folder, tmp_path):
    for n in range(25):
        save(folder / "a" / f"{n}.png", picture(n))
    code = (
        "import sys, numpy as np; from score_sde.data import images; s = images('test', sys.argv[1], channels=3);"
        "print(s[np.arange(len(s))]['x'][:, 0, 0, 0].tolist())"
    )
    other = tmp_path / "other"
    folder.rename(other)
    command = [sys.executable, "-c", code, str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    names = sorted(range(25), key=str)[::10]
    assert done.stdout.strip() == str([int(picture(n)[0, 0, 0]) for n in names])


def test_hidden_files_are_passed_over_and_others_noted(folder, caplog):
    for n in range(3):
        save(folder / f"{n}.png", picture(n))
    (folder / ".DS_Store").write_bytes(b"x")
    save(folder / ".hidden" / "4.png", picture(4))
    for name in ("README.txt", "more.gif"):
        (folder / name).write_bytes(b"x")
    assert len(images("train", folder, channels=3)) == 2
    assert "README.txt, more.gif" in caplog.text and "2 files" in caplog.text


LAYOUTS = {
    "no folder": ([], "expected a folder of images, got no folder"),
    "nothing in it": ([], "got none"),
    "train alone": (["train/0.png"], "expected train/ and test/, or neither, got train/ alone"),
    "no test images": (["train/0.png", "test/x.txt"], "test: expected .png"),
    "files beside classes": (["a/0.png", "1.png"], "got 1.png beside them"),
    "a class to test on alone": (["train/a/0.png", "test/b/0.png"], "expected the classes of train/, got b too"),
    "classes to train on alone": (["train/a/0.png", "test/0.png"], "got test/0.png beside them"),
    "a single file": (["0.png"], "at least two images"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_that_makes_no_sense(folder, case):
    files, message = LAYOUTS[case]
    for file in files:
        if file.endswith(".png"):
            save(folder / file, picture(0))
        else:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text("")
    assert message in error(folder / "nowhere" if case == "no folder" else folder)


# --- pixels ----------------------------------------------------------------------------------------------------------


def one(folder, image, suffix=".png", *, channels=3, size=None, **options):
    """The pixels of an image that goes through a file."""
    for n in range(2):
        image.save(folder / f"{n}{suffix}", **options)
    return everything("train", folder, channels=channels, size=size)[1]["x"][0]


def test_grey_and_colour_are_said_explicitly(folder):
    grey, colour = picture(0)[..., 0], picture(1)
    np.testing.assert_array_equal(one(folder, Image.fromarray(grey), channels=1), grey[..., None])
    np.testing.assert_array_equal(one(folder, Image.fromarray(grey)), np.stack([grey] * 3, axis=-1))
    luma = one(folder, Image.fromarray(colour), channels=1)
    assert luma.shape == (5, 4, 1)
    np.testing.assert_allclose(luma[..., 0], colour @ [0.299, 0.587, 0.114], atol=0.51)  # ITU-R 601, rounded


@pytest.mark.parametrize("suffix, options", [(".jpg", dict(quality=95)), (".JPEG", {}), (".webp", dict(lossless=True))])
def test_other_formats(folder, suffix, options):
    smooth = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[:, None, None], (16, 16, 3))
    found = one(folder, Image.fromarray(np.ascontiguousarray(smooth)), suffix, **options)
    np.testing.assert_allclose(found.astype(int), smooth, atol=0 if suffix == ".webp" else 6)


@pytest.mark.parametrize("strip", [2**20, 8])
def test_transparency_is_white_and_palettes_are_colours(folder, strip, monkeypatch):
    monkeypatch.setattr(sys.modules["score_sde.data.images"], "_STRIP", strip)
    pixels = np.dstack([picture(0), np.full((5, 4), 255, np.uint8)])
    pixels[0, 0, 3], pixels[1, 1, 3] = 0, 128
    found = one(folder, Image.fromarray(pixels))
    assert (found[0, 0] == 255).all()
    np.testing.assert_allclose(found[1, 1], (picture(0)[1, 1] * 128.0 + 255 * 127) / 255, atol=1)
    rest = np.ones((5, 4), bool)
    rest[0, 0] = rest[1, 1] = False
    np.testing.assert_array_equal(found[rest], picture(0)[rest])
    indexed = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(5, 4)).convert("P")
    indexed.putpalette([3 * i % 256 for i in range(768)])
    expected = (3 * (3 * np.arange(20).reshape(5, 4, 1) + np.arange(3))) % 256
    np.testing.assert_array_equal(one(folder, indexed), expected)
    expected[0, 2] = 255
    np.testing.assert_array_equal(one(folder, indexed, transparency=2), expected)


def test_the_camera_s_orientation_is_applied(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    np.testing.assert_array_equal(one(folder, Image.fromarray(picture(0)), exif=exif), np.rot90(picture(0), -1))


def test_resize_and_crop(folder):
    # Left half dark, right half bright, twice as wide as high: the middle square is half and half.
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 20:] = 200
    found = one(folder, Image.fromarray(wide), size=10)
    assert found.shape == (10, 10, 3) and image_shape(folder, channels=3, size=10) == (10, 10, 3)
    assert (found[:, :3] < 3).all() and (found[:, 7:] > 197).all()  # Lanczos rings
    tall = np.ascontiguousarray(wide.swapaxes(0, 1))
    np.testing.assert_array_equal(one(folder, Image.fromarray(tall), size=10), found.swapaxes(0, 1))
    square = picture(3, 10, 10)
    np.testing.assert_array_equal(one(folder, Image.fromarray(square), size=10), square)  # nothing to do


def test_sizes_may_differ_where_a_size_is_asked_for(folder):
    for n, shape in enumerate([(9, 12), (12, 9), (30, 31)]):
        save(folder / f"{n}.png", picture(n, *shape))
    assert everything("train", folder, size=8)[1]["x"].shape == (2, 8, 8, 3)
    assert "2.png (31x30 pixels beside 9x12 " in error(folder)


# --- unusable files --------------------------------------------------------------------------------------------------


def encoded(pixels, format="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


PNG, JPEG, WEBP = (encoded(picture(0, 16, 16), kind) for kind in ("PNG", "JPEG", "WEBP"))
UNUSABLE = {
    "empty.png": (b"", "an empty file"),
    "text.jpg": (b"<html>404</html>", "not a PNG, JPEG or WebP image"),
    "foreign.png": (encoded(picture(0, 16, 16), "GIF"), "not a PNG, JPEG or WebP image"),
    "cut.png": (PNG[: len(PNG) // 2], ""),
    "tail.png": (PNG[:-12], ""),  # without the last chunk
    "cut.jpg": (JPEG[:-100], "truncated"),
    "cut.webp": (WEBP[: len(WEBP) // 2], ""),
    "rot.png": (PNG[:-30] + bytes([PNG[-30] ^ 1]) + PNG[-29:], ""),
    "deep.png": (encoded(np.zeros((16, 16), np.uint16)), "16 bits per channel"),
    "small.png": (encoded(picture(0, 8, 16)), "16x8 pixels beside 16x16"),
}


@pytest.mark.parametrize("name", UNUSABLE)
@pytest.mark.parametrize("place", ["a", "b1"])  # a test image; the one that tells the size
def test_an_unusable_file_is_named(folder, cache, name, place):
    data, reason = UNUSABLE[name]
    for n in range(3):
        if place != f"b{n}":
            save(folder / f"b{n}.png", picture(n, 16, 16))
    file = folder / f"{place}{os.path.splitext(name)[1]}"
    file.write_bytes(data)
    message = error(folder)
    if name == "small.png" and place == "b1":
        file, reason = folder / "b0.png", "16x16 pixels beside 16x8"
    assert file.name in message and reason in message
    assert not list(cache.glob("*"))


def test_all_unusable_files_are_counted_and_the_first_named(folder):
    for n in range(12):
        save(folder / f"{n:02}.png", picture(n))
    for n in range(3, 11):
        (folder / f"{n:02}.png").write_bytes(b"")
    message = error(folder)
    assert "12 usable images, got 8 that are not" in message and "and 3 more" in message
    assert [f"{n:02}.png" in message for n in range(2, 9)] == [False] + [True] * 5 + [False]


def test_a_link_to_nowhere(folder):
    for n in range(3):
        save(folder / f"{n}.png", picture(n))
    (folder / "3.png").symlink_to(folder / "nowhere.png")
    assert "3.png (No such file" in error(folder)


def test_more_pixels_than_the_limit(folder, monkeypatch):
    for n in range(2):
        save(folder / f"{n}.png", picture(n, 20, 20))
    monkeypatch.setenv("SCORE_SDE_MAX_PIXELS", "399")
    assert "expected at most 399 pixels, got 400 (set SCORE_SDE_MAX_PIXELS if you trust the file)" in error(folder)
    monkeypatch.setenv("SCORE_SDE_MAX_PIXELS", "400")
    assert len(images("train", folder, channels=3)) == 1


@pytest.mark.parametrize("options", [dict(channels=2), dict(channels=3, size=0), dict(channels=3, size=2**20)])
def test_bad_options(folder, options):
    with pytest.raises(ValueError, match="expected (channels|size)"):
        images("train", folder, **options)


def test_unknown_split(folder):
    with pytest.raises(ValueError, match="'train' or 'test', got 'all'"):
        images("all", folder, channels=3)


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(folder):
    for n in range(3):
        save(folder / f"{n}.png", picture(n))
    return folder


def test_the_second_start_decodes_nothing(three, cache, monkeypatch):
    _, before = everything("train", three)
    assert len(list(cache.glob("*.npy"))) == 1
    calls, original = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: calls.append(1) or original(*args, **options))
    source, after = everything("train", three)
    assert len(calls) <= 2  # the first file, which tells the size, and its checksums
    np.testing.assert_array_equal(after["x"], before["x"])
    base = source.source.x
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_what_changes_is_decoded_again(three, cache):
    everything("train", three)
    everything("train", three, channels=1)
    everything("train", three, size=2)
    assert len(list(cache.glob("*.npy"))) == 3
    save(three / "1.png", picture(7))
    _, batch = everything("train", three)
    np.testing.assert_array_equal(batch["x"][0], picture(7))
    assert len(list(cache.glob("*.npy"))) == 4


@pytest.mark.parametrize("kind", ["npy", "sha256"])
@pytest.mark.parametrize("damage", ["empty", "junk", "cut", "a bit"])
def test_a_damaged_cache_is_made_again(three, cache, damage, kind):
    _, before = everything("train", three)
    (file,) = cache.glob(f"*.{kind}")
    data = file.read_bytes()
    file.write_bytes({"empty": b"", "junk": b"junk", "cut": data[:-7], "a bit": data[:-9] + b"\7" + data[-8:]}[damage])
    np.testing.assert_array_equal(everything("train", three)[1]["x"], before["x"])


def test_a_cache_that_cannot_be_written(three, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"SCORE_SDE_DATA to another folder"):
        images("train", three, channels=3)
    assert cache_directory() == tmp_path / "file"


def test_the_pipeline_resumes_on_a_memory_map(three, folder):
    for n in range(3, 23):
        save(folder / f"{n}.png", picture(n))

    def take(start, count):
        stream = batches(images("train", folder, channels=3), 6, seed=1, start=start, flip=True)
        return [next(stream)["x"] for _ in range(count)]

    run = take(0, 8)
    source = images("train", folder, channels=3)
    plain = source[batch_indices(3, 6, len(source), seed=1)]["x"]
    mirrored = (run[3] == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((run[3] == plain).all(axis=(1, 2, 3)) ^ mirrored).all() and 0 < mirrored.sum() < 6
    np.testing.assert_array_equal(np.stack(take(5, 3)), run[5:])
