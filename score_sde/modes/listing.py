"""--mode=list: what a run has left, a line each: step, kind, files, what it is, settings."""

from pathlib import Path
from typing import Any

from score_sde.evaluation.artefacts import artefacts, fullest, newest, without_settings

# Of the settings, what is no news: said by `what`, the same in the whole run, or without influence.
TOLD = ("name", "sde", "levels", "data_range", "split", "examples", "drawn", "rows", "batch_size", "num_samples")


def list_mode(workdir: Path) -> int:
    """Print the artefacts of a run, of likelihoods the newest and the fullest marked; nothing is computed."""
    found, rows = list(artefacts(workdir)), []
    for path, said in found:
        made = said["provenance"]
        marks = [name for name, which in (("newest", newest), ("fullest", fullest)) if which(found) == path]
        kind = " ".join([str(made.get("kind")), *marks])
        files = [path.name, *(name.removeprefix(path.stem) for name in said["files"])]
        what = f"{made.get('what')}; {in_short(made['settings'])}"
        rows.append((str(made.get("step")), kind, f"{path.parent.relative_to(workdir)}/{' '.join(files)}", what))
    rows += [("?", "settings unknown", str(path.relative_to(workdir)), "") for path in without_settings(workdir)]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    for step, kind, where, what in rows:
        line = f"step {step:>{widths[0]}}  {kind:<{widths[1]}}  {where:<{widths[2]}}  {what}".rstrip()
        print("".join(c if c.isprintable() else "?" for c in line))  # files may be other people's
    return 0


def in_short(settings: dict[str, Any]) -> str:
    """Settings in a line, without those that are None: 'sampler=Heun grid=edm(rho=7.0) steps=8'."""
    shown = ((k, v) for k, v in settings.items() if k not in TOLD and v is not None)
    return " ".join(f"{k}={_value(v)}" for k, v in shown)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        name, inside = str(value.get("name", "")), in_short(value)
        return f"{name}({inside})" if inside else name
    return str(value)
