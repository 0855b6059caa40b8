"""Checkpoints by Orbax, written in the background, with a fingerprint: Orbax alone restores flipped bits silently.

Beside the state lie notes in JSON: the fingerprint of the state, its step, whether the run was in order then (`good`),
what the caller adds, and a digest of all of these.
"""

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from score_sde.files import WorkdirError, json_digest
from score_sde.reading import read_text

_log = logging.getLogger(__name__)


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """One uint32 per leaf, which a change of any single word of the leaf changes (odd weights are invertible)."""

    def one(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        if not jnp.issubdtype(x.dtype, jnp.unsignedinteger):
            x = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
        words = x.ravel().astype(jnp.uint32)
        weights = jnp.arange(words.size, dtype=jnp.uint32) * jnp.uint32(2654435762) + jnp.uint32(1)
        return jnp.sum(words * weights, dtype=jnp.uint32)

    return jnp.stack([one(x) for x in jax.tree.leaves(tree)])


KEEP = 2  # checkpoints of a run


class _NewestAndGood(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest `keep` checkpoints, and the newest of those that were `good`: a run that explodes leaves one."""

    def __init__(self, keep: int, good: set[int]):
        self.keep, self.good = keep, good

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = [c.step for c in checkpoints]
        kept = {*sorted(steps)[-self.keep :], max(self.good.intersection(steps), default=-1)}
        return [step in kept for step in steps]


def notes_of(directory: Path, step: int) -> dict[str, Any]:
    """What lies beside the state of a step in `directory`/checkpoints; before there was a digest, little.

    Raises:
        ValueError: it is damaged, or of another step.
    """
    notes = json.loads(read_text(Path(directory) / "checkpoints" / str(step) / "meta" / "metadata"))
    if not isinstance(notes, dict):
        raise ValueError("its notes are damaged")
    if "digest" in notes:
        if notes.pop("digest") != json_digest(notes):
            raise ValueError("its notes do not match their digest")
        if notes["step"] != step:
            raise ValueError(f"it holds step {notes['step']}")
    elif notes.keys() != {"fingerprint"}:
        raise ValueError("its notes have lost their digest")
    return notes


def newest_notes(directory: Path) -> tuple[int, dict[str, Any]] | None:
    """(step, notes) of the newest checkpoint whose notes can be read; nothing is opened or changed."""
    for step in reversed(saved_steps(directory)):
        try:
            return step, notes_of(directory, step)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return None


def saved_steps(directory: Path) -> list[int]:
    """Steps that have a checkpoint in `directory`/checkpoints, rising."""
    return sorted(int(p.name) for p in (Path(directory) / "checkpoints").glob("*") if p.name.isdecimal())


class Checkpoints:
    """The checkpoints of a run in `directory`/checkpoints: the newest `keep` of them, and the newest that is good.

    Use it as a context manager.  With `read_only` nothing in the directory is touched, since a trainer may be at work
    there.
    """

    def __init__(self, directory: Path, keep: int = KEEP, *, read_only: bool = False):
        self.path = Path(directory).resolve() / "checkpoints"
        self.read_only = read_only
        self._good: set[int] = set()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndGood(keep, self._good),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        with self._disk():
            self._manager = ocp.CheckpointManager(self.path, options=options)
        for step in () if read_only else self.steps():
            with suppress(Exception):  # a damaged one is no good one
                if notes_of(self.path.parent, step).get("good", True):
                    self._good.add(step)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        try:
            with self._disk():
                self._manager.close()  # waits for a save in flight
        except WorkdirError as error:
            if kind is None:
                raise
            if not issubclass(kind, WorkdirError):  # which has said it
                _log.warning("%s", error)  # beside what was raised first

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """A full or read-only disk, which Orbax reports in many ways and from its own threads, in one line."""
        try:
            yield
        except Exception as error:
            if not self.path.is_dir() or re.match("Save failed|NOT_FOUND|DATA_LOSS|No ArrayMetadata found", str(error)):
                raise self._gone() from error  # TensorStore misses what it has just written
            found = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore raises ValueError
            code = int(found[1]) if found else getattr(error, "errno", None)
            if code is None:
                raise
            safe = saved_steps(self.path.parent)
            kept = f"Safe are the checkpoints of the steps {', '.join(map(str, safe))}" if safe else "There is none yet"
            raise WorkdirError(
                f"cannot write a checkpoint to {self.path}: {os.strerror(code)}. {kept}: make room or give write "
                "access, then run the same command again to resume."
            ) from error

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, rising."""
        return sorted(self._manager.all_steps())

    def _gone(self) -> WorkdirError:
        return WorkdirError(f"{self.path} was deleted or moved. Put it back, then run the same command again.")

    def save(self, step: int, state: Any, *, good: bool = True, **notes: Any) -> None:
        """Save in the background, with notes for `notes_of`; nothing happens where this step is saved already.

        Raises:
            WorkdirError: this save, or the one before, cannot be written; the folder is gone.
        """
        if step in self._manager.all_steps():
            return
        if not self.path.is_dir():
            raise self._gone()
        marks = [int(v) for v in np.asarray(fingerprint(state))]
        notes = json.loads(json.dumps({"fingerprint": marks, "step": step, "good": good, **notes}))
        meta = ocp.args.JsonSave({**notes, "digest": json_digest(notes)})
        args = ocp.args.Composite(state=ocp.args.StandardSave(_as_dict(state)), meta=meta)
        if good:
            self._good.add(step)
        with self._disk():  # also of the save before, if that failed in the background
            self._manager.save(step, args=args)

    def wait(self) -> None:
        """Return once a save in flight is on the disk."""
        with self._disk():
            self._manager.wait_until_finished()

    def restore(self, like: Any, step: int | None = None) -> Any | None:
        """The newest undamaged state, or that of `step`, shaped and sharded like `like`: arrays, or ShapeDtypeStructs
        with a sharding (the run may have had other devices).  None if there is no save.

        Damaged checkpoints newer than that are reported, and set aside as damaged-N.

        Raises:
            WorkdirError: there are checkpoints and none can be read, or none is of `step`; they are left as they are.
        """
        failed: dict[int, str] = {}
        steps = [n for n in reversed(self.steps()) if step in (None, n)]
        if step is not None and not steps:
            raise WorkdirError(f"no checkpoint of step {step} in {self.path}; there are {self.steps()}.")
        for step in steps:
            try:
                state = self._restore(step, like)
            except Exception as error:  # Orbax raises many types on damage
                failed[step] = (str(error).splitlines() or [type(error).__name__])[0][:200]
                continue
            for bad, reason in failed.items():  # only now: where none can be read, the fault may be elsewhere
                _log.warning("checkpoint %d is damaged, checkpoint %d is used: %s", bad, step, reason)
                if not self.read_only:
                    self._set_aside(bad)
            return state
        if failed:
            step, reason = next(iter(failed.items()))
            raise WorkdirError(
                f"no checkpoint in {self.path} can be read (tried {list(failed)}; {step}: {reason}). "
                "Restore a copy, or train in another --workdir."
            )
        return None

    def _restore(self, step: int, like: Any) -> Any:
        notes = notes_of(self.path.parent, step)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_dict(like))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        state = type(like)(**self._manager.restore(step, args=args).state)
        if notes["fingerprint"] != [int(v) for v in np.asarray(fingerprint(state))]:
            raise ValueError("its contents do not match their fingerprint")
        if (there := getattr(state, "step", step)) != step:  # a folder may be renamed
            raise ValueError(f"it holds step {int(there)}")
        return state

    def newest_good(self) -> int | None:
        """The newest step that was saved as a good one."""
        return max(self._good.intersection(self.steps()), default=None)

    def set_aside_after(self, step: int) -> None:
        """Rename later checkpoints to exploded-N: the run goes on from `step` in another way."""
        for later in [n for n in self.steps() if n > step]:
            self._set_aside(later, "exploded")

    def _set_aside(self, step: int, why: str = "damaged") -> None:
        target, n = self.path / f"{why}-{step}", 1
        while target.exists():
            target, n = self.path / f"{why}-{step}.{n}", n + 1
        with self._disk():
            (self.path / str(step)).rename(target)
            self._manager.reload()


def _as_dict(state: Any) -> dict:
    return {name: getattr(state, name) for name in state.__dataclass_fields__}
