"""What is written says what made it, and is never overwritten by something else."""

import ast
import dataclasses
import json
import os
import signal
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.evaluation.artefacts import (
    artefacts,
    fullest,
    newest,
    report_stem,
    reports,
    without_settings,
    write_artefact,
)
from score_sde.evaluation.provenance import Origin, Provenance, described, digest, origin_of, weights_digest
from score_sde.modes.listing import list_mode
from tests.evaluation.test_examples import ROOMS

ORIGIN = Origin("vp_digits", "1a2b3c4d", 3800, weights="0" * 16)
MADE = Provenance("likelihood", "bits of some", ORIGIN, {"seed": 0})
WRITERS = {"write_bytes", "write_arrays", "savez", "savez_compressed", "save", "savefig", "tofile"}


def test_there_is_one_door():
    """Nobody in these rooms writes an array or a picture but `write_artefact`, which wants its provenance."""
    for path in ROOMS:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            resumed = path.name == "partial.py" and name == "write_arrays"  # which has its stamp inside
            assert name not in WRITERS or path.name == "artefacts.py" or resumed, f"{path.name}:{node.lineno} {name}"


def write(folder, made=MADE, *, value=1.0, speed=1.0, **more):
    return write_artefact(
        folder / "a", made, figures={"value": value, "speed": speed}, arrays={"x": np.array([value, np.nan])},
        pictures={".png": lambda: b"picture"}, timings=("speed",), **more,
    )  # fmt: skip


def test_the_same_result_is_the_same_files_and_any_other_gets_the_next_name(tmp_path):
    first = write(tmp_path)
    assert [p.name for p in first] == ["a.json", "a.npz", "a.png"]
    before = {p: p.read_bytes() for p in first}
    first[1].write_bytes(before[first[1]][:-9])
    first[2].unlink()
    assert write(tmp_path, speed=7.0) == first and {p: p.read_bytes() for p in first} == before, "they are whole again"
    others = [
        dict(value=2.0),
        dict(made=dataclasses.replace(MADE, settings={"seed": 1})),
        dict(made=dataclasses.replace(MADE, origin=dataclasses.replace(ORIGIN, weights="1" * 16))),
        dict(made=dataclasses.replace(MADE, data="other")),
    ]
    for n, other in enumerate(others, 2):
        assert [p.name for p in write(tmp_path, **other)] == [f"a_{n}.json", f"a_{n}.npz", f"a_{n}.png"]
    assert {p: p.read_bytes() for p in first} == before and write(tmp_path, **others[1])[0].name == "a_3.json"
    assert write(tmp_path, value=9.0, replace=True) == first and first[0].read_bytes() != before[first[0]]


@pytest.mark.parametrize("name, damage", [("a.npz", b"an older run's"), ("a.json", b"{"), ("a.gif", b"a neighbour's")])
def test_what_says_nothing_of_itself_is_left_alone(name, damage, tmp_path):
    (tmp_path / name).write_bytes(damage)
    assert write(tmp_path)[0].name == "a_2.json" and (tmp_path / name).read_bytes() == damage


def test_what_is_no_file_hangs_nobody(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    signal.alarm(20)  # ends a test that waits for a writer
    try:
        assert write(tmp_path)[0].name == "a_2.json"
    finally:
        signal.alarm(0)


def test_a_picture_that_cannot_be_drawn_costs_no_values(tmp_path):
    def fail():
        raise RuntimeError("no matplotlib")

    with pytest.raises(RuntimeError):
        write_artefact(tmp_path / "a", MADE, arrays={"x": np.ones(2)}, pictures={".png": fail})
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", "a.npz"}
    write_artefact(tmp_path / "a", MADE, arrays={"x": np.ones(2)}, pictures={".png": lambda: b"picture"})
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", "a.npz", "a.png"}


def test_the_json_says_everything(tmp_path):
    settings = {"solve": partial(ss.sample, sampler=ss.DDIM(eta=0.5), steps=8, grid=ss.grids.edm), "label": 3}
    found = json.loads(write(tmp_path, dataclasses.replace(MADE, settings=settings), value=float("nan"))[0].read_text())
    assert found["value"] is None and found["files"] == ["a.npz", "a.png"]
    made = found["provenance"]
    assert made["settings"]["solve"] == {
        "name": "sample", "sampler": {"name": "DDIM", "eta": 0.5}, "steps": 8, "grid": "edm",
    }  # fmt: skip
    assert (made["run"], made["config"], made["step"], made["average"]) == ("vp_digits", "1a2b3c4d", 3800, "ema")
    assert (
        {"jax", "python", "score_sde"} <= set(made["versions"]) and made["devices"] and made["made"].endswith("00:00")
    )


def test_things_are_described_the_same_in_every_process():
    """No address of an object, no order of keys: what is digested must not change with the process."""

    class Own:
        pass

    big = np.arange(100.0)
    things = [ss.VP(), ss.ExactDivergence(), partial(ss.Clipped, low=-1.0, high=1.0), Own(), Own, len, big, jnp.ones(2)]
    text = json.dumps(described({"things": things, "f32": np.float32(0.1), "none": None, "on": True, 3: (1, 2)}))
    assert " at 0x" not in text and '"f32": 0.1,' in text and text.count("sha256") == 1
    assert described(big) != described(big[::-1]) and digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_weights_are_told_apart_to_the_bit():
    params = {"a": {"kernel": np.ones((2, 3), np.float32)}, "b": np.zeros(2, np.float32)}
    other = {"a": {"kernel": np.nextafter(params["a"]["kernel"], np.float32(2))}, "b": params["b"]}
    assert weights_digest(params) == weights_digest(dict(reversed(params.items()))) != weights_digest(other)
    assert weights_digest({"a": np.ones(2)}) != weights_digest({"b": np.ones(2)})


def test_an_origin_is_of_what_was_trained(tmp_path):
    def of(**changed):
        config = {"seed": 0, "sde": {"name": "vp"}, "sampling": {"steps": 8}, **changed}
        (tmp_path / "config.json").write_text(json.dumps({"config": config}))
        return origin_of(tmp_path, 5, free=("sampling.",))

    assert of() == of(sampling={"steps": 9}) != of(seed=1) and of().run == tmp_path.name and of().step == 5
    (tmp_path / "config.json").write_text("[")
    assert origin_of(tmp_path, 5).config is None


def test_reports_have_names_of_which_the_newest_and_the_fullest_are_plain(tmp_path, capsys):
    """And --mode=list says which, and knows what older runs have left."""
    made = {}
    for step, n in [(100, 20), (200, 8), (100, 8)]:
        told = {"examples": n, "of": 20}
        stem = report_stem(tmp_path / "eval", "likelihood_test", step, told, {"seed": 0})
        what = dataclasses.replace(MADE, origin=dataclasses.replace(ORIGIN, step=step))
        made[step, n] = write_artefact(stem, what, figures={"value": 3.0, "examples": n, "step": step})[0]
    end = digest({"seed": 0})
    assert [made[k].name for k in ((100, 20), (200, 8))] == [
        f"likelihood_test_step00000100_all20_{end}.json", f"likelihood_test_step00000200_n8_{end}.json",
    ]  # fmt: skip
    (tmp_path / "eval" / "likelihood_test.json").write_text('{"value": 2.0, "examples": 20, "step": 50}')
    found = reports(tmp_path)
    assert len(found) == 4 and newest(found) == made[200, 8] and fullest(found) == made[100, 20]
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "old.png").write_bytes(b"")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "arrays.npz").write_bytes(b"")
    assert without_settings(tmp_path) == [tmp_path / "samples" / "old.png"]
    assert list_mode(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(artefacts(tmp_path))) + 1 == 4
    assert [line.split()[1:4] for line in lines] == [
        ["100", "likelihood", "fullest"], ["100", "likelihood", f"eval/{made[100, 8].name}"],
        ["200", "likelihood", "newest"], ["?", "settings", "unknown"],
    ]  # fmt: skip
    assert "bits of some; seed=0" in lines[0] and lines[3].endswith("samples/old.png")


def test_nothing_to_list_and_files_that_lie_are_no_error(tmp_path, capsys):
    assert list_mode(tmp_path) == 0 and capsys.readouterr().out == ""
    for n, text in enumerate(("[" * 100_000, "null", '{"provenance": 3}', '{"provenance": {"step": "x"}, "files": 3}')):
        (tmp_path / f"{n}.json").write_text(text)
    (tmp_path / "9.json").write_text(
        '{"provenance": {"kind": "\\u001b[2J", "settings": {"a": {"name": 3}}}, "files": ["/x"]}'
    )
    assert list_mode(tmp_path) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_door_that_is_gone_through_by_hand_is_found():
    """The contract above sees a writer that goes past it."""
    planted = ast.parse("np.savez_compressed(path, x=x)").body[0].value
    assert planted.func.attr in WRITERS and len(ROOMS) > 10 and all(isinstance(path, Path) for path in ROOMS)
