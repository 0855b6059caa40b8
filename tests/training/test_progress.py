"""The metrics and event files survive kills; the clock reads as people expect."""

import io
import json
import shutil
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from score_sde.extras import MissingExtra
from score_sde.plots import image_grid
from score_sde.training.loop import TrainingOptions, train
from score_sde.training.progress import EventFiles, MetricsFile, Progress, clock, read_metrics, running_mean
from tests.training.test_loop import OPTIONS, experiment


def test_later_and_torn_lines_are_dropped_on_resumption(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step"')
    metrics = MetricsFile(path, step=2)
    metrics.write(step=3, loss=0.5)
    metrics.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_torn_last_line_alone_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    MetricsFile(path, step=5).close()
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (7384, "2:03:04")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_without_a_terminal_progress_is_plain_lines_with_an_eta(capsys):
    progress = Progress("train", 10, done=4)
    progress.update(7, "loss 0.1")
    progress.close()
    assert capsys.readouterr().err.startswith("train 7/10  loss 0.1  elapsed 0:00  ETA 0:00")


def test_metrics_are_read_while_they_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == {}
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null, "new": 3}\n{"step": 3, "lo')
    found = read_metrics(path)
    assert found["step"].tolist() == [1, 2]
    np.testing.assert_array_equal(found["loss"], [0.5, np.nan])
    np.testing.assert_array_equal(found["new"], [np.nan, 3])


def test_a_line_without_its_end_gets_one_and_damaged_ones_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n[[\n{"st\n{"step": 2}')  # a line more would go on in the last
    metrics = MetricsFile(path, step=2)
    metrics.write(step=3)
    metrics.close()
    assert read_metrics(path)["step"].tolist() == [1, 2, 3]
    assert path.read_text().count("\n") == 3


def test_a_running_mean_is_one():
    values = np.array([1.0, 2.0, np.nan, 4.0, 9.0])
    np.testing.assert_allclose(running_mean(values, 1), [1.5, 1.5, 3.0, 6.5, 6.5])
    assert np.isnan(running_mean(np.array([np.nan, np.nan]), 1)).all()


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def events(folder):
    """{tag: {step: value}} as TensorBoard reads it: files by name; a START voids what came before from its step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = {}
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length (8), its checksum (4), the event, its checksum (4)
            (size,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16
            if event.session_log.status == SessionLog.START:
                found = {t: {s: v for s, v in steps.items() if s < event.step} for t, steps in found.items()}
            for value in event.summary.value:
                steps = found.setdefault(value.tag, {})
                assert event.step not in steps, f"{value.tag} of step {event.step} is there twice"
                steps[event.step] = value.image if value.HasField("image") else value.simple_value
    return found


def test_event_files_hold_scalars_and_pictures(tmp_path):
    files = EventFiles(tmp_path, 0)
    files.write(step=5, loss=0.25, grad_norm=None)
    png = image_grid(np.random.default_rng(0).integers(17, size=(4, 8, 8, 1)), 17)
    files.picture(5, png)
    files.close()
    found = events(tmp_path)
    assert found.keys() == {"loss", "samples"} and found["loss"] == {5: 0.25}
    shown = Image.open(io.BytesIO(found["samples"][5].encoded_image_string)).convert("L")
    np.testing.assert_array_equal(shown, Image.open(io.BytesIO(png)))


def test_a_resumed_run_has_every_step_once_in_its_metrics_and_events(tmp_path):
    options = TrainingOptions(
        **OPTIONS | dict(log_every=5, checkpoint_every=10), snapshot_every=15, tensorboard=True
    )  # fmt: skip
    tries = []

    def snapshot(step, state):
        tries.append(step)
        if tries == [0, 15]:  # as if killed, after step 15 was reported
            raise KeyboardInterrupt
        return image_grid(np.full((1, 8, 8, 1), step), 21)

    with pytest.raises(KeyboardInterrupt):
        train(experiment(), options, tmp_path, snapshot=snapshot)
    assert list(events(tmp_path / "tensorboard")["loss"]) == [5, 10, 15]
    shutil.rmtree(tmp_path / "checkpoints" / "15")  # nor was it saved
    train(experiment(), options, tmp_path, snapshot=snapshot)
    metrics, found = read_metrics(tmp_path / "metrics.jsonl"), events(tmp_path / "tensorboard")
    assert metrics["step"].tolist() == [5, 10, 15, 20] and list(found["samples"]) == [0, 15, 20]
    for name in ("loss", "grad_norm", "images_per_second"):
        assert list(found[name]) == [5, 10, 15, 20]
        np.testing.assert_allclose(list(found[name].values()), metrics[name], rtol=1e-6)
    before = sorted((tmp_path / "tensorboard").iterdir())
    train(experiment(), options, tmp_path, snapshot=snapshot)  # it is finished: nothing to say
    assert sorted((tmp_path / "tensorboard").iterdir()) == before


def test_without_tensorboardx_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    for use in (EventFiles.check, lambda: EventFiles(tmp_path, 0)):
        with pytest.raises(MissingExtra, match=r"^tensorboardX is not installed.*score_sde\[tensorboard\]"):
            use()
