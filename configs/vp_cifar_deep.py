r"""VP SDE on CIFAR-10 with the published deep DDPM++ (continuous), 106,632,579 parameters.

python -m score_sde.main --config=configs/vp_cifar_deep.py --mode=train

Published with these settings: 3.13 bits/dim, FID 2.41 by Euler-Maruyama and 3.08 by the probability flow (Song et al.
2021, tables 2 and 3; 0.95M steps).  Not retrained here.
"""

from vp_cifar import get_config as vp_cifar


def get_config():
    c = vp_cifar()
    c.model.num_res_blocks, c.training.steps = 8, 950_000
    return c
