"""--mode=eval: the likelihood of data, or the accuracy of a classifier."""

from pathlib import Path
from typing import Any

from score_sde.config import Run
from score_sde.evaluation.artefacts import report_stem
from score_sde.evaluation.levels import accuracy_by_level, bound_by_level
from score_sde.evaluation.likelihood import (
    EvalOptions,
    LikelihoodReport,
    evaluate_likelihood,
    provenance_of,
    write_likelihood,
)
from score_sde.evaluation.pictures import write_accuracy_by_level, write_bound_by_level
from score_sde.extras import MissingExtra
from score_sde.files import check_writable
from score_sde.training.experiment import Classification
from score_sde.training.progress import tell

from .opening import check_examples, origin_of, prepare, weights_of


def eval_mode(workdir: Path, config: Any) -> int:
    """Likelihood of the split that config.eval names, under the EMA weights; a classifier's accuracy."""
    run = prepare(config)
    check_examples(run)
    params, step = weights_of(run, workdir)
    check_writable(workdir / "eval")
    if isinstance(run.experiment, Classification):
        tell_accuracy(run, params, step, workdir)
        print(f"step {step}; by noise level in {workdir / 'eval'}")
        return 0
    report, written = evaluate(run, run.evaluation, params, step, workdir)
    print(report.line())
    print(report.table())
    if run.evaluation.bound == "continuous":
        print(f"  {'bound by noise level':<36}{_plot_bound(run, params, report, written[0].with_suffix('')).name}")
    print(f"step {step}; report, values per example and their histogram: {', '.join(map(str, written))}")
    return 0 if not report.not_converged else 1


def evaluate(
    run: Run, options: EvalOptions, params: Any, step: int, workdir: Path
) -> tuple[LikelihoodReport, list[Path]]:
    """The likelihood of examples, and its files; goes on where an earlier one was cut off."""
    e, seed = run.experiment, run.eval_seed
    made = provenance_of(e, options, origin_of(workdir, step, params), seed=seed)
    stem = report_stem(workdir / "eval", f"likelihood_{options.split}", step, made.settings["examples"], made.settings)
    unfinished = stem.with_name(f"{stem.name}.partial.npz")
    report, arrays = evaluate_likelihood(e, params, options, step=step, seed=seed, partial_file=unfinished)
    written = write_likelihood(report, arrays, stem, made)
    unfinished.unlink(missing_ok=True)
    return report, written


def tell_accuracy(run: Run, params: Any, step: int, workdir: Path) -> None:
    """Print and keep how well a classifier tells the classes of the split, by noise level."""
    how = run.evaluation
    found = accuracy_by_level(
        run.experiment, params, split=how.split, batch_size=how.batch_size, seed=run.eval_seed,
        examples=how.num_examples,
    )  # fmt: skip
    print(f"{how.split} accuracy {found.values['accuracy'][-1]:.1%} at the least noise ({found.examples} examples)")
    print(f"  {'log-SNR':>9}  {'accuracy':>8}  cross-entropy, nats")
    for row in zip(found.log_snr, found.values["accuracy"], found.values["loss"], found.errors["loss"], strict=True):
        print("  {:9.2f}  {:8.1%}  {:.3f} +- {:.3f}".format(*row))
    try:
        write_accuracy_by_level(found, workdir / "eval", origin_of(workdir, step, params))
    except MissingExtra as error:
        tell(f"note: no picture of the accuracy by noise level: {error}")


def _plot_bound(run: Run, params: Any, report: LikelihoodReport, stem: Path) -> Path:
    """The picture of the bound by noise level beside the report at `stem`, or, without matplotlib, its values.

    Of a quarter of the examples at most, a noise level each in 24 bins: a fiftieth of what the evaluation takes.
    """
    how, few = run.evaluation, max(min(report.examples // 4, 64), 1)
    found = bound_by_level(
        run.experiment, params, split=how.split, batch_size=how.batch_size, seed=run.eval_seed, examples=few
    )
    try:
        return write_bound_by_level(found, stem, origin_of(stem.parents[1], report.step, params), unit=report.unit)[-1]
    except MissingExtra as error:
        tell(f"note: no picture of the bound by noise level: {error}")
        return stem.with_name(f"{stem.name}_by_level.npz")
