"""What a run leaves for people: arrays, pictures and reports, each with what made it in a JSON file beside it.

`write_artefact` is the only door: nothing in `evaluation` or `modes` writes an array or a picture otherwise.  What it
has written is never overwritten by something else: the same settings with the same values are the same files, whole
again if they were damaged, and other values get the next free name (`_2`, `_3` ...).
"""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.evaluation.provenance import Provenance, arrays_digest, described, digest
from score_sde.files import read_arrays, write_arrays, write_bytes, write_json
from score_sde.reading import read_text

SUFFIXES = (".npz", ".png", ".gif")  # what must have its settings beside it


def write_artefact(
    stem: Path,
    made: Provenance,
    *,
    figures: dict[str, Any] | None = None,
    arrays: dict[str, np.ndarray] | None = None,
    pictures: dict[str, Callable[[], bytes]] | None = None,
    timings: tuple[str, ...] = (),
    replace: bool = False,
) -> list[Path]:
    """Write stem.json, stem.npz and the pictures; returns their paths in this order.

    Args:
        stem: the files' path without its suffix; `_2`, `_3` ... is added where something else is there.
        made: what made it, written into the JSON as "provenance".
        figures: what the JSON holds besides; `timings` names those that differ from time to time.
        arrays: what the .npz holds; without any there is none.
        pictures: what to add to the stem (".png", "_strip.png", ".gif") -> a function that draws it.  It is called
            once the values are on the disk: a picture that cannot be drawn costs no values.
        replace: write over what is there, which the new one contains or supersedes.
    """
    figures, arrays, pictures = dict(figures or {}), dict(arrays or {}), pictures or {}
    told = {k: v for k, v in described(figures).items() if k not in timings}
    result = digest([made.decisive(), told, arrays_digest(arrays)])
    place = stem if replace else _place(stem, result)
    names = [*([".npz"] if arrays else []), *pictures]
    paths = {name: place.with_name(place.name + name) for name in (".json", *names)}
    same = _read(paths[".json"]).get("result") == result
    if not same:  # first: a crash leaves settings without values, and never values without settings
        files = [paths[name].name for name in names]
        write_json(
            paths[".json"],
            {**described(figures), "files": files, "result": result, "provenance": made.record()},
        )
    if arrays and not (same and _holds(paths[".npz"], arrays)):
        write_arrays(paths[".npz"], **arrays)
    for name, draw in pictures.items():
        picture = draw()
        if not (same and paths[name].is_file() and paths[name].read_bytes() == picture):
            write_bytes(paths[name], picture)
    return list(paths.values())


def _holds(path: Path, arrays: dict[str, np.ndarray]) -> bool:
    """Whether a file holds these arrays; one that is damaged does not."""
    try:
        return arrays_digest(read_arrays(path)) == arrays_digest(arrays)
    except Exception:  # zip files raise a dozen types
        return False


def _place(stem: Path, result: str) -> Path:
    """The stem, or the first of stem_2, stem_3, ... where nothing is or the same result."""
    for n in itertools.count(1):
        place = stem if n == 1 else stem.with_name(f"{stem.name}_{n}")
        free = not any(place.with_name(place.name + suffix).exists() for suffix in (".json", *SUFFIXES))
        if free or _read(place.with_name(place.name + ".json")).get("result") == result:
            return place


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none or a damaged one."""
    try:
        found = json.loads(read_text(path))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):  # a FIFO or a gigabyte among them
        return {}


def report_stem(folder: Path, name: str, step: int, examples: dict[str, Any], settings: dict[str, Any]) -> Path:
    """The place of a report: folder/name_step00003800_n2000_1a2b3c4d, of all examples `all360` for `n2000`.

    The greatest step is the newest, `all` or the greatest n the fullest; the digits at the end are of all settings.
    """
    share = "all" if examples["examples"] == examples["of"] else "n"
    return Path(folder) / f"{name}_step{step:08d}_{share}{examples['examples']}_{digest(described(settings))}"


def reports(workdir: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(JSON file, what it says) of the likelihoods of a run, likelihood.json of older runs among them."""
    found = ((path, _read(path)) for path in sorted((Path(workdir) / "eval").glob("likelihood_*.json")))
    return [(path, said) for path, said in found if "value" in said]


def newest(found: list[tuple[Path, dict[str, Any]]]) -> Path | None:
    """The likelihood of the latest step, of these the one made last; None where there is none."""
    rated = [(_count(r.get("step")), str(r.get("provenance", {}).get("made")), p) for p, r in found if "value" in r]
    return max(rated)[-1] if rated else None


def fullest(found: list[tuple[Path, dict[str, Any]]]) -> Path | None:
    """The likelihood on the most examples, of these the one of the latest step; None where there is none."""
    rated = [(_count(r.get("examples")), _count(r.get("step")), p) for p, r in found if "value" in r]
    return max(rated)[-1] if rated else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) else -1


def artefacts(workdir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(JSON file, what it says) of all artefacts of a run, in the order of their steps and names."""
    found = ((path, _read(path)) for path in Path(workdir).rglob("*.json") if not _foreign(workdir, path))
    known = [(path, r) for path, r in found if _is_ours(r)]
    yield from sorted(known, key=lambda one: (_count(one[1]["provenance"].get("step")), str(one[0])))


def _is_ours(found: dict[str, Any]) -> bool:
    """Whether a JSON object has the form that `write_artefact` gives it; the file may be anybody's."""
    made, files = found.get("provenance"), found.get("files")
    named = isinstance(files, list) and all(isinstance(name, str) for name in files)
    return named and isinstance(made, dict) and isinstance(made.get("settings"), dict)


def without_settings(workdir: Path) -> list[Path]:
    """Arrays and pictures of a run that no artefact claims: older ones, and other people's."""
    claimed = {path.parent / name for path, r in artefacts(workdir) for name in r["files"]}
    there = (p for p in Path(workdir).rglob("*") if p.suffix in SUFFIXES and not _foreign(workdir, p))
    return sorted(p for p in there if p not in claimed and not p.name.startswith(".") and ".partial" not in p.name)


def _foreign(workdir: Path, path: Path) -> bool:
    """Whether it belongs to the state of training: not made for people."""
    return path.relative_to(workdir).parts[0] in ("checkpoints", "tensorboard")
