r"""VP SDE on 8x8 digits, trained for likelihood: g^2 weighting with importance-sampled times.

python -m score_sde.main --config=configs/vp_digits_likelihood.py --mode=train
2 CPU cores (Intel Xeon, JAX 0.12.0.1): test 1.924 +- 0.013 bits/dim (17 grey levels).

The same as vp_digits.py, whose result is 1.958, but for the law of the times.
"""

from vp_digits import get_config as vp_digits


def get_config():
    c = vp_digits()
    c.objective.times, c.objective.weighting = "log_snr", "sigma_squared"
    return c
