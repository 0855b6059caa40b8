"""Pictures of a run and of what its noise levels cost, with the values they are drawn from."""

from pathlib import Path

from score_sde import plots
from score_sde.evaluation.levels import ByLevel
from score_sde.files import WorkdirError, write_arrays, write_bytes
from score_sde.training.progress import read_metrics, running_mean


def write_learning_curve(metrics: Path, path: Path) -> list[Path]:
    """Write the learning curve of a metrics file, which a trainer may be writing, to path.

    Raises:
        WorkdirError: there are no metrics yet.
        MissingExtra: matplotlib is not installed.
    """
    found = read_metrics(metrics)
    if not found:
        raise WorkdirError(
            f"nothing to draw: no metrics in {metrics} yet. Train it first, or wait for its first report."
        )
    half = max(len(found["step"]) // 40, 1)
    mean, what = running_mean(found["loss"], half), f"running mean of {2 * half + 1} reports"
    write_bytes(path, plots.learning_curve(found["step"], found["loss"], mean, found["grad_norm"], what))
    return [path]


def write_loss_by_level(found: ByLevel, stem: Path, *, split: str, step: int) -> list[Path]:
    """Write stem.npz and stem.png of `loss_by_level`.

    Raises:
        MissingExtra: matplotlib is not installed; the values are written all the same.
    """
    write_arrays(stem.with_suffix(".npz"), **found.arrays())
    title = f"Loss by noise level: EMA weights at step {step}, {found.examples} {split} examples (bars: standard error)"
    write_bytes(stem.with_suffix(".png"), plots.loss_by_level(found.log_snr, found.values, found.errors, title))
    return [stem.with_suffix(".png")]


def write_bound_by_level(found: ByLevel, stem: Path, *, unit: str, step: int) -> Path:
    """Write stem.npz and stem.png of `bound_by_level`; the picture's path.

    Raises:
        MissingExtra: matplotlib is not installed; the values are written all the same.
    """
    write_arrays(stem.with_suffix(".npz"), **found.arrays())
    title = f"Variational bound by noise level: step {step}, {found.examples} examples (bars: standard error)"
    value, error = found.values["bound"], found.errors["bound"]
    write_bytes(stem.with_suffix(".png"), plots.bound_by_level(found.log_snr, value, error, unit, title))
    return stem.with_suffix(".png")


def write_accuracy_by_level(found: ByLevel, stem: Path, *, split: str, step: int) -> list[Path]:
    """Write stem.npz and stem.png of `accuracy_by_level`.

    Raises:
        MissingExtra: matplotlib is not installed; the values are written all the same.
    """
    write_arrays(stem.with_suffix(".npz"), **found.arrays())
    title = f"Accuracy by noise level: EMA weights at step {step}, {found.examples} {split} examples"
    write_bytes(stem.with_suffix(".png"), plots.accuracy_by_level(found.log_snr, found.values, found.errors, title))
    return [stem.with_suffix(".png")]
