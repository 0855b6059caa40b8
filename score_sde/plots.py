"""Pictures from arrays; nothing is computed here."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw


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


def scatter(points: np.ndarray, *, side: int = 384) -> bytes:
    """A PNG of 2-D points (N, 2) as a density of dots, axes equal, the origin in the middle."""
    reach = 1.05 * max(float(np.abs(points).max()), 1e-6)
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=side, range=[[-reach, reach]] * 2)
    ink = 1 - np.exp(-counts[::-1])
    return _png(np.round(255 * (1 - ink)).astype(np.uint8)[..., None])


def histogram(values: np.ndarray, unit: str, *, bins: int = 40, width: int = 480, height: int = 240) -> bytes:
    """A PNG of the histogram of values (N,), with its range and mean written below."""
    canvas = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(canvas)
    floor = height - 24
    if values.size:
        counts, edges = np.histogram(values, bins=bins)
        for i, count in enumerate(counts):
            left, right = (10 + (width - 20) * k // bins for k in (i, i + 1))
            draw.rectangle([left, floor - (floor - 10) * int(count) // int(counts.max()), right - 2, floor], fill=80)
        text = f"{edges[0]:.3g} to {edges[-1]:.3g}, mean {values.mean():.4g} {unit}, {values.size} values"
    else:
        text = "no values"
    draw.line([10, floor, width - 10, floor], fill=0)
    draw.text((10, floor + 6), text, fill=0)
    return _png(np.asarray(canvas)[..., None])


def picture(samples: np.ndarray, levels: int | None) -> bytes | None:
    """The picture that suits samples as the data store them: a grid of images, a scatter of points, or None."""
    if levels is not None and samples.ndim == 4 and samples.shape[-1] in (1, 3):
        return image_grid(samples, levels)
    if levels is None and samples.ndim == 2 and samples.shape[1] == 2:
        return scatter(samples)
    return None


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="png")
    return buffer.getvalue()
