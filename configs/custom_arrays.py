r"""Your own vectors: an MLP.  Copy this file and change what the comments name.

python -m score_sde.main --config=configs/custom_arrays.py --mode=train --config.data.dir=FILE.npy

FILE.npy is an array (N, D), N examples of D numbers; every tenth is kept for testing.  A .npz with "x" does too (and
"labels"), as does a folder with train.npy and test.npy; images (N, H, W, C) go with the network of custom_images.py.
The first lines on the screen say what was found: bring numbers to a standard deviation of about 1 before you save them.
"""

from score_sde.config import base_config


def get_config():
    c = base_config()
    c.data.name = "arrays"
    c.data.dir = "data/arrays.npy"  # the file or folder
    # c.data.levels = 1000  # whole numbers 0..999 (256 is what bytes have); real numbers have none
    c.sde.name = "vp"
    c.model.name, c.model.features = "mlp", (256, 256, 256)  # wider for more dimensions
    c.objective.times = "stratified"
    c.training.batch_size, c.training.steps, c.training.steps_per_dispatch = 256, 10_000, 10
    c.training.learning_rate, c.training.warmup, c.training.ema_rate = 1e-3, 200, 0.999
    c.training.log_every, c.training.checkpoint_every, c.training.snapshot_every = 500, 2000, 5000
    c.training.final_eval = True
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size = 500, 1000, 1000
    c.eval.divergence, c.eval.batch_size, c.eval.num_examples = "exact", 500, 1000  # hutchinson beyond 100 dimensions
    return c
