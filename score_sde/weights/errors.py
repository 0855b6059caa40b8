"""What is wrong with a file of weights, in one line."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from score_sde.data import DataError
from score_sde.reading import printable


class WeightsError(DataError):
    """A file of weights cannot be read, or not be expressed; the message is one line that names the file or the key."""


def damaged(path: Path, error: Exception | str) -> WeightsError:
    """The error to raise where a file does not hold what its format says, or cannot be read (OSError)."""
    if isinstance(error, OSError) and error.strerror:
        return WeightsError(f"{path}: {reason(error)}.")
    return WeightsError(f"{path} is damaged, or of another format: {reason(error)}. Fetch it again.")


def reason(error: Exception | str) -> str:
    """What an exception says, in one line."""
    text = getattr(error, "strerror", None) or str(error).strip("'\".")
    return printable(text) or type(error).__name__


def refuse_unknown(file: str, config: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse a setting of diffusers' `file` that is not `known`, unless it is off (null, false) or a note (_name).

    Raises:
        WeightsError: a setting of a later diffusers, say, may change what the weights mean.
    """
    for key in sorted(map(str, config.keys() - set(known))):
        if not key.startswith("_") and config[key] not in (None, False):
            raise WeightsError(
                f"{file}: expected settings that are known here, got {printable(key)} {config[key]!r:.80}. Take it "
                "out, if the weights do not depend on it."
            )
