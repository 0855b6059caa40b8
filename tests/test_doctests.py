"""The examples in docstrings run and show what they say."""

import ast
import doctest
import importlib
from pathlib import Path

import jax
import pytest

import score_sde

ROOT = Path(score_sde.__file__).parent
PARSER = doctest.DocTestParser()


def examples(path: Path) -> int:
    """How many examples the docstrings of a file hold, read without importing it."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, documented)]
    return sum(len(PARSER.get_examples(ast.get_docstring(node, clean=False) or "")) for node in nodes)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


COUNTS = {module_name(path): examples(path) for path in sorted(ROOT.rglob("*.py"))}
WITH_EXAMPLES = [module for module, count in COUNTS.items() if count]


def test_there_are_examples():
    assert {"score_sde.sdes", "score_sde.predictions", "score_sde.objectives.matching"} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_show_what_they_say(module):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # a user's session
        result = doctest.testmod(importlib.import_module(module), raise_on_error=False)
    assert result.failed == 0
    assert result.attempted == COUNTS[module], "doctest does not see every example: a decorator hides its docstring"
