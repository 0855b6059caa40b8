"""Devices: one mesh with a `data` axis, of size 1 on one device.  The parallel path is the only path."""

import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def use_host_devices(batch_sizes: tuple[int, ...], wanted: int = 0) -> None:
    """On a CPU, split the cores into several devices: call before JAX touches a device.

    XLA runs many small operations one after the other on a device, so two devices on two cores train faster than one
    (`experiments/host_devices.py` measures it).  The count is the largest power of two that is at most the cores and 8
    and divides the batches, or `wanted` where that is not 0.  JAX_NUM_CPU_DEVICES and XLA_FLAGS in the environment win.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    count = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
    fitting = [n for n in (8, 4, 2, 1) if n <= count and all(size % n == 0 for size in batch_sizes)]
    jax.config.update("jax_num_cpu_devices", wanted or fitting[0])


def data_mesh() -> Mesh:
    """All devices along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Arrays split along `axis` over the devices."""
    return NamedSharding(mesh, P(*[None] * axis, "data"))


def per_device(mesh: Mesh, fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun(params, *arrays)` compiled so that each device runs it on its own slice of the arrays (B, ...).

    Without this, a loop whose length depends on the data would synchronise the devices at every iteration.
    """
    mapped = jax.jit(
        lambda params, *arrays: jax.shard_map(
            fun, mesh=mesh, in_specs=(P(), *[P("data")] * len(arrays)), out_specs=P("data"), check_vma=False
        )(params, *arrays)
    )

    def call(params, *arrays):
        return mapped(params, *jax.device_put(arrays, batch_sharding(mesh)))

    return call
