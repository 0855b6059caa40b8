"""Training step of configs/vp_digits.py on a CPU with one device and with several: ratio of times, in turns."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

from common import arguments, machine

MEASURE = """
import sys, time
sys.path.insert(0, "configs")
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import vp_digits
from score_sde.config import build
from score_sde.training import loop, mesh, state
run = build(vp_digits.get_config())
m = mesh.data_mesh()
whole, sliced = mesh.replicated(m), mesh.batch_sharding(m, axis=1)
step = state.make_step(run.experiment.loss, loop._optimizer(run.training), run.training.ema_rate)
dispatch = state.make_dispatch(step, state_sharding=whole, batch_sharding=sliced)
s = jax.jit(loop.initial_state(run.experiment, run.training, 0), out_shardings=whole)()
x = jax.device_put(run.experiment.load("train").x[None, :run.training.batch_size], sliced)
s, _ = jax.block_until_ready(dispatch(s, x))
times = []
for _ in range(5):
    t = time.perf_counter()
    for _ in range(20):
        s, metrics = dispatch(s, x)
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
