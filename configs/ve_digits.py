r"""VE SDE on 8x8 digits with a small DDPM++ and EDM's preconditioning.

python -m score_sde.main --config=configs/ve_digits.py --mode=train
2 CPU cores (Intel Xeon, JAX 0.12.0.1): test 1.862 +- 0.014 bits/dim (17 grey levels).
"""

from vp_digits import get_config as vp_digits


def get_config():
    c = vp_digits()
    c.sde.name, c.sde.beta_min, c.sde.beta_max = "ve", None, None
    c.sde.sigma_min, c.sde.sigma_max = 0.01, 10.0  # the largest distance of two digits is 13
    c.objective.prediction, c.objective.sigma_data = "edm", 0.75
    return c
