"""A resumed run is the run: killed or told to stop, training ends with the bits of an uninterrupted one."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from score_sde.training.checkpoints import Checkpoints
from score_sde.training.loop import abstract_state

CONFIG = """
from score_sde.config import base_config


def get_config():
    c = base_config()
    c.data.name = "swiss_roll"
    c.model.name, c.model.features = "mlp", (32, 32)
    c.training.batch_size, c.training.steps = 16, STEPS
    c.training.warmup, c.training.ema_rate = 10, 0.9
    c.training.log_every, c.training.checkpoint_every, c.training.snapshot_every = 50, 50, 1000000
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size = 2, 16, 16
    return c
"""


def start(tmp_path, name, steps):
    config = tmp_path / "config_file.py"
    config.write_text(CONFIG.replace("STEPS", str(steps)))
    command = [sys.executable, "-m", "score_sde.main", f"--config={config}", f"--workdir={tmp_path / name}"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def saved_steps(workdir):
    return [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]


def wait_for_a_checkpoint(workdir, process, after=0):
    while not any(step > after for step in saved_steps(workdir)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def final_leaves(workdir):
    from score_sde.config import build, get_config

    run = build(get_config(str(workdir / "config.json")))
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore(abstract_state(run.experiment, run.training, run.seed))
    assert int(state.step) == run.training.steps
    return [
        np.asarray(jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(state)
    ]


@pytest.mark.slow
def test_killed_and_terminated_runs_end_with_the_bits_of_an_uninterrupted_one(tmp_path):
    steps = 2000
    finish(start(tmp_path, "whole", steps))
    rng, workdir = random.Random(os.getpid()), tmp_path / "broken"

    process = start(tmp_path, "broken", steps)
    wait_for_a_checkpoint(workdir, process)
    time.sleep(rng.uniform(0, 0.3))
    process.kill()
    process.communicate()
    killed_at = max(saved_steps(workdir))
    assert killed_at < steps, "the run was over before it could be killed: raise `steps`"

    process = start(tmp_path, "broken", steps)
    wait_for_a_checkpoint(workdir, process, after=killed_at)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "SIGTERM: saved at step" in err and f"--workdir={workdir}" in err
    stopped_at = max(saved_steps(workdir))
    assert killed_at < stopped_at < steps

    finish(start(tmp_path, "broken", steps))
    for a, b in zip(final_leaves(tmp_path / "whole"), final_leaves(workdir), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})  # none twice, none lost
    assert lines[-1]["step"] == steps


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_with_130(tmp_path):
    process = start(tmp_path, "run", 1_000_000)
    wait_for_a_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "SIGINT: saved at step" in err
    stopped_at = int(err.split("saved at step ")[1].split()[0])
    assert stopped_at in saved_steps(tmp_path / "run")
