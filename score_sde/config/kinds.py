"""A section names a kind and holds the settings of all kinds; here, what can be set of one, and how it is made."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from .validation import Problems


def settings(cls: type) -> dict[str, Any]:
    """Names and default values of what can be set of a class: its dataclass fields."""
    if not dataclasses.is_dataclass(cls):
        return {}
    return {
        f.name: f.default for f in dataclasses.fields(cls) if f.name not in ("parent", "name", "evaluations") and f.init
    }


def section(kinds: dict[str, type], key: str, default: str, keys: dict[str, str] = {}) -> dict[str, Any]:  # noqa: B006
    """A config section: the name of the kind, and every setting that any kind has, None; `keys` renames settings."""
    section: dict[str, Any] = {key: default}
    for cls in kinds.values():
        for name, value in settings(cls).items():
            section[keys.get(name, name)] = placeholder(float if value is None else type(value))
    return section


class Builder(Problems):
    """Makes objects from sections and collects what goes wrong."""

    def __init__(self):
        super().__init__()
        self.used: dict[str, set[str]] = {}

    def make(
        self,
        section: str,
        values: ConfigDict,
        key: str,
        table: dict[str, type],
        keys: dict[str, str] = {},  # noqa: B006
    ) -> Any:
        """The object of the kind that `values[key]` names, with the settings of `values` that are not None."""
        cls = self.choose(f"{section}.{key}", table, values[key])
        if cls is None:
            self.used[section] = set(values)  # which settings belong is not known
            return None
        known = {name: keys.get(name, name) for name in settings(cls)}
        self.used.setdefault(section, set()).update({key, *known.values()})
        try:
            return cls(**{name: values[at] for name, at in known.items() if values[at] is not None})
        except (ValueError, TypeError) as error:
            self.problems.append(f"{section}: {error}")
            return None

    def unused(self, section: str, values: ConfigDict, keys: list[str]) -> None:
        """Settings that are set but belong to a kind that was not chosen."""
        kinds = ", ".join(f"{key}={values[key]}" for key in keys)
        for name, value in values.items():
            if value is not None and name not in self.used[section]:
                self.problems.append(f"{section}.{name} is not a setting of {kinds}; leave it out")
