"""The walls between the rooms of score_sde, kept by reading every import, those inside functions included.

A new module needs a row in WALLS; a new import needs a reason before it needs a wider row.
"""

import ast
import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "score_sde"


@dataclass(frozen=True)
class Room:
    """What a room may import besides itself and the standard library."""

    rooms: Set[str]
    packages: Set[str]
    lazily: Set[str] = frozenset()  # inside functions only


# Each floor may use the floors below it; rooms of one floor do not know each other.
GROUND = {"arguments", "arrays", "derivatives", "trees"}
SDES = GROUND | {"sdes"}
TARGETS = SDES | {"predictions", "analytic", "discrete"}
FLOW = TARGETS | {"flow"}
MATHS = FLOW | {"objectives", "sampling", "likelihood", "guidance"}
ANYTHING = MATHS | {"__init__", "models", "extras", "files", "reading", "data", "training", "evaluation", "plots"}

JAX = {"jax", "numpy", "jaxtyping"}
ODE = {"diffrax", "lineax"}  # lineax: the linear operators that diffrax takes, and installs
TRAIN = {"flax", "optax", "orbax", "absl"}
IMAGES = {"PIL", "tqdm"}
CONFIG = {"ml_collections", "absl"}

WALLS = {
    # room            rooms of score_sde         packages                                inside functions only
    # maths
    "trees":       Room(set(),                   JAX,                                    ODE),
    "arguments":   Room({"trees"},               JAX,                                    ODE),
    "arrays":      Room({"trees"},               JAX,                                    ODE),
    "derivatives": Room(set(),                   JAX,                                    ODE),
    "sdes":        Room(GROUND,                  JAX,                                    ODE),
    "predictions": Room(SDES,                    JAX,                                    ODE),
    "analytic":    Room(SDES,                    JAX,                                    ODE),
    "discrete":    Room(SDES,                    JAX,                                    ODE),
    "flow":        Room(TARGETS,                 JAX,                                    ODE),
    "objectives":  Room(FLOW,                    JAX,                                    ODE),
    "sampling":    Room(FLOW,                    JAX,                                    ODE),
    "likelihood":  Room(FLOW,                    JAX,                                    ODE),
    "guidance":    Room(FLOW | {"sampling"},     JAX,                                    ODE),
    "__init__":    Room(MATHS,                   JAX,                                    ODE),
    # networks
    "models":      Room(set(),                   JAX | {"flax"}),
    # system
    "extras":      Room(set(),                   set()),
    "files":       Room({"reading"},             {"numpy"}),
    "reading":     Room(set(),                   set()),
    "data":        Room({"reading"},             {"numpy", "grain", "pooch"} | IMAGES),
    "training":    Room(ANYTHING,                JAX | TRAIN | IMAGES | {"grain"},       {"tensorboardX"}),
    "evaluation":  Room(ANYTHING,                JAX | TRAIN | IMAGES,                   {"tensorboardX"}),
    "plots":       Room({"extras"},              {"numpy", "PIL"},                       {"matplotlib"}),
    # the edge
    "config":      Room(ANYTHING,                JAX | {"flax", "optax"} | CONFIG,       ODE),
    "modes":       Room(ANYTHING | {"config"},   {"jax", "numpy"}),
    "main":        Room(ANYTHING | {"config", "modes"}, CONFIG),
    "weights":     Room(ANYTHING | {"config", "modes", "main"}, JAX | {"flax"} | CONFIG, {"safetensors"}),
}  # fmt: skip

CONFIG_READERS = {"config", "main", "weights"}
FLAG_READERS = {"main"}
OPTIONAL = {"matplotlib", "tensorboardX", "torch", "diffusers"}


@dataclass(frozen=True)
class Import:
    line: int
    target: str  # absolute and dotted; "" when only the running program knows it
    lazy: bool


class ImportReader(ast.NodeVisitor):
    """Collects the imports of one module, relative ones made absolute."""

    def __init__(self, package: list[str]):
        self.package = package  # of the module, as its relative imports see it
        self.lazy = False
        self.found: list[Import] = []

    def add(self, node: ast.AST, target: str):
        self.found.append(Import(node.lineno, target, self.lazy))

    def absolute(self, level: int, name: str) -> str:
        above = self.package[: len(self.package) - level + 1] if level else []
        return ".".join(above + [name] * bool(name))

    def visit_Import(self, node):
        for alias in node.names:
            self.add(node, alias.name)

    def visit_ImportFrom(self, node):
        source = self.absolute(node.level, node.module or "")
        for alias in node.names:
            self.add(node, source if alias.name == "*" else f"{source}.{alias.name}")

    def visit_Call(self, node):
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        if name in ("import_module", "__import__"):
            given = node.args[0] if node.args else None
            literal = given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else ""
            dots = len(literal) - len(literal.lstrip("."))
            self.add(node, self.absolute(dots, literal[dots:]))
        self.generic_visit(node)

    def inside(self, nodes):
        outer, self.lazy = self.lazy, True
        for node in nodes:
            self.visit(node)
        self.lazy = outer

    def visit_FunctionDef(self, node):
        for node_now in (*node.decorator_list, node.args):  # run when the function is defined
            self.visit(node_now)
        self.inside(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node):
        self.visit(node.args)
        self.inside([node.body])

    def visit_If(self, node):
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):  # never runs
            self.inside(node.body)
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)


def room_of(module: list[str]) -> str:
    """`["score_sde", "sampling", "loop"]` is in the room `sampling`."""
    return module[1] if len(module) > 1 else "__init__"


def broken(room: str, imported: Import, known_rooms: set[str]) -> str | None:
    """The rule that an import breaks, or None."""
    wall, target = WALLS[room], imported.target.split(".")
    if not imported.target:
        return "imports a name that only the running program knows: write it as an import statement"
    if target[0] == PACKAGE:
        other = room_of(target)
        if other not in known_rooms:  # a name of the package itself, such as __version__
            other = "__init__"
        if other == room or other in wall.rooms:
            return None
        name = PACKAGE if other == "__init__" else f"{PACKAGE}.{other}"
        return f"imports {name}: of {PACKAGE}, {room} may import {', '.join(sorted(wall.rooms)) or 'only itself'}"
    if target[:2] == ["absl", "flags"] and room not in FLAG_READERS:
        return f"imports absl.flags: only {', '.join(sorted(FLAG_READERS))} reads flags"
    top = target[0]
    if top in sys.stdlib_module_names or top in wall.packages or (top in wall.lazily and imported.lazy):
        return None
    if top in wall.lazily:
        return f"imports {top} at module level: {room} may import it only inside a function"
    inside = f", and inside functions {', '.join(sorted(wall.lazily))}" if wall.lazily else ""
    return f"imports {top}: of other packages, {room} may import {', '.join(sorted(wall.packages))}{inside}"


def violations(root: Path) -> Iterator[str]:
    """One line for each import under root/score_sde that breaks a wall, and for each module without a row."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    modules = {path: list(path.relative_to(root).with_suffix("").parts) for path in files}
    known_rooms = set(WALLS) | {module[1] for module in modules.values()}
    for path, module in modules.items():
        where = path.relative_to(root).as_posix()
        room = room_of(module)
        if room not in WALLS:
            yield f"{where}:1: the room '{room}' has no row in WALLS of this test: say where it belongs"
            continue
        reader = ImportReader(package=module[:-1])
        reader.visit(ast.parse(path.read_text(encoding="utf-8"), where))
        for imported in reader.found:
            rule = broken(room, imported, known_rooms)
            if rule:
                yield f"{where}:{imported.line}: {rule}"


def test_walls_stand():
    assert (ROOT / PACKAGE / "__init__.py").exists()
    found = list(violations(ROOT))
    assert not found, "\n" + "\n".join(found)


def test_rows_know_only_rooms():
    for room, wall in WALLS.items():
        assert wall.rooms <= set(WALLS), room


def test_floors_have_no_cycle():
    """Below training the rooms can be put in an order in which each uses only earlier ones."""
    left = {room: WALLS[room].rooms - {room} for room in ANYTHING - {"training", "evaluation"}}
    while left:
        free = {room for room, rooms in left.items() if not rooms & set(left)}
        assert free, f"in a cycle: {sorted(left)}"
        left = {room: rooms for room, rooms in left.items() if room not in free}


def test_only_the_edge_knows_config_objects():
    assert {room for room, wall in WALLS.items() if "ml_collections" in wall.packages | wall.lazily} == CONFIG_READERS


def test_optional_packages_are_never_needed_to_import_a_room():
    for room, wall in WALLS.items():
        assert not wall.packages & OPTIONAL, room


def test_maths_is_free_of_frameworks():
    for room in MATHS:
        assert WALLS[room].rooms <= MATHS, room
        assert (WALLS[room].packages, WALLS[room].lazily) == (JAX, ODE), room


def planted(tmp_path: Path, file: str, source: str) -> list[str]:
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return list(violations(tmp_path))


ALLOWED = [
    ("sdes.py", "import math\nimport jax.numpy as jnp\nfrom jaxtyping import Float\nfrom . import trees"),
    ("flow.py", "def solve():\n    import diffrax\n    from diffrax import Dopri5"),
    ("flow.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import diffrax"),
    ("sampling/loop.py", "from . import grids\nfrom .grids import uniform\nfrom ..sdes import VP\nfrom .. import flow"),
    ("sampling/__init__.py", "from .loop import sample\nfrom score_sde.sampling.loop import sample"),
    ("guidance/inverse.py", "from score_sde import sampling\nimport score_sde.sdes"),
    ("models/unet.py", "import flax.linen as nn\nfrom .blocks import ResBlock"),
    ("training/loop.py", "from absl import logging\nfrom score_sde import __version__\nfrom .. import plots"),
    ("training/log.py", "class Writer:\n    def open(self):\n        import tensorboardX"),
    ("plots.py", "import importlib\ndef figure():\n    importlib.import_module('matplotlib.pyplot')"),
    ("main.py", "from absl import app, flags\nfrom score_sde import config"),
    ("__init__.py", "from score_sde.sdes import VP\n__version__ = '0.1.0'"),
]

FORBIDDEN = [
    # other packages
    ("sdes.py", "import jax\nimport flax.linen as nn", "score_sde/sdes.py:2: imports flax"),
    ("sdes.py", "def f():\n    from flax import struct", "score_sde/sdes.py:2: imports flax"),
    ("sampling/loop.py", "try:\n    import orbax.checkpoint\nexcept ImportError:\n    pass", ":2: imports orbax"),
    ("flow.py", "import diffrax", "score_sde/flow.py:1: imports diffrax at module level"),
    ("flow.py", "class Solve:\n    from diffrax import Dopri5", "score_sde/flow.py:2: imports diffrax at module level"),
    ("flow.py", "def f(x=__import__('diffrax')):\n    pass", "flow.py:1: imports diffrax at module level"),
    ("models/unet.py", "import diffrax", "score_sde/models/unet.py:1: imports diffrax"),
    ("data/sources.py", "import jax", "score_sde/data/sources.py:1: imports jax"),
    ("plots.py", "import matplotlib.pyplot as plt", "score_sde/plots.py:1: imports matplotlib at module level"),
    ("plots.py", "from importlib import import_module\nimport_module('torch')", "score_sde/plots.py:2: imports torch"),
    ("training/loop.py", "from ml_collections import ConfigDict", "training/loop.py:1: imports ml_collections"),
    ("weights/pth.py", "def f():\n    import torch", "score_sde/weights/pth.py:2: imports torch"),
    ("training/loop.py", "from .. import weights", "training/loop.py:1: imports score_sde.weights"),
    ("config.py", "from absl import flags", "score_sde/config.py:1: imports absl.flags: only main"),
    ("training/loop.py", "import absl.flags", "score_sde/training/loop.py:1: imports absl.flags: only main"),
    # other rooms
    ("trees.py", "from .sdes import VP", "score_sde/trees.py:1: imports score_sde.sdes"),
    ("sdes.py", "from . import flow", "score_sde/sdes.py:1: imports score_sde.flow"),
    ("analytic.py", "import score_sde.predictions", "score_sde/analytic.py:1: imports score_sde.predictions"),
    ("likelihood/bound.py", "from ..sampling import grids", "likelihood/bound.py:1: imports score_sde.sampling"),
    ("sampling/loop.py", "def f():\n    from .. import guidance", "loop.py:2: imports score_sde.guidance"),
    ("sampling/__init__.py", "from ..objectives import dsm", "sampling/__init__.py:1: imports score_sde.objectives"),
    ("guidance/cfg.py", "from score_sde.likelihood import log_prob", "cfg.py:1: imports score_sde.likelihood"),
    ("models/unet.py", "from score_sde import sdes", "score_sde/models/unet.py:1: imports score_sde.sdes"),
    ("models/unet.py", "from .. import trees", "score_sde/models/unet.py:1: imports score_sde.trees"),
    ("data/sources.py", "from ..training import mesh", "data/sources.py:1: imports score_sde.training"),
    ("evaluation/bpd.py", "from ..config import build", "evaluation/bpd.py:1: imports score_sde.config"),
    ("config.py", "import score_sde.main", "score_sde/config.py:1: imports score_sde.main"),
    ("sdes.py", "import score_sde as ss", "score_sde/sdes.py:1: imports score_sde:"),
    ("sdes.py", "from score_sde import VP", "score_sde/sdes.py:1: imports score_sde:"),
    ("sdes.py", "from score_sde import *", "score_sde/sdes.py:1: imports score_sde:"),
    ("__init__.py", "from .training import train", "score_sde/__init__.py:1: imports score_sde.training"),
    # what cannot be read
    ("sdes.py", "import importlib\nimportlib.import_module(name)", "sdes.py:2: imports a name that only the running"),
    # rooms of which nobody said where they belong
    ("utils.py", "x = 1", "utils.py:1: the room 'utils' has no row in WALLS of this test: say where it belongs"),
    ("extra/deep/thing.py", "x = 1", "score_sde/extra/deep/thing.py:1: the room 'extra' has no row"),
]


@pytest.mark.parametrize("file, source", ALLOWED)
def test_allowed_import_passes(tmp_path, file, source):
    assert planted(tmp_path, file, source) == []


@pytest.mark.parametrize("file, source, message", FORBIDDEN)
def test_forbidden_import_is_found(tmp_path, file, source, message):
    (found,) = planted(tmp_path, file, source)
    assert message in found


def test_import_from_a_room_without_a_row_is_found(tmp_path):
    (tmp_path / PACKAGE / "helpers").mkdir(parents=True)
    (tmp_path / PACKAGE / "helpers" / "a.py").write_text("")
    found = planted(tmp_path, "training/loop.py", "from score_sde import helpers")
    assert any("training/loop.py:1: imports score_sde.helpers" in line for line in found)
