"""Pictures of a run and of what its noise levels cost, with the values they are drawn from.

Without matplotlib all writers here raise MissingExtra; the values are written all the same.
"""

from functools import partial
from pathlib import Path

from score_sde import plots
from score_sde.evaluation.artefacts import report_stem, write_artefact
from score_sde.evaluation.levels import ByLevel
from score_sde.evaluation.provenance import Origin, Provenance
from score_sde.files import WorkdirError
from score_sde.training.progress import read_metrics, running_mean


def write_learning_curve(metrics: Path, stem: Path, origin: Origin) -> list[Path]:
    """Write the learning curve of a metrics file, which a trainer may be writing, to stem.png; in place of an older
    one, which it contains.

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
    step = int(found["step"][-1])
    origin = Origin(origin.run, origin.config, step, average=None)
    made = Provenance("learning curve", f"loss and gradient up to step {step}", origin, {"mean": what})
    draw = partial(plots.learning_curve, found["step"], found["loss"], mean, found["grad_norm"], what)
    plots.check_matplotlib()  # before a file says that there is a picture
    return write_artefact(stem, made, pictures={".png": draw}, replace=True)


def write_loss_by_level(found: ByLevel, folder: Path, origin: Origin) -> list[Path]:
    """Write values and picture of `loss_by_level`."""
    title = f"Loss by noise level: EMA weights at step {origin.step}, {_examples(found)} (bars: standard error)"
    draw = partial(plots.loss_by_level, found.log_snr, found.values, found.errors, title)
    return _write(found, folder, "loss_by_level", "loss by noise level", origin, draw)


def write_bound_by_level(found: ByLevel, stem: Path, origin: Origin, *, unit: str) -> list[Path]:
    """Write values and picture of `bound_by_level` beside the likelihood whose stem is given."""
    title = f"Variational bound by noise level: step {origin.step}, {found.examples} examples (bars: standard error)"
    value, error = found.values["bound"], found.errors["bound"]
    made = Provenance("bound by noise level", _examples(found), origin, {**found.settings, "unit": unit})
    draw = partial(plots.bound_by_level, found.log_snr, value, error, unit, title)
    return write_artefact(stem.with_name(f"{stem.name}_by_level"), made, arrays=found.arrays(), pictures={".png": draw})


def write_accuracy_by_level(found: ByLevel, folder: Path, origin: Origin) -> list[Path]:
    """Write values and picture of `accuracy_by_level`."""
    title = f"Accuracy by noise level: EMA weights at step {origin.step}, {_examples(found)}"
    draw = partial(plots.accuracy_by_level, found.log_snr, found.values, found.errors, title)
    return _write(found, folder, "accuracy", "accuracy by noise level", origin, draw)


def _examples(found: ByLevel) -> str:
    return f"{found.examples} {found.settings['split']} examples"


def _write(found: ByLevel, folder: Path, name: str, kind: str, origin: Origin, draw) -> list[Path]:
    made = Provenance(kind, _examples(found), origin, found.settings)
    stem = report_stem(folder, f"{name}_{found.settings['split']}", origin.step, found.settings, found.settings)
    return write_artefact(stem, made, arrays=found.arrays(), pictures={".png": draw})
