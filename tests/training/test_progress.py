"""The metrics file survives kills; the clock reads as people expect."""

import json

import pytest

from score_sde.training.progress import MetricsFile, Progress, clock


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
