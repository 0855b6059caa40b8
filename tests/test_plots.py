"""Pictures: every pixel where it belongs."""

import io

import numpy as np
import pytest
from PIL import Image

from score_sde.plots import image_grid, picture, scatter

BORDER = 64


def pixels(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_at_its_place_enlarged(channels):
    height, width, levels = 4, 6, 17
    images = np.random.default_rng(0).integers(levels, size=(5, height, width, channels)).astype(np.uint8)
    found = pixels(image_grid(images, levels, min_side=8))  # factor 2; 5 images make 2 rows of 3
    high, wide = 2 * height + 2, 2 * width + 2
    assert found.shape == ((2 * high, 3 * wide) if channels == 1 else (2 * high, 3 * wide, 3))
    assert found.dtype == np.uint8
    expected = np.full((2 * high, 3 * wide, channels), BORDER, np.uint8)
    for n, image in enumerate(images):
        row, column = divmod(n, 3)
        for y in range(2 * height):
            for x in range(2 * width):
                value = np.round(image[y // 2, x // 2] * (255 / (levels - 1)))
                expected[row * high + 1 + y, column * wide + 1 + x] = value
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_the_ends_of_the_grey_levels_are_black_and_white():
    images = np.array([0, 15]).reshape(2, 1, 1, 1)
    found = pixels(image_grid(images, 16, columns=2, min_side=1))
    assert found.shape == (3, 6) and found[1, 1] == 0 and found[1, 4] == 255


def test_columns_and_the_default_size():
    images = np.zeros((3, 8, 8, 1), np.uint8)
    assert pixels(image_grid(images, 17, columns=1)).shape == (3 * 34, 34)
    assert pixels(image_grid(np.zeros((1, 40, 40, 3), np.uint8), 256)).shape == (42, 42, 3)  # not enlarged


def test_a_scatter_has_x_to_the_right_and_y_up():
    found = pixels(scatter(np.array([[1.0, 0.5]]), side=84))
    assert found.shape == (84, 84)
    row, column = np.unravel_index(found.argmin(), found.shape)
    # [-1.05, 1.05] over 84 pixels: 40 pixels a unit; x = 1 is 82 from the left, y = 0.5 is 22 from the top
    assert column in (81, 82) and row in (21, 22)
    assert (found < 255).sum() == 1


def test_a_scatter_gets_darker_with_more_points():
    points = np.repeat([[-1.0, -1.0], [1.0, 1.0]], [1, 4], axis=0)
    found = pixels(scatter(points, side=42))
    upper_right, lower_left = found[:21, 21:].min(), found[21:, :21].min()
    assert upper_right == round(255 * np.exp(-4)) and lower_left == round(255 * np.exp(-1))
    assert (found < 255).sum() == 2


def test_points_all_in_one_place_make_a_picture():
    assert pixels(scatter(np.zeros((3, 2)))).min() < 255


def test_the_picture_suits_the_data():
    assert pixels(picture(np.zeros((4, 8, 8, 1), np.uint8), 17)).shape == (68, 68)
    assert pixels(picture(np.zeros((4, 2), np.float32), None)).shape == (384, 384)
    assert picture(np.zeros((4, 3), np.float32), None) is None
    assert picture(np.zeros((4, 8, 8, 2), np.uint8), 17) is None
    assert picture(np.zeros((4, 2), np.uint8), 17) is None
