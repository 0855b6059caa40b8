"""Training step of configs/vp_cifar.py, the published network, on random images: time to compile, time of a step."""

import dataclasses
import sys
import time
from pathlib import Path

import jax
import numpy as np
from common import arguments, machine

sys.path.insert(0, str(Path(__file__).parents[1] / "configs"))
import vp_cifar  # noqa: E402

from score_sde.config import build  # noqa: E402
from score_sde.training import loop, mesh, state  # noqa: E402

if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="images per step (published: 128)")
    args = parser.parse_args()
    mesh.use_host_devices((args.batch,))
    run = build(vp_cifar.get_config())
    options = dataclasses.replace(run.training, batch_size=args.batch)
    devices = mesh.data_mesh()
    whole, sliced = mesh.replicated(devices), mesh.batch_sharding(devices, axis=1)
    step = state.make_step(run.experiment.loss, loop._optimizer(options), options.ema_rate)
    dispatch = state.make_dispatch(step, state_sharding=whole, batch_sharding=sliced)
    s = jax.jit(loop.initial_state(run.experiment, options, 0), out_shardings=whole)()
    x = np.random.default_rng(0).integers(0, 256, (1, args.batch, 32, 32, 3)).astype(np.uint8)
    x = jax.device_put(x, sliced)
    began = time.perf_counter()
    s, _ = jax.block_until_ready(dispatch(s, x))
    first = time.perf_counter() - began
    times = []
    for _ in range(3):
        began = time.perf_counter()
        s, _ = jax.block_until_ready(dispatch(s, x))
        times.append(time.perf_counter() - began)
    print(f"first step with compilation {first:.0f} s; step of {args.batch} images {min(times):.1f} s, "
          f"{args.batch / min(times):.2f} images/s")  # fmt: skip
    print(f"machine: {machine()}")
