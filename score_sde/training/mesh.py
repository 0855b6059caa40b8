"""Devices: one mesh with a `data` axis, of size 1 on one device.  The parallel path is the only path."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


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
