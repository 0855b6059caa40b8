r"""VP SDE on CIFAR-10 with a small DDPM++, sized for two CPU cores: to try things in colour.

python -m score_sde.main --config=configs/vp_cifar_small.py --mode=train

17 min for 1,000 steps on 2 cores with other work on them, at 73 images/s in quiet stretches (Intel Xeon, JAX 0.12.0.1);
far too few for good samples, enough to colour grey images.  The kept weights are of the images re-encoded as JPEG, from
a folder: --config.data.name=images --config.data.channels=3 --config.data.size=32 --config.data.dir=FOLDER.
"""

from score_sde.config import base_config


def get_config():
    c = base_config()
    c.data.name, c.data.flip = "cifar10", True
    c.sde.beta_min, c.sde.beta_max = 0.1, 20.0
    c.model.nf, c.model.ch_mult, c.model.num_res_blocks = 16, (1, 2, 4), 1
    c.model.attn_resolutions, c.model.dropout = (8,), 0.0
    c.objective.times = "stratified"
    c.training.batch_size, c.training.steps = 64, 1000
    c.training.learning_rate, c.training.warmup, c.training.ema_rate = 2e-3, 200, 0.999
    c.training.log_every, c.training.checkpoint_every, c.training.snapshot_every = 50, 250, 1000
    c.sampling.sampler, c.sampling.grid = "sde_dpm_solver_pp", "log_snr"
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size = 100, 64, 64
    c.eval.batch_size, c.eval.num_examples = 50, 500
    c.eval.rtol = c.eval.atol = 1e-3
    return c
