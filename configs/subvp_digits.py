r"""Sub-VP SDE on 8x8 digits with a small DDPM++.

python -m score_sde.main --config=configs/subvp_digits.py --mode=train
"""

from vp_digits import get_config as vp_digits


def get_config():
    c = vp_digits()
    c.sde.name = "subvp"
    return c
