"""Pictures: every pixel where it belongs."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from score_sde import plots
from score_sde.extras import MissingExtra
from score_sde.plots import animation, image_grid, picture, scatter, strip

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


# --- moments from noise to data ---------------------------------------------------------------------------------------


def test_a_strip_has_a_column_for_each_moment_and_a_row_for_each_of_the_first_samples():
    states = np.random.default_rng(0).integers(17, size=(5, 10, 8, 8, 1)).astype(np.uint8)
    found = pixels(strip(states, 17))
    assert found.shape == (8 * 34, 5 * 34)
    for moment in range(5):
        column = found[:, moment * 34 : (moment + 1) * 34]
        np.testing.assert_array_equal(column, pixels(image_grid(states[moment, :8], 17, columns=1)))
    assert pixels(strip(states[:, :3], 17)).shape == (3 * 34, 5 * 34)


def test_a_strip_of_points_is_a_row_of_scatters_in_one_frame():
    points = np.array([[[0.5, 0.0]], [[-0.5, 0.5]], [[1.0, 0.0]]])
    found = pixels(strip(points, None))
    assert found.shape == (192, 3 * 192)
    for panel, x in zip(np.split(found[1:-1], 3, axis=1), (0.5, -0.5, 1.0), strict=True):
        (column,) = np.unique(np.nonzero(panel[:, 1:-1] < 255)[1])
        assert column == pytest.approx(95 + x * 95 / 1.5, abs=1)  # 1.5 of the last is at the edge


@pytest.mark.parametrize("levels", [17, None])
def test_an_animation_has_a_frame_for_each_moment_and_stands_at_the_end(levels):
    rng = np.random.default_rng(0)
    states = rng.integers(17, size=(4, 5, 8, 8, 1)) if levels else rng.normal(size=(4, 500, 2))
    with Image.open(io.BytesIO(animation(states, levels, seconds=0.4, still=2.0))) as image:
        assert image.n_frames == 4 and image.info["loop"] == 0
        times = []
        for n in range(4):
            image.seek(n)
            times.append(image.info["duration"])
        last = np.asarray(image.convert("L"))
    assert times == [100, 100, 100, 2000]
    assert last.std() > 0
    if levels:
        np.testing.assert_array_equal(last, pixels(image_grid(states[-1], 17)))


# --- curves -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    from matplotlib.figure import Figure

    made, init = [], Figure.__init__
    monkeypatch.setattr(
        Figure, "__init__", lambda self, *args, **kwargs: made.append(self) or init(self, *args, **kwargs)
    )
    return made


def test_a_learning_curve_has_labelled_axes_and_no_global_state(figures):
    had_pyplot, steps = "matplotlib.pyplot" in sys.modules, np.arange(1, 51) * 100
    loss = np.geomspace(1.0, 0.01, 50)
    found = pixels(plots.learning_curve(steps, loss, loss, np.full(50, 2.0), "running mean"))
    assert found.ndim == 3 and (found.min(axis=2) < 255).mean() > 0.01
    above, below = figures[0].axes
    np.testing.assert_array_equal(above.lines[0].get_xdata(), steps)
    np.testing.assert_array_equal(above.lines[0].get_ydata(), loss)
    assert (above.get_yscale(), below.get_yscale()) == ("log", "linear")
    assert above.get_ylabel() == "training loss" and "gradient norm" in below.get_ylabel()
    assert below.get_xlabel() == "step" and below.get_xlim()[0] == 0
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_pictures_by_noise_level_show_values_and_error_bars(figures):
    x, y = np.array([-2.0, 0.0, 2.0]), np.array([0.1, 0.5, 1.0])
    plots.loss_by_level(x, dict(loss=y, noise=y, data=y[::-1]), dict(loss=y / 10, noise=y / 10, data=y / 10), "title")
    plots.bound_by_level(x, y, y / 5, "bits/dim", "title")
    (loss, errors), (bound,) = (figure.axes for figure in figures)
    assert "log-SNR" in errors.get_xlabel() and "log-SNR" in bound.get_xlabel()
    segments = loss.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in segments], np.stack([0.9 * y, 1.1 * y], axis=1))
    assert [text.get_text() for text in errors.get_legend().get_texts()] == ["of predicting 0", "noise", "data"]
    np.testing.assert_allclose([bar.get_height() for bar in bound.patches], y)
    assert bound.get_ylabel() == "bits/dim per interval of 2"


def test_values_that_are_not_there_are_left_out():
    steps, loss = np.array([1, 2, 3]), np.array([np.nan, 0.5, np.nan])
    assert pixels(plots.learning_curve(steps, loss, loss, loss, "mean")).std() > 0
    nothing = np.full(3, np.nan)
    assert pixels(plots.bound_by_level(steps.astype(float), np.ones(3), nothing, "bits/dim", "")).std() > 0


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"^matplotlib is not installed.*score_sde\[plots\]"):
        plots.check_matplotlib()


@pytest.mark.parametrize("values", [np.full(7, 1e6, np.float32), np.array([1.0, np.nextafter(1.0, 2)]), np.zeros(0)])
def test_values_that_are_all_alike_have_a_histogram_too(values):
    assert Image.open(io.BytesIO(plots.histogram(values, "nats"))).size == (480, 240)
