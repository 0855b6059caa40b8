"""Training step of configs/vp_cifar.py, the published network, on random images: time to compile, time of a step."""

import dataclasses
import time

import jax
import numpy as np
from common import arguments, config_of, machine, training_step

from score_sde.config import build
from score_sde.models.cpu import set_up_cpu

if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="images per step (published: 128)")
    args = parser.parse_args()
    config = config_of("vp_cifar")
    set_up_cpu((args.batch,), config.training.cpu_devices)
    run = build(config)
    began = time.perf_counter()
    state, dispatch, sharding = training_step(run, dataclasses.replace(run.training, batch_size=args.batch))
    jax.block_until_ready(state)
    initial = time.perf_counter() - began
    x = np.random.default_rng(0).integers(0, 256, (1, args.batch, 32, 32, 3)).astype(np.uint8)
    x = jax.device_put({"x": x}, sharding)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(dispatch(state, x))
        times.append(time.perf_counter() - began)
    step = min(times[1:])
    print(f"initial state {initial:.0f} s; compilation of the step {times[0] - step:.0f} s; "
          f"step of {args.batch} images {step:.1f} s, {args.batch / step:.2f} images/s")  # fmt: skip
    print(f"machine: {machine()}")
