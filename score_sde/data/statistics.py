"""What a data set looks like to the SDE: the numbers that users ask for before they choose sigma_data and sigma_max."""

from dataclasses import dataclass

import numpy as np

from score_sde.data.sources import DataError, Source

_EXAMPLES, _NUMBERS = 1000, 2**23  # at most so many are looked at


@dataclass(frozen=True)
class Statistics:
    """Of a sample of a data set: values as stored, and standard deviation and distance as scaled for the SDE."""

    examples: int
    shape: tuple[int, ...]
    levels: int | None
    num_classes: int | None
    sample: int
    low: float
    high: float
    data_range: tuple[float, float] | None
    mean: float
    std: float
    largest_distance: float

    def __str__(self) -> str:
        kinds = "real numbers" if self.levels is None else f"{self.levels} levels"
        classes = "" if self.num_classes is None else f", {self.num_classes} classes"
        scaled = f" scaled to {list(self.data_range)}" if self.data_range else ""
        return (
            f"data: {self.examples:,} examples of shape {self.shape}, {kinds} from {self.low:.6g} to {self.high:.6g}"
            f"{classes}\n"
            f"{self.sample:,} of them{scaled}: mean {self.mean:.3g}, standard deviation {self.std:.3g} "
            f"(objective.sigma_data), largest distance {self.largest_distance:.3g} (sde.sigma_max, for sde.name=ve)"
        )


def describe(source: Source, data_range: tuple[float, float] = (-1.0, 1.0)) -> Statistics:
    """Statistics of up to 1,000 examples, chosen evenly (fewer where they are large).

    Grey levels are scaled as training scales them: (high - low) / levels (x + u) + low with u uniform on [0, 1], whose
    mean and variance enter exactly; real numbers are left as they are.  The standard deviation is that of all numbers
    together, as sigma_data in Karras et al. (2022).  The largest Euclidean distance of two examples is what Song &
    Ermon (2020, technique 1) take for the largest noise level, in the units of the scaled data.

    Raises:
        DataError: the source returns something else than it says.

    Source: Song & Ermon, arXiv:2006.09011, section 3.1; Karras et al., arXiv:2206.00364, table 1.
    """
    count = min(len(source), _EXAMPLES, max(2, _NUMBERS // max(1, int(np.prod(source.shape)))))
    x = np.asarray(source[np.linspace(0, len(source) - 1, count).astype(int)]["x"])
    if x.shape != (count, *source.shape):
        raise DataError(f"expected x of shape {(count, *source.shape)} from the data source, got {x.shape}")
    low, high = x.min(), x.max()
    if not np.isfinite([low, high]).all():
        raise DataError(f"expected finite numbers from the data source, got {low} to {high}")
    if source.levels is not None and not 0 <= low <= high < source.levels:
        raise DataError(f"expected numbers in 0..{source.levels - 1} from the data source, got {low} to {high}")
    x = x.reshape(count, -1).astype(np.float32, order="C")
    step = 0.0
    if source.levels is not None:
        step = (data_range[1] - data_range[0]) / source.levels
        x = data_range[0] + step * (x + 0.5)
    mean = x.mean(dtype=np.float64)
    std = np.sqrt(np.square(x - np.float32(mean)).mean(dtype=np.float64) + step**2 / 12)
    x -= x.mean(axis=0)  # distances stay, cancellation below goes
    squares = np.square(x).sum(axis=1)
    distance = max(0.0, float((squares[:, None] + squares - 2 * (x @ x.T)).max())) ** 0.5
    return Statistics(
        examples=len(source), shape=tuple(source.shape), levels=source.levels, num_classes=source.num_classes,
        sample=count, low=float(low), high=float(high), data_range=None if source.levels is None else tuple(data_range),
        mean=float(mean), std=float(std), largest_distance=distance,
    )  # fmt: skip
