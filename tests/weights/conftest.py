"""Tests that need torch and diffusers are skipped where these are missing; `.ci/run` has them."""

import importlib.util

import pytest

MISSING = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]


def pytest_runtest_setup(item):
    if item.get_closest_marker("interop") and MISSING:
        pytest.skip(f"{' and '.join(MISSING)} not installed: pip install 'score_sde[interop]'")
