"""Runs that earlier versions wrote open, sample and evaluate to the numbers that those versions gave.

Each `old_runs/VERSION.zip` holds a run of a score and one of a classifier of digits (config.json, checkpoints,
metrics.jsonl, as VERSION wrote them), `old_runs/VERSION.npz` what its commands printed and kept with the flags below.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from score_sde.main import main

OLD_RUNS = Path(__file__).parent / "old_runs"
ALL = ("--config.eval.num_examples=360", "--config.eval.batch_size=120")
QUICK = ("--config.eval.rtol=1e-3", "--config.eval.atol=1e-3")
GUIDED = ("--config.sampling.label=3", "--config.guidance.kind=classifier", "--config.guidance.scale=2")


@pytest.fixture(scope="module", params=sorted(p.stem for p in OLD_RUNS.glob("*.zip")))
def old(request, tmp_path_factory):
    """(folder of the two runs, what they gave)."""
    folder = tmp_path_factory.mktemp(request.param)
    zipfile.ZipFile(OLD_RUNS / f"{request.param}.zip").extractall(folder)
    with np.load(OLD_RUNS / f"{request.param}.npz") as given:
        return folder, dict(given)


def written(run, pattern, *flags):
    """The arrays of the one file that a command adds to `run` where `pattern` points."""
    before = set(run.glob(pattern))
    assert main([f"--workdir={run}", *flags]) == 0
    (path,) = set(run.glob(pattern)) - before
    with np.load(path) as arrays:
        return dict(arrays)


def test_likelihood(old):
    folder, given = old
    found = written(folder / "score", "eval/likelihood_*[!l].npz", "--mode=eval", *ALL, *QUICK)
    order = np.argsort(found["index"])
    # The tolerance is that of the solve: 1e-3 per step of values of 7 bits/dim, most of them far closer.
    np.testing.assert_allclose(found["value"][order], given["bits_per_dim"], atol=5e-3)
    np.testing.assert_allclose(found["value"].mean(), given["bits_per_dim"].mean(), atol=2e-4)
    np.testing.assert_allclose(found["bound"][order], given["bound"], rtol=1e-4)


@pytest.mark.parametrize("what, flags", [("samples", ()), ("guided", GUIDED)])
def test_samples(old, what, flags):
    folder, given = old
    guide = (f"--config.guidance.workdir={folder / 'classifier'}",) if flags else ()
    found = written(folder / "score", "samples/*.npz", "--mode=sample", *flags, *guide)["samples"]
    assert found.dtype == given[what].dtype
    different = np.abs(found.astype(int) - given[what])
    assert different.max() <= 1 and (different > 0).sum() <= 2  # a value at the edge of two grey levels


def test_accuracy(old):
    folder, given = old
    found = written(folder / "classifier", "eval/accuracy*.npz", "--mode=eval", *ALL)
    np.testing.assert_array_equal(found["accuracy"], given["accuracy"])
    np.testing.assert_allclose(found["loss"], given["cross_entropy"], rtol=1e-4)
