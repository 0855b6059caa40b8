"""What the tests of weights share: configs of small networks, predictions, runs as they were written."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.config import build, get_config
from score_sde.training.checkpoints import Checkpoints
from score_sde.training.loop import abstract_state

CONFIG = """\
from score_sde.config import base_config, use_preset


def get_config():
    c = base_config()
    c.data.name, c.data.size, c.data.channels = "images", {size}, {channels}
    if {ve}:
        c.sde.name, c.sde.sigma_min, c.sde.sigma_max = "ve", 0.01, 348.0
        c.model.embedding_type, c.model.scale_by_sigma, c.model.center_input = "fourier", True, True
        c.objective.prediction, c.data.range = "score", (0.0, 1.0)
        use_preset(c, "song_ve")
    for name, value in {fields}.items():
        c.model[name] = value
    c.training.batch_size = c.sampling.batch_size = c.sampling.num_samples = c.eval.batch_size = 4
    return c
"""


def write_config(path, fields, *, ve=False, size=8, channels=3):
    """A config file for a small network."""
    path.write_text(CONFIG.format(size=size, channels=channels, fields=fields, ve=ve))
    return path


@partial(jax.jit, static_argnums=0)
def _apply(net, params, x, label, classes):
    return net.apply({"params": params}, x, label, classes)


def predict(net, params, x, label, classes=None):
    """The network's output for images that share a label; compiled once per network."""
    classes = None if classes is None else jnp.asarray(classes)
    return np.asarray(_apply(net, params, jnp.asarray(x), jnp.full(len(x), label, jnp.float32), classes))


def distance(got, want):
    """Largest difference over the largest value."""
    return np.abs(got - want).max() / np.abs(want).max()


def restored(workdir):
    """(objects of its config, newest state) of a run."""
    run = build(get_config(str(workdir / "config.json")))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return run, checkpoints.restore(abstract_state(run.experiment, run.training, run.seed))
