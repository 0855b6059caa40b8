r"""VP SDE on 8x8 digits, trained for likelihood: g^2 weighting with importance-sampled times.

python -m score_sde.main --config=configs/vp_digits_likelihood.py --mode=train

The same as vp_digits.py but for the law of the times.
"""

from vp_digits import get_config as vp_digits


def get_config():
    c = vp_digits()
    c.objective.times, c.objective.weighting = "log_snr", "sigma_squared"
    return c
