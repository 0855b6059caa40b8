"""Hostile files of every kind, opened in this process: each is refused in one line, and nothing of it is executed.

`experiments/hostile_files.py` opens the same in processes of their own, with bounds on memory and time.
"""

import pickle
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
from hostile_files import CORPUS, open_case, plant  # noqa: E402

from score_sde.weights.__main__ import main  # noqa: E402

DOORS = sorted({case.door for case in CORPUS.values()} - {"a large image"})  # seconds each


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that code makes where it runs; the working directory is a scratch folder."""
    place = plant(tmp_path / "here")
    monkeypatch.chdir(place.parent)
    monkeypatch.syspath_prepend(place.parent)
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("SCORE_SDE_STATE", str(tmp_path / "state"))
    yield place
    sys.modules.pop("planted", None)


@pytest.mark.parametrize("door", DOORS)
def test_every_hostile_file_is_refused_in_one_line(door, tmp_path, canary):
    found = []
    for number, case in enumerate(case for case in CORPUS.values() if case.door == door):
        (folder := tmp_path / f"{number}").mkdir()
        outcome, said = open_case(case, case.make(folder))
        if outcome != "refused" or canary.exists():
            found.append(f"{case.name}: {'executed' if canary.exists() else outcome}\n{said}")
        canary.unlink(missing_ok=True)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "name, run",
    [
        (".pkl with a call", lambda path: pickle.loads(path.read_bytes())),
        ("safetensors with a config that names a module", lambda path: main(["inspect", str(path), "--trust"])),
    ],
)
def test_code_that_runs_leaves_the_canary(name, run, tmp_path, canary):
    """Who runs what the files hold, or trusts it, finds the canary: a corpus without it has been executed nowhere."""
    (folder := tmp_path / "files").mkdir()
    run(CORPUS[f"weights: {name}"].make(folder))
    assert canary.exists()


def test_the_corpus_is_large_and_its_files_are_small(tmp_path):
    assert len(CORPUS) >= 100
    for number, case in enumerate(CORPUS.values()):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        case.make(folder)
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                size = file.stat()
                assert min(size.st_size, 512 * size.st_blocks) <= 10 * 1024, (case.name, file)  # or holes
