"""What every test run starts from: the platform, checked annotations, strict promotion in the maths rooms."""

import os
from pathlib import Path

# The variables reach processes that tests start; the config, below, this one, even where a plugin imported jax first.
PLATFORM = os.environ.get("SCORE_SDE_TEST_PLATFORM", "cpu")
CPU_DEVICES = 4
os.environ["JAX_PLATFORMS"] = PLATFORM
os.environ["JAX_NUM_CPU_DEVICES"] = str(CPU_DEVICES)

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", CPU_DEVICES)

try:
    from beartype import beartype  # noqa: F401
except ImportError:  # said at the top of the run, below
    HAS_BEARTYPE = False
else:
    HAS_BEARTYPE = True
    install_import_hook("score_sde", "beartype.beartype")

# A first example compiles, which no deadline allows for; a failure must come again on the next run.
settings.register_profile("score_sde", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("score_sde")

# Rooms whose code calls libraries that promote ranks and dtypes; every other test runs with both forbidden.
RELAXED = {"models", "weights", "data", "training", "evaluation", "config", "configs", "experiments", "main", "fuzz"}
RELAXED |= {"trust", "hostile"}
TESTS_RUN = pytest.StashKey[int]()
MAPS = Path("/proc/self/maps")  # of Linux


def room_of(path: Path) -> str:
    """The room a test file belongs to: its folder under tests/, or its name without `test_`."""
    first = path.relative_to(Path(__file__).parent).parts[0]
    return first.removeprefix("test_").removesuffix(".py")


def pytest_report_header(config):
    lines = [f"jax {jax.__version__} on {PLATFORM}"]
    if not HAS_BEARTYPE:
        lines += [
            "*" * 78,
            "beartype is MISSING: shape and dtype annotations are NOT checked in this run.",
            "Install it with: pip install 'score_sde[test]'",
            "*" * 78,
        ]
    return lines


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.fail(
            f"expected a GPU, got the {jax.default_backend()} backend: run with SCORE_SDE_TEST_PLATFORM=cuda, "
            "or leave gpu tests out with -m 'not gpu'",
            pytrace=False,
        )


@pytest.fixture(scope="module", autouse=True)
def strict_promotion(request):
    """Mixed ranks and mixed dtypes are errors in tests of the maths rooms (module scope: module fixtures too)."""
    if room_of(request.path) in RELAXED:
        yield
    else:
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            yield


def pytest_runtest_teardown(item, nextitem):
    """Programs are dropped where they map much memory: with 65,530 maps Linux lets a process have no more."""
    count = item.config.stash[TESTS_RUN] = item.config.stash.get(TESTS_RUN, 0) + 1
    if count % 20 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def x64():
    """float64 for one test."""
    with jax.enable_x64(True):
        yield
