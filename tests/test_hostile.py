"""Hostile files of every kind, opened in this process: each is refused in one line, and nothing of it is executed.

`experiments/hostile_files.py` opens the same in processes of their own, with bounds on memory and time.
"""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
from hostile_files import CORPUS, open_case  # noqa: E402

DOORS = sorted({case.door for case in CORPUS.values()} - {"a large image"})  # seconds each


@pytest.mark.parametrize("door", DOORS)
def test_every_hostile_file_is_refused_in_one_line(door, tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "cache"))
    found = []
    for number, case in enumerate(case for case in CORPUS.values() if case.door == door):
        folder, canary = tmp_path / f"{number}", tmp_path / f"{number}.canary"
        folder.mkdir()
        outcome, said = open_case(case, case.make(folder, canary))
        if outcome != "refused" or canary.exists():
            found.append(f"{case.name}: {'executed' if canary.exists() else outcome}\n{said}")
    assert not found, "\n".join(found)


def test_the_corpus_is_large_and_its_files_are_small(tmp_path):
    assert len(CORPUS) >= 100
    for number, case in enumerate(CORPUS.values()):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        case.make(folder, tmp_path / "canary")
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                assert 512 * file.stat().st_blocks <= 24 * 1024, (case.name, file)
