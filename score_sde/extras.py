"""Packages that only some of the features need."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ImportError):
    """A package is not installed; the message is one line that names the extra to install."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports in the body need the extra `name` of this package: `MissingExtra` where one is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        raise MissingExtra(f"{package} is not installed. Install it with: pip install 'score_sde[{name}]'") from error
