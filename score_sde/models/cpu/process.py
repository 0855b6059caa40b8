"""What a process sets up before XLA starts on a CPU: oneDNN, memory that malloc keeps, devices."""

import ctypes
import os
import platform
from importlib import metadata

import jax

# oneDNN for convolutions and matrix products, and for nothing else: XLA's own reductions are faster without the second.
ONEDNN = "--xla_cpu_experimental_onednn_custom_call=true --xla_cpu_experimental_ynn_fusion_type=reduce"
ONEDNN_IN = ("0.12",)  # jaxlib's versions that do so: 0.10 takes the flags to no effect, and XLA ends at unknown ones
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def set_up_cpu(batch_sizes: tuple[int, ...], wanted: int = 0, onednn: bool = True) -> None:
    """What makes XLA fast on a CPU, for this process and those it starts: call before JAX touches a device.

    Convolutions and matrix products by oneDNN, unless `onednn` is False (it is slower for images of fewer than 16x16
    pixels), memory that malloc keeps, and the cores split into several devices: XLA runs many small operations one
    after the other on a device, so two devices on two cores may train a small network faster than one
    (`experiments/host_devices.py` measures it).  A large one they train slower, since each of them updates all
    parameters.  Their count is `wanted`, or where that is 0 the largest power of two that is at most the cores and 8
    and divides the batches.  JAX_NUM_CPU_DEVICES and what XLA_FLAGS says in the environment win.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if onednn and has_onednn() and ONEDNN not in given:
        os.environ["XLA_FLAGS"] = f"{ONEDNN} {given}".strip()  # of two settings of a flag the later one holds
    _keep_memory()
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in given:
        return
    count = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
    fitting = [n for n in (8, 4, 2, 1) if n <= count and all(size % n == 0 for size in batch_sizes)]
    jax.config.update("jax_num_cpu_devices", wanted or fitting[0])


def has_onednn() -> bool:
    """Whether this jaxlib is known to use oneDNN when asked to."""
    major_minor = ".".join(metadata.version("jaxlib").split(".")[:2])
    return major_minor in ONEDNN_IN and platform.machine() in ("x86_64", "AMD64")


def _keep_memory() -> None:
    """Freed memory stays with the process: a step asks for as much as the last one gave back.

    Large blocks otherwise go back to the system one by one, and each of their pages is cleared when it comes again, a
    sixth of a training step.  Where malloc is not glibc's, nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
            libc.mallopt(option, value)
