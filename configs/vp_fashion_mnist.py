r"""VP SDE on Fashion-MNIST with a small DDPM++, sized for two CPU cores.

python -m score_sde.main --config=configs/vp_fashion_mnist.py --mode=train

90 min on 2 cores (Intel Xeon, JAX 0.12.0.1): 3.383 +- 0.018 bits/dim on the first 2,000 test images (256 grey levels);
the grid is experiments/results/vp_fashion_mnist.png.  The first 2,150 of those steps averaged the weights at 0.999 from
the start, the rest as `ema_rate` does now, low at first.  The images are downloaded (31 MB) unless
--config.data.dir=FOLDER holds their four IDX files.
"""

from score_sde.config import base_config


def get_config():
    c = base_config()
    c.data.name = "fashion_mnist"
    c.sde.beta_min, c.sde.beta_max = 0.1, 20.0
    c.model.nf, c.model.ch_mult, c.model.num_res_blocks = 16, (1, 2, 4), 2
    c.model.attn_resolutions, c.model.dropout = (7,), 0.0
    c.objective.times = "stratified"
    c.training.batch_size, c.training.steps = 64, 3800
    c.training.learning_rate, c.training.warmup, c.training.ema_rate = 1e-3, 500, 0.999
    c.training.log_every, c.training.checkpoint_every, c.training.snapshot_every = 50, 250, 2000
    c.sampling.sampler, c.sampling.grid = "sde_dpm_solver_pp", "log_snr"
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size = 100, 64, 64
    c.eval.batch_size, c.eval.num_examples = 100, 2000
    c.eval.rtol = c.eval.atol = 1e-3  # against 1e-4: moves a value by 0.0007 bits/dim on average
    return c
