"""The order in which the samplers' tests run."""

from itertools import groupby

from tests.catalogue import SAMPLERS


def pytest_collection_modifyitems(items):
    """In each file one sampler after the other: its tests share a compiled program, and not all are kept at once."""

    def turn(item):
        sampler = item.callspec.params.get("sampler") if hasattr(item, "callspec") else None
        return SAMPLERS.index(sampler) if sampler in SAMPLERS else -1

    items[:] = [item for _, file in groupby(items, lambda item: item.path) for item in sorted(file, key=turn)]
