"""What is wrong with a file of weights, in one line."""

from pathlib import Path

from score_sde.data import DataError
from score_sde.reading import printable


class WeightsError(DataError):
    """A file of weights cannot be read, or not be expressed; the message is one line that names the file or the key."""


def damaged(path: Path, error: Exception | str) -> WeightsError:
    """The error to raise where a file does not hold what its format says."""
    return WeightsError(f"{path} is damaged, or of another format: {reason(error)}. Fetch it again.")


def reason(error: Exception | str) -> str:
    """What an exception says, in one line."""
    text = getattr(error, "strerror", None) or str(error).strip("'\".")
    return printable(text) or type(error).__name__
