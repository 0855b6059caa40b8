"""Committed results still belong to the code: the EMA weights load into the networks of their configs."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from score_sde.config import build

ROOT = Path(__file__).parents[1]
KEPT = sorted(p.name.removesuffix("_ema.npz") for p in (ROOT / "experiments" / "results").glob("*_ema.npz"))


@pytest.mark.parametrize("name", KEPT)
def test_the_committed_weights_fit_the_network_of_their_config(monkeypatch, name):
    monkeypatch.syspath_prepend(str(ROOT / "configs"))
    run = build(runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]())
    shapes = jax.eval_shape(run.experiment.init, jax.random.key(0))
    expected = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }
    with np.load(ROOT / "experiments" / "results" / f"{name}_ema.npz", allow_pickle=False) as weights:
        assert {name: weights[name].shape for name in weights.files} == expected
        assert all(np.isfinite(weights[name]).all() for name in weights.files)
