"""How a run goes on: whether it is the one that the checkpoints are of, from which of them, and with what settings."""

from pathlib import Path
from typing import Any

from score_sde.files import WorkdirError
from score_sde.training.checkpoints import Checkpoints, newest_notes, notes_of, saved_steps
from score_sde.training.progress import last_step, tell
from score_sde.training.window import Window

SETTINGS = ("learning_rate", "warmup", "clip_norm")  # of the options: what a run may change on its way


def settings_of(options: Any) -> dict[str, float]:
    """What of the training options may change on the way."""
    return {name: getattr(options, name) for name in SETTINGS}


def check(workdir: Path, options: Any, identity: dict[str, Any], *, saved_every: int | None = None) -> None:
    """Raise WorkdirError unless training may go on in `workdir`, or begin there; nothing is touched.

    Args:
        identity: {"config": {key: value} of all that makes the run, "data": digest of the training data}.
        saved_every: the `checkpoint_every` that the run had so far; None for a new one.
    """
    _check_checkpoints(Path(workdir), saved_every)
    found = newest_notes(workdir)
    if found is None:
        return
    step, notes = found
    there = notes.get("identity")
    if not there:
        return tell(f"note: checkpoint {step} is of an older version, without config, data and settings to check.")
    keys = sorted(identity["config"].keys() & there["config"].keys())
    if other := [key for key in keys if identity["config"][key] != there["config"][key]]:
        listed = ", ".join(f"{key} = {there['config'][key]} there, {identity['config'][key]} here" for key in other)
        raise WorkdirError(
            f"the checkpoints of {workdir} are of another config ({listed}). Restore its config.json, or use another "
            "--workdir."
        )
    if there["data"] != identity["data"]:
        if not options.new_data:
            raise WorkdirError(
                f"the training data are not those of {workdir} up to step {step}. Put those back, use another "
                "--workdir, or go on with the new data by --config.training.new_data=True."
            )
        tell(f"note: from step {step} on the training data are others than before.")
    old = notes.get("settings", {})
    if bool(old.get("warmup", options.warmup)) != bool(options.warmup):
        raise WorkdirError(
            f"training.warmup cannot change from {old['warmup']} to {options.warmup} in {workdir}: no warmup, 0, "
            "stays none. Use another --workdir."
        )


def _check_checkpoints(workdir: Path, saved_every: int | None) -> None:
    """A run whose checkpoints have gone must not begin anew and cut its metrics."""
    folder, metrics = workdir / "checkpoints", workdir / "metrics.jsonl"
    gone = not folder.is_dir() and metrics.exists()  # the folder is made first
    reached = last_step(metrics) if metrics.exists() else 0
    # A line beyond the second save: the first, which that one waited for, was there.
    gone = gone or bool(saved_every) and reached > 2 * saved_every and not saved_steps(workdir)
    if gone:
        raise WorkdirError(
            f"{workdir} has trained up to step {reached}, and its checkpoints are not in {folder}. Put them back; or, "
            f"to begin anew, move {metrics} away or use another --workdir."
        )


def resume(checkpoints: Checkpoints, like: Any, options: Any) -> tuple[Any, Window]:
    """The state to go on from, None where there is none, and its window; says where training starts."""
    directory = checkpoints.path.parent
    settings, found = settings_of(options), newest_notes(directory)
    old = found[1].get("settings", settings) if found else settings
    changed = {name: value for name, value in settings.items() if old[name] != value}
    good = checkpoints.newest_good() if changed and not found[1]["good"] else None
    state = checkpoints.restore(like, good)
    if state is None:
        return None, Window()
    if good is not None:
        checkpoints.set_aside_after(good)
    step = int(state.step)
    notes = notes_of(directory, step)
    window = Window(**notes.get("window", {"reports": None}))
    later = "" if good is None else ", the newest good checkpoint; later ones are set aside as exploded-N"
    tell(f"training goes on at step {step} of {options.steps}{later}")
    if changed:
        told = "; ".join(f"{name} {old[name]:g} before, {value:g} now" for name, value in changed.items())
        tell(f"note: from step {step} on with other settings: training.{told}")
        window.changed.update(changed)
    return state, window
