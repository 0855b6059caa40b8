"""Whose code a config may name: `module:function` runs with the rights of the user, so it must be the user's word.

A name with a module is the user's where a `--config` file or the command line holds it.  Other files (a run's
config.json, the header of a weights file) cannot vouch for themselves: their names hold if the user's own record holds
them, or with an explicit `trust`.  The record lies outside all runs, in $SCORE_SDE_STATE, $XDG_STATE_HOME/score_sde or
~/.local/state/score_sde.  It is written when the user trains, imports or exports, and tells of each file with a config:
its place, the sha256 of its config, and for every name the file of the module and its sha256.

Names are checked when a config is read, before anything is imported, and over all values rather than some keys.
"""

import hashlib
import importlib
import json
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from score_sde.files import WorkdirError, write_json
from score_sde.reading import read_bytes

from .validation import ConfigError

# What `pkgutil.resolve_name` takes for a module and something in it.
_WORD = r"[^\W\d]\w*"
_NAME = re.compile(rf"(?P<module>{_WORD}(\.{_WORD})*):({_WORD}(\.{_WORD})*)?")

_log = logging.getLogger(__name__)

Trust = bool | Callable[[str, str], bool]  # True, or whether a (key, name) is the user's own word; False: neither


def named(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, name) of all values, and parts of values, that name something in a module."""
    for key, value in values.items():
        if isinstance(value, str) and _NAME.fullmatch(value):
            yield key, value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", name) for inner, name in named(value))
        elif isinstance(value, (list, tuple)):
            yield from (found for part in value for found in named({key: part}))


def resolve(name: str) -> Any:
    """What `module:function` stands for: the one place where a name in a config imports something.

    Raises:
        ValueError: it is no such name; and whatever the import raises.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected module:function, got {name!r}")
    return pkgutil.resolve_name(name)


def own(values: Mapping[str, Any], replaced: Iterable[str] = ()) -> Trust:
    """Trust in the names that are in `values` too, and in those of keys that are `replaced` and come to nothing."""
    names, keys = set(named(values)), set(replaced)
    return lambda key, name: key in keys or (key, name) in names


def check_names(values: Mapping[str, Any], file: Path, text: bytes, trust: Trust = False) -> None:
    """Raise ConfigError where `values`, a config that `file` holds as `text`, names code that is not the user's.

    Modules of the record are found from here on in the files that the record tells.  Nothing is imported.
    """
    if trust is True:
        return
    recorded = None
    for key, name in named(values):
        if trust and trust(key, name):
            continue
        recorded = _recorded(file, text) if recorded is None else recorded
        if name not in recorded:
            problem = "and no record of yours says that you trained or wrote it"
        else:
            problem = _find(name, recorded[name], _run(file))
        if problem:
            raise ConfigError(
                f"{file}: {key} names code, {name}, {problem}. Nothing of it was run. Give the --config that names it, "
                "or --trust (in Python trust=True) if you trust this file."
            )


def remember(file: Path, text: bytes, values: Mapping[str, Any]) -> None:
    """Record that the user wrote `file` with the config `values`, there as `text`; nothing where it names no module.

    Where the record cannot be written, that is told.
    """
    names = {}
    for _, name in named(values):
        module = sys.modules.get(_module(name))
        path = getattr(module, "__file__", None)
        if path is not None:
            names[name] = {"file": str(Path(path).resolve()), "sha256": _sha256(Path(path).read_bytes())}
    if names:
        try:
            _state().mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(_entry(file), {"place": str(_place(file)), "config": _sha256(text), "names": names})
        except (OSError, WorkdirError, ConfigError) as error:
            _log.warning(
                "note: without --config, %s will need --trust, since there is no record of it: %s", file, error
            )


def _recorded(file: Path, text: bytes) -> dict[str, dict[str, str]]:
    """name -> file and sha256 of its module, as the record tells of `file` with this `text`; else nothing."""
    run = _run(file)
    if run and Path(os.path.realpath(_state())).is_relative_to(run):
        return {}  # a record inside the run would be its own
    try:
        entry = json.loads(read_bytes(_entry(file)))
        same = entry["place"] == str(_place(file)) and entry["config"] == _sha256(text)
        return dict(entry["names"]) if same else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _find(name: str, recorded: Mapping[str, str], run: Path | None) -> str | None:
    """Let the module of `name` be found in its recorded file; what is wrong where it cannot be."""
    path = Path(recorded["file"])
    try:
        same = _sha256(read_bytes(path)) == recorded["sha256"]
    except OSError:
        return f"which was {path} when you trained, and cannot be read there now"
    if not same:
        return f"which was {path} when you trained, and that file has changed since"
    if run and path.is_relative_to(run):
        return f"and that is {path}, inside the run, whose modules are not taken from a record"
    module = _module(name)
    if _file_of(module) != path:
        parts = len(module.split(".")) + (path.stem == "__init__")
        sys.path.insert(0, str(path.parents[parts - 1]))  # as when the user trained
        if (found := _file_of(module)) != path:
            sys.path.pop(0)
            return f"which was {path} when you trained, and is now {found or 'not found'}"
    return None


def _file_of(module: str) -> Path | None:
    """The file from which `module` has been or would be imported; nothing is."""
    importlib.invalidate_caches()
    name, folders, file = "", None, None
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        if name in sys.modules:
            there = sys.modules[name]
            folders, file = getattr(there, "__path__", ()), getattr(there, "__file__", None)
        else:
            spec = PathFinder.find_spec(name, folders)
            if spec is None:
                return None
            folders, file = spec.submodule_search_locations or (), spec.origin if spec.has_location else None
    return file and Path(file).resolve()


def _module(name: str) -> str:
    return _NAME.fullmatch(name)["module"]


def _place(file: Path) -> Path:
    return Path(os.path.realpath(Path(file).parent)) / Path(file).name  # a link in its place is another file


def _run(file: Path) -> Path | None:
    """The folder of the run that `file` is of; a file of weights is of none."""
    return _place(file).parent if Path(file).name == "config.json" else None


def _entry(file: Path) -> Path:
    return _state() / "runs" / f"{_sha256(os.fsencode(_place(file)))[:32]}.json"


def _state() -> Path:
    """The folder of the record.

    Raises:
        ConfigError: $SCORE_SDE_STATE depends on the current directory, or there is no home.
    """
    if given := os.environ.get("SCORE_SDE_STATE"):
        if not os.path.isabs(given):
            raise ConfigError(f"SCORE_SDE_STATE must be an absolute path, got {given!r}.")
        return Path(given)
    base = os.environ.get("XDG_STATE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "score_sde"
    except RuntimeError as error:
        raise ConfigError("there is no home folder to keep a record in. Set SCORE_SDE_STATE to a folder.") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
