"""Pictures from arrays; nothing is computed here."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from score_sde.extras import extra

LEVELS = "log-SNR of the noise level (noise on the left, data on the right)"


def image_grid(images: np.ndarray, levels: int, *, columns: int | None = None, min_side: int = 32) -> bytes:
    """A PNG of images in rows, from grey levels (N, H, W, C) in 0..levels-1 with C = 1 or 3.

    Small images are enlarged by a whole factor, pixels kept square, to at least `min_side` pixels each.
    """
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    shades = np.round(images.astype(np.float64) * (255 / (levels - 1))).astype(np.uint8)
    factor = max(1, math.ceil(min_side / min(height, width)))
    shades = shades.repeat(factor, axis=1).repeat(factor, axis=2)
    canvas = np.full((rows, columns, height * factor + 2, width * factor + 2, channels), 64, np.uint8)
    for i, picture in enumerate(shades):
        canvas[i // columns, i % columns, 1:-1, 1:-1] = picture
    canvas = canvas.transpose(0, 2, 1, 3, 4).reshape(canvas.shape[0] * canvas.shape[2], -1, channels)
    return _png(canvas)


def restorations(
    measured: np.ndarray,
    samples: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    truth: np.ndarray | None,
    levels: int,
    title: str,
) -> bytes:
    """A PNG with a row for each example: the measurement, samples, their mean and standard deviation, the truth.

    Grey levels (N, H, W, C) in 0..levels-1, samples (N, S, H, W, C); the standard deviation in any unit, its largest
    value white.
    """
    spread = np.round(std * ((levels - 1) / max(float(std.max()), 1e-12))).astype(measured.dtype)
    parts = [("measured", measured)] + [(f"sample {i + 1}", samples[:, i]) for i in range(samples.shape[1])]
    parts += [("mean", mean), ("std", spread)] + ([] if truth is None else [("truth", truth)])
    images = np.stack([images for _, images in parts], axis=1)
    images = images.reshape(-1, *images.shape[2:])
    grid = Image.open(io.BytesIO(image_grid(images, levels, columns=len(parts), min_side=56)))
    canvas = Image.new(grid.mode, (max(grid.width, 7 * len(title) + 8), grid.height + 32), "white")
    canvas.paste(grid, (0, 32))
    draw, width = ImageDraw.Draw(canvas), grid.width // len(parts)
    draw.text((4, 2), title, fill="black")
    for i, (name, _) in enumerate(parts):
        draw.text((i * width + 4, 17), name, fill="black")
    return _png(np.asarray(canvas).reshape(canvas.height, canvas.width, -1))


def scatter(points: np.ndarray, *, side: int = 384, reach: float | None = None) -> bytes:
    """A PNG of 2-D points (N, 2) as a density of dots, axes equal, the origin in the middle and `reach` at the edge."""
    reach = reach or 1.05 * max(float(np.abs(points).max()), 1e-6)
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=side, range=[[-reach, reach]] * 2)
    ink = 1 - np.exp(-counts[::-1])
    return _png(np.round(255 * (1 - ink)).astype(np.uint8)[..., None])


def histogram(values: np.ndarray, unit: str, *, bins: int = 40, width: int = 480, height: int = 240) -> bytes:
    """A PNG of the histogram of values (N,), with its range and mean written below."""
    canvas = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(canvas)
    floor = height - 24
    if values.size:
        values = values.astype(np.float64)
        low, high = values.min(), values.max()
        span = max(high - low, 1e-6 * max(1.0, abs(low)))  # they may all be alike
        counts, _ = np.histogram(values, bins=bins, range=(low, low + span))
        for i, count in enumerate(counts):
            left, right = (10 + (width - 20) * k // bins for k in (i, i + 1))
            draw.rectangle([left, floor - (floor - 10) * int(count) // int(counts.max()), right - 2, floor], fill=80)
        text = f"{low:.3g} to {high:.3g}, mean {values.mean():.4g} {unit}, {values.size} values"
    else:
        text = "no values"
    draw.line([10, floor, width - 10, floor], fill=0)
    draw.text((10, floor + 6), text, fill=0)
    return _png(np.asarray(canvas)[..., None])


def suits(shape: tuple[int, ...], levels: int | None) -> bool:
    """Whether data of this shape have a picture: grey or colour images, and 2-D points."""
    return shape == (2,) if levels is None else len(shape) == 3 and shape[-1] in (1, 3)


def picture(samples: np.ndarray, levels: int | None) -> bytes | None:
    """The picture that suits samples as the data store them: a grid of images, a scatter of points, or None."""
    if not suits(samples.shape[1:], levels):
        return None
    return scatter(samples) if levels is None else image_grid(samples, levels)


def strip(states: np.ndarray, levels: int | None, *, rows: int = 8) -> bytes:
    """A PNG of moments (moments, N, *shape), a column each: a row for each of the first samples, or one of scatters."""
    if levels is None:
        panels = [_pixels(scatter(points, side=190, reach=_reach(states))) for points in states]
        return _png(np.concatenate([np.pad(p, ((1, 1), (1, 1), (0, 0)), constant_values=64) for p in panels], axis=1))
    columns, shown = len(states), states[:, :rows].swapaxes(0, 1)
    return image_grid(shown.reshape(-1, *states.shape[2:]), levels, columns=columns)


def animation(states: np.ndarray, levels: int | None, *, seconds: float = 3.0, still: float = 2.0) -> bytes:
    """A GIF of moments (moments, N, *shape): their pictures in `seconds`, and the last stands `still`; forever."""
    pictures = [image_grid(s, levels) if levels is not None else scatter(s, reach=_reach(states)) for s in states]
    frames, buffer = [Image.open(io.BytesIO(png)) for png in pictures], io.BytesIO()
    times = [max(int(1000 * seconds / len(frames)), 20)] * (len(frames) - 1) + [int(1000 * still)]
    frames[0].save(buffer, format="gif", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return buffer.getvalue()


def _reach(states: np.ndarray) -> float:
    """What holds most of every moment: one frame for all, which a few far points do not set."""
    return 1.5 * max(float(np.quantile(np.abs(states[-1]), 0.99)), 1e-6)


def check_matplotlib() -> None:
    """Raise MissingExtra where the pictures below cannot be drawn."""
    with extra("plots"):
        import matplotlib  # noqa: F401


def learning_curve(steps: np.ndarray, loss: np.ndarray, mean: np.ndarray, grad_norm: np.ndarray, what: str) -> bytes:
    """A PNG of the loss, as reported and its running `mean` (called `what`), and of the gradient norm over steps."""
    with _axes(2, "Learning curve", "step") as (buffer, (above, below)):
        above.plot(steps, loss, ".", color="0.65", markersize=4, label="as reported")
        above.plot(steps, mean, color="C0", label=what)
        above.set_ylabel("training loss")
        below.plot(steps, grad_norm, ".-", color="C3", markersize=4, linewidth=0.6)
        below.set_ylabel("gradient norm, before clipping")
        below.set_xlim(left=0)
        above.legend(loc="upper right")  # "best" is a search: slow, then a warning, on a busy machine
        for axis, values in ((above, loss), (below, grad_norm)):
            _log_scale(axis, values)
    return buffer.getvalue()


def loss_by_level(log_snr: np.ndarray, values: dict, errors: dict, title: str) -> bytes:
    """A PNG of `evaluation.levels.loss_by_level`: the loss above, the relative errors below, over log-SNR."""
    with _axes(2, title, LEVELS) as (buffer, (above, below)):
        _bars(above, log_snr, values["loss"], errors["loss"], "C0")
        above.set_ylabel("loss, weighted as in training")
        _bars(below, log_snr, values["noise"], errors["noise"], "C1", label="noise")
        _bars(below, log_snr, values["data"], errors["data"], "C2", label="data")
        below.axhline(1.0, color="0.6", linewidth=0.8, linestyle="--", label="of predicting 0")
        below.set_ylabel("relative error of prediction, rms")
        below.legend(loc="lower center")
        _log_scale(above, values["loss"])
        _log_scale(below, np.concatenate([values["noise"], values["data"]]))
    return buffer.getvalue()


def bound_by_level(log_snr: np.ndarray, value: np.ndarray, error: np.ndarray, unit: str, title: str) -> bytes:
    """A PNG of what each interval of noise levels adds to the variational bound, over log-SNR."""
    with _axes(1, title, LEVELS) as (buffer, (axis,)):
        width = float(log_snr[1] - log_snr[0]) if len(log_snr) > 1 else 1.0
        axis.bar(log_snr, value, 0.9 * width, color="C0", yerr=error, ecolor="0.2", capsize=2)
        axis.set_ylabel(f"{unit} per interval of {width:.2g}")
        axis.set_ylim(bottom=0)
    return buffer.getvalue()


def accuracy_by_level(log_snr: np.ndarray, values: dict, errors: dict, title: str) -> bytes:
    """A PNG of `evaluation.levels.accuracy_by_level`: accuracy above, cross-entropy below, over log-SNR."""
    with _axes(2, title, LEVELS) as (buffer, (above, below)):
        _bars(above, log_snr, values["accuracy"], errors["accuracy"], "C0")
        above.set_ylabel("accuracy")
        above.set_ylim(0, 1.02)
        _bars(below, log_snr, values["loss"], errors["loss"], "C1")
        below.set_ylabel("cross-entropy, nats")
        below.set_ylim(bottom=0)
    return buffer.getvalue()


@contextmanager
def _axes(rows: int, title: str, xlabel: str) -> Iterator[tuple[io.BytesIO, Any]]:
    """(buffer, axes one above the other) of a figure that is written to the buffer at the end; no state is shared."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, buffer = Figure(figsize=(8, 1.5 + 2.75 * rows), dpi=110, layout="constrained"), io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(title)
    axes[-1].set_xlabel(xlabel)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    yield buffer, axes
    canvas.print_png(buffer)


def _bars(axis: Any, x: np.ndarray, y: np.ndarray, error: np.ndarray, color: str, label: str | None = None) -> None:
    axis.errorbar(x, y, error, fmt=".-", color=color, linewidth=1, capsize=2, label=label)


def _log_scale(axis: Any, values: np.ndarray) -> None:
    """A logarithmic axis for positive values that span more than a factor of five."""
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 5 * values.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
        twos_and_fives = values.max() < 100 * values.min()
        axis.yaxis.set_minor_formatter(lambda tick, _: f"{tick:g}" if twos_and_fives and f"{tick:e}"[0] in "25" else "")


def _pixels(png: bytes) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    return pixels.reshape(*pixels.shape[:2], -1)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="png")
    return buffer.getvalue()
