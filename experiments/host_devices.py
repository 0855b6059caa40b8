"""Training step of configs/vp_digits.py on a CPU with one device and with several: ratio of times, in turns."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

from common import arguments, machine

MEASURE = """
import sys, time
sys.path.insert(0, "experiments")
import jax
from common import config_of, training_step
from score_sde.config import build
from score_sde.models.cpu import set_up_cpu
run = build(config_of("vp_digits"))
set_up_cpu((run.training.batch_size,), int(sys.argv[1]), onednn=False)
state, dispatch, sharding = training_step(run, run.training)
x = jax.device_put({"x": run.experiment.load("train").x[None, :run.training.batch_size]}, sharding)
state, _ = jax.block_until_ready(dispatch(state, x))
times = []
for _ in range(5):
    t = time.perf_counter()
    for _ in range(20):
        state, metrics = dispatch(state, x)
    jax.block_until_ready(metrics)
    times.append((time.perf_counter() - t) / 20)
print(min(times))
"""


def step_seconds(devices: int) -> float:
    """Seconds per step with this many CPU devices, in a fresh process."""
    command = [sys.executable, "-c", MEASURE, str(devices)]
    out = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=True, text=True).stdout
    return float(out)


if __name__ == "__main__":
    arguments(__doc__).parse_args()
    several = min(len(os.sched_getaffinity(0)), 8)
    pairs = [(step_seconds(1), step_seconds(several)) for _ in range(3)]
    for one, many in pairs:
        print(f"1 device {one * 1e3:.1f} ms, {several} devices {many * 1e3:.1f} ms, ratio {one / many:.2f}")
    print(f"median ratio {statistics.median(a / b for a, b in pairs):.2f}")
    print(f"machine: {machine()}")
