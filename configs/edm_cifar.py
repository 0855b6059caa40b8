r"""EDM on CIFAR-10: the preconditioning, loss and sampler of Karras et al. around DDPM++, 55,732,739 parameters.

python -m score_sde.main --config=configs/edm_cifar.py --mode=train

Published for unconditional samples in 35 evaluations: FID 1.97, with augmentation on top of these settings (Karras et
al. 2022, table 2, configuration F; 200M images).  Not retrained here.
"""

from vp_cifar import get_config as vp_cifar

from score_sde.config import use_preset


def get_config():
    c = vp_cifar()
    c.sde.name, c.sde.beta_min, c.sde.beta_max = "edm", None, None
    c.model.ch_mult, c.model.dropout = (2, 2, 2), 0.13
    c.objective.prediction, c.objective.sigma_data = "edm", 0.5
    c.objective.weighting, c.objective.times = "edm", "log_normal"
    c.training.batch_size, c.training.steps = 512, 390_625
    c.training.learning_rate, c.training.warmup, c.training.clip_norm = 1e-3, 19_531, 0.0
    c.training.ema_rate = 0.99929  # halves in 500,000 images
    use_preset(c, "edm")
    return c
