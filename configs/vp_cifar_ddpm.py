r"""VP SDE on CIFAR-10 with the network of DDPM as Song et al. train it, 35,218,947 parameters.

python -m score_sde.main --config=configs/vp_cifar_ddpm.py --mode=train

Published with these settings: 3.21 bits/dim and FID 3.69, by the probability flow; with --config.sde.name=subvp 3.05
bits/dim and FID 3.56 (Song et al. 2021, table 2; 1.3M steps).  Not retrained here.
On its way up this network attends once, that of Ho et al. (configs/ddpm_cifar.py) after each block of 16x16 pixels.
"""

from vp_cifar import get_config as vp_cifar


def get_config():
    c = vp_cifar()
    c.model.resblock_type, c.model.skip_rescale, c.model.num_res_blocks = "ddpm", False, 2
    return c
