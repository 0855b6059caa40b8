"""Committed results still belong to the code: the EMA weights load into the network of their config."""

import sys
from pathlib import Path

import jax
import numpy as np

from score_sde.config import build

ROOT = Path(__file__).parents[1]


def test_the_committed_weights_fit_the_network_of_vp_digits(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "configs"))
    import vp_digits

    run = build(vp_digits.get_config())
    shapes = jax.eval_shape(run.experiment.init, jax.random.key(0))
    expected = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }
    with np.load(ROOT / "experiments" / "results" / "vp_digits_ema.npz", allow_pickle=False) as weights:
        assert {name: weights[name].shape for name in weights.files} == expected
        assert all(np.isfinite(weights[name]).all() for name in weights.files)
    sys.modules.pop("vp_digits")
