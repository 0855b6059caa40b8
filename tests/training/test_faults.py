"""What happens to a run from outside, or by its own learning rate: nothing is lost, and nothing stops it needlessly."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import VP
from score_sde.files import WorkdirError
from score_sde.training import resume
from score_sde.training.checkpoints import Checkpoints
from score_sde.training.loop import Interrupted, TrainingError, TrainingOptions, train
from score_sde.training.progress import MetricsFile, read_metrics
from tests.training.test_loop import OPTIONS, experiment

EVERY_5 = TrainingOptions(**OPTIONS | dict(log_every=10, checkpoint_every=5), snapshot_every=15)
IDENTITY = {"config": {"sde.name": "vp", "seed": 0}, "data": "a digest"}


class Killed(Exception):
    """In place of a SIGKILL."""


def killed(workdir, at, options=EVERY_5, **how):
    """Train until the snapshot of a step, and no further."""

    def snapshot(step, state):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        train(experiment(), options, workdir, snapshot=snapshot, identity=IDENTITY, **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing befell."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(experiment(), EVERY_5, workdir, identity=IDENTITY)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run that was killed during the snapshot of step 15, in the middle of a window of the metrics."""
    workdir = tmp_path_factory.mktemp("half")
    killed(workdir, 15)
    return workdir


@pytest.fixture
def broken(half, tmp_path):
    """A copy of it."""
    return shutil.copytree(half, tmp_path / "run")


def test_a_mean_does_not_depend_on_where_the_run_was_interrupted(broken, whole, capsys):
    seen = []
    state = train(
        experiment(), EVERY_5, broken, snapshot=lambda n, s: seen.append(n), has_snapshot=lambda n: n < 15
    )  # fmt: skip
    assert seen == [15, 20]  # the snapshot that was lost is taken again
    assert "training goes on at step 15 of 20\n" in capsys.readouterr().err
    for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(whole[1].ema), strict=True):
        np.testing.assert_array_equal(a, b)
    found, expected = (read_metrics(run / "metrics.jsonl") for run in (broken, whole[0]))
    for name in ("step", "loss", "grad_norm", "skipped"):
        np.testing.assert_array_equal(found[name], expected[name])


# --- what may not be mixed --------------------------------------------------------------------------------------------


def check(workdir, options=EVERY_5, saved_every=5, data="a digest", **config):
    identity = {"config": IDENTITY["config"] | config, "data": data}
    resume.check(workdir, options, identity, saved_every=saved_every)


def test_other_data_or_another_config_are_refused(broken, capsys):
    check(broken, new_key="of a later version")
    with pytest.raises(WorkdirError, match="the training data are not those of"):
        check(broken, data="another")
    with pytest.raises(WorkdirError, match=r"another config \(seed = 0 there, 1 here\)"):
        check(broken, seed=1)
    assert capsys.readouterr().err == ""
    check(broken, dataclasses.replace(EVERY_5, new_data=True), data="another")
    assert "from step 15 on the training data are others" in capsys.readouterr().err


def test_a_checkpoint_of_an_older_version_is_told_to_be_unchecked(tmp_path, capsys):
    state = train(experiment(), TrainingOptions(**OPTIONS), tmp_path)
    path = tmp_path / "checkpoints" / "20" / "meta" / "metadata"
    path.write_text(json.dumps({"fingerprint": json.loads(path.read_text())["fingerprint"]}))
    check(tmp_path, data="another", seed=1)
    assert "checkpoint 20 is of an older version, without config, data and settings" in capsys.readouterr().err
    again = train(experiment(), TrainingOptions(**OPTIONS), tmp_path)
    assert int(again.step) == int(state.step)


@pytest.mark.parametrize("how", ["renamed", "emptied"])
def test_a_run_without_its_checkpoints_does_not_begin_anew(broken, how):
    folder = broken / "checkpoints"
    folder.rename(broken / "old")
    if how == "emptied":  # and the metrics show that there had been some
        folder.mkdir()
        file = MetricsFile(broken / "metrics.jsonl", 10)
        file.write(step=11)
        file.close()
    with pytest.raises(WorkdirError, match="has trained up to step 1., and its checkpoints are not in"):
        check(broken)
    (broken / "metrics.jsonl").rename(broken / "old.jsonl")  # what the message advises
    check(broken)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    killed(tmp_path, 0)
    check(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n')  # the save of step 5 may still have been on its way
    check(tmp_path)


# --- metrics ----------------------------------------------------------------------------------------------------------


def lines(path, steps):
    file = MetricsFile(path)
    for step in steps:
        file.write(step=step, loss=0.1 * step)
    file.close()
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b'"loss": 0.2', b'"loss": 0.3'),
        lambda line: line.replace(b'"step": 2', b'"step": 7'),
        lambda line: line[: len(line) // 2] + b"\n",
        lambda line: b'{"step": 9}\n',
    ],
)
def test_a_damaged_line_is_named_and_kept_aside_and_the_others_stay(tmp_path, capsys, damage):
    path = tmp_path / "metrics.jsonl"
    whole = lines(path, [1, 2, 3, 4])
    path.write_bytes(b"".join([whole[0], damage(whole[1]), *whole[2:]]))
    assert read_metrics(path)["step"].tolist() == [1, 3, 4]
    MetricsFile(path, step=3, reports=3).close()
    assert path.read_bytes() == whole[0] + whole[2]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damage(whole[1])
    err = capsys.readouterr().err
    assert "line 2 is damaged" in err and "has 2 of the 3 reports up to step 3" in err


def test_lines_from_before_checksums_are_read_and_of_these_the_most_that_rise(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {n}}}\n' for n in (1, 2, 30, 4, 5)))
    assert read_metrics(path)["step"].tolist() == [1, 2, 4, 5]


# --- a run that explodes ----------------------------------------------------------------------------------------------


def test_too_high_a_learning_rate_leaves_a_good_checkpoint_and_a_lower_one_goes_on_from_it(tmp_path, capsys):
    steps = dict(log_every=10, checkpoint_every=10, snapshot_every=100)
    first = TrainingOptions(**OPTIONS | steps | dict(steps=20))
    train(experiment(), first, tmp_path)
    wild = dataclasses.replace(first, steps=60, learning_rate=50.0)
    train(experiment(), wild, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [20, 50, 60] and checkpoints.newest_good() == 20
    err = capsys.readouterr().err
    assert "with other settings: training.learning_rate 0.05 before, 50 now" in err
    assert "at step 30 the loss is no longer good; checkpoint 20 is kept" in err
    train(experiment(), dataclasses.replace(wild, learning_rate=0.01), tmp_path)
    assert "goes on at step 20 of 60, the newest good checkpoint" in capsys.readouterr().err
    found = read_metrics(tmp_path / "metrics.jsonl")
    np.testing.assert_array_equal(found["step"], [10, 20, 30, 40, 50, 60])
    np.testing.assert_array_equal(found["learning_rate"], [np.nan] * 2 + [0.01] + [np.nan] * 3)
    assert found["loss"].max() < 3
    assert (tmp_path / "checkpoints" / "exploded-60").is_dir()


def test_training_halts_at_the_bound_not_at_the_next_report(tmp_path):
    class Breaks(VP):
        def sigma(self, t):
            return super().sigma(t) * jnp.nan

    options = TrainingOptions(**OPTIONS | dict(steps=2, log_every=2, checkpoint_every=2), max_bad_steps=3)
    train(experiment(sde=Breaks()), options, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:  # what was reported before the save is not forgotten in it
        assert checkpoints.steps() == [2] and checkpoints.newest_good() is None
    (tmp_path / "metrics.jsonl").unlink()
    options = dataclasses.replace(options, steps=1000, log_every=500, checkpoint_every=500)
    with pytest.raises(TrainingError, match="the last 3 steps up to 3 had no finite loss"):
        train(experiment(sde=Breaks()), options, tmp_path)
    assert read_metrics(tmp_path / "metrics.jsonl")["skipped"].tolist() == [3]


# --- what comes from outside ------------------------------------------------------------------------------------------


def test_samples_that_are_not_finite_do_not_stop_training(tmp_path, capsys):
    def snapshot(step, state):
        raise FloatingPointError("samples 0 to 7 are not all finite.")

    assert int(train(experiment(), EVERY_5, tmp_path, snapshot=snapshot).step) == 20
    assert "no samples at step 15, training goes on: samples 0 to 7" in capsys.readouterr().err


def test_a_snapshot_is_dropped_for_a_signal_and_taken_when_training_goes_on(broken):
    shutil.rmtree(broken / "checkpoints" / "15")

    def snapshot(step, state):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)

    with pytest.raises(Interrupted) as stop:
        train(experiment(), EVERY_5, broken, snapshot=snapshot)
    assert (stop.value.signum, stop.value.step, stop.value.abandoned) == (signal.SIGTERM, 15, True)
    with Checkpoints(broken) as checkpoints:
        assert checkpoints.steps()[-1] == 15
    seen = []
    train(experiment(), EVERY_5, broken, snapshot=lambda n, s: seen.append(n), has_snapshot=lambda n: False)
    assert seen == [15, 20]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of TensorStore, as `main.run` ignores
def test_a_workdir_that_goes_away_is_one_error(tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(WorkdirError, match="was deleted or moved. Put it back"):
        train(experiment(), EVERY_5, workdir, snapshot=lambda n, s: n == 15 and workdir.rename(tmp_path / "moved"))


PROGRAM = """
import os, signal, sys, threading, time
from score_sde.training.progress import tell
from score_sde.training.signals import Signals

with Signals() as signals:
    began = time.monotonic()
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    assert not signals.unless_received(lambda: time.sleep(60))
    assert time.monotonic() - began < 1 and signals.received == getattr(signal, sys.argv[1])
    if sys.argv[2] == "twice":
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(60)
    os.close(0)
    for _ in range(3):
        tell("nobody reads this")
    print("done", flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("name, times, code", [("SIGHUP", "once", 0), ("SIGINT", "twice", 143)])
def test_signals_are_acknowledged_at_once_and_a_reader_who_has_gone_stops_nothing(name, times, code):
    command = [sys.executable, "-c", PROGRAM, name, times]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = next(line for line in iter(process.stderr.readline, "") if line.strip())
        assert line == f"{name}: stopping after this step; press again to stop now\n"
        if times == "once":
            process.stderr.close()
        assert process.wait(timeout=30) == code
        assert process.stdout.read() == ("done\n" if times == "once" else "")
