"""What a process sets up before XLA starts on a CPU."""

import os
import platform
import subprocess
import sys

import pytest

from score_sde.models.cpu import has_onednn

GLIBC = platform.libc_ver()[0] == "glibc"


def out_of(program, **environment):
    """What a fresh process prints."""
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, "-c", program], env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


CONVOLVE = """
from score_sde.models.cpu import set_up_cpu
set_up_cpu((8,))
import jax, jax.numpy as jnp
from score_sde.models.cpu import convolve
arrays = jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
program = jax.jit(lambda x, k: convolve(x, k, (1, 1), "SAME")).lower(*arrays).compile()
print("__onednn$convolution" in program.as_text(), float(program(*arrays)[0, 4, 4, 0]))
"""


@pytest.mark.skipif(not has_onednn(), reason="this jaxlib is not known to use oneDNN")
def test_convolutions_are_those_of_onednn_unless_the_environment_says_otherwise():
    assert out_of(CONVOLVE).split() == ["True", "288.0"]
    off = "--xla_cpu_experimental_onednn_custom_call=false"
    assert out_of(CONVOLVE, XLA_FLAGS=off).split() == ["False", "288.0"]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="XLA has oneDNN on x86 alone")
def test_a_jaxlib_that_may_not_know_the_flags_is_not_given_them():
    program = (
        "import os, jax\nfrom importlib import metadata\nmetadata.version = lambda name: '{version}'\n"
        "from score_sde.models.cpu import set_up_cpu\nset_up_cpu((8,))\nprint('XLA_FLAGS' in os.environ)"
    )
    for version, given in (
        ("0.9.2", "False"),
        ("0.10.2", "False"),
        ("0.13.0", "False"),
        ("1.10.0", "False"),
        ("0.12.0.1", "True"),
    ):
        assert out_of(program.format(version=version)).strip() == given


@pytest.mark.parametrize("size, wanted, count", [(6, 0, 2), (7, 0, 1), (6, 3, 3)])
def test_devices_divide_the_batches_or_are_as_many_as_wanted(size, wanted, count):
    program = (
        f"import os\nos.sched_getaffinity = lambda pid: range(5)\nfrom score_sde.models.cpu import set_up_cpu\n"
        f"set_up_cpu(({size}, 12), {wanted})\nimport jax\nprint(jax.device_count())"
    )
    assert int(out_of(program)) == count
    assert int(out_of(program, JAX_NUM_CPU_DEVICES="4")) == 4


@pytest.mark.skipif(not GLIBC, reason="malloc is not glibc's")
def test_a_program_called_again_gets_its_old_memory():
    """Page faults of calls that each return 32 MB: 8,000 a call where memory goes back to the system."""
    program = """
import resource
{set_up}
import jax, jax.numpy as jnp
x, f = jnp.ones(2**23), jax.jit(lambda x: x + 1)
for _ in range(50):
    jax.block_until_ready(f(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    jax.block_until_ready(f(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    set_up = "from score_sde.models.cpu import set_up_cpu; set_up_cpu((8,))"
    assert 4 * int(out_of(program.format(set_up=set_up))) < int(out_of(program.format(set_up="")))
