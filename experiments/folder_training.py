"""Trains the published CIFAR-10 network (configs/vp_cifar.py, 61.8M parameters) from a folder of images for some steps.

    python experiments/folder_training.py FOLDER --steps=5 --batch=128

Prints the time to decode the folder (or to map it, the second time), to compile, images/s and peak memory.
"""

import dataclasses
import resource
import statistics
import sys
import time

import jax
from common import arguments, config_of, machine, training_step

from score_sde.config import build
from score_sde.data import batches, describe
from score_sde.models.cpu import set_up_cpu


def peak_gigabytes() -> str:
    """Peak memory of the process, and of each device that counts its own."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    devices = [(d.device_kind, (d.memory_stats() or {}).get("peak_bytes_in_use")) for d in jax.devices()]
    return ", ".join(f"{name} {peak / 1e9:.2f} GB" for name, peak in [("host", host), *devices] if peak)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("folder", help="train/ and test/, or images; subfolders are classes")
    parser.add_argument("--steps", type=int, default=5, help="steps after the first")
    parser.add_argument("--batch", type=int, default=128, help="images per step (published: 128)")
    parser.add_argument("--remat", action="store_true", help="recompute blocks for the gradient: less memory")
    args = parser.parse_args()
    config = config_of("vp_cifar")
    set_up_cpu((args.batch,), config.training.cpu_devices)
    config.data.name, config.data.dir, config.data.channels, config.data.size = "images", args.folder, 3, 32
    config.model.remat = args.remat
    run = build(config)
    options = dataclasses.replace(run.training, batch_size=args.batch)

    began = time.perf_counter()
    source = run.experiment.load("train")
    print(f"images decoded or mapped in {time.perf_counter() - began:.2f} s\n{describe(source)}")
    state, dispatch, sharding = training_step(run, options)
    print(f"parameters: {sum(leaf.size for leaf in jax.tree.leaves(state.params)):,}", flush=True)
    stream = batches(source, args.batch, 0, flip=run.flip, stack=options.steps_per_dispatch)
    times = []
    for n in range(args.steps + 1):
        began = time.perf_counter()
        state, measured = dispatch(state, jax.device_put(next(stream), sharding))
        loss = jax.block_until_ready(measured.loss)
        times.append(time.perf_counter() - began)
        print(f"step {n + 1}: loss {float(loss[-1]):.4f}, {times[-1]:.2f} s", flush=True)
    stream.close()
    step = statistics.median(times[1:])
    print(f"compilation {times[0] - step:.0f} s; step of {args.batch} images {step:.2f} s, {args.batch / step:.2f} "
          f"images/s; peak memory {peak_gigabytes()}")  # fmt: skip
    print(f"machine: {machine()}")
