r"""VP SDE on CIFAR-10 with the published DDPM++ (continuous), 61,804,419 parameters.

python -m score_sde.main --config=configs/vp_cifar.py --mode=train

Published with these settings: 3.16 bits/dim, FID 2.55 (Song et al. 2021, table 3; 1.3M steps).  Not retrained here.
On 2 CPU cores (AMD EPYC, JAX 0.12.0.1) a step of 8 images takes 2.9 s (2.7 images/s) and compiles in 77 s
(`experiments/cifar_step.py`): train it on a GPU.
"""

from score_sde.config import base_config


def get_config():
    c = base_config()
    c.data.name, c.data.flip, c.data.range = "cifar10", True, (-1.0, 1.0)
    c.sde.name, c.sde.beta_min, c.sde.beta_max = "vp", 0.1, 20.0
    c.model.name, c.model.nf, c.model.ch_mult, c.model.num_res_blocks = "unet", 128, (1, 2, 2, 2), 4
    c.model.attn_resolutions, c.model.dropout = (16,), 0.1
    c.objective.prediction, c.objective.weighting, c.objective.times = "noise", "sigma_squared", "uniform"
    c.training.batch_size, c.training.steps = 128, 1_300_000
    c.training.learning_rate, c.training.warmup, c.training.clip_norm = 2e-4, 5000, 1.0
    c.training.ema_rate = 0.9999
    c.training.cpu_devices = 1  # several would each update all these parameters
    c.sampling.sampler, c.sampling.steps, c.sampling.denoise = "euler_maruyama", 1000, True
    return c
