r"""DDPM on CIFAR-10: the network (35,746,307 parameters) and the settings of Ho et al., in continuous time.

python -m score_sde.main --config=configs/ddpm_cifar.py --mode=train

Published for the discrete chain, whose limit this VP SDE is: FID 3.17, inception score 9.46 by ancestral sampling in
1,000 steps (Ho et al. 2020, table 1; 0.8M steps); in continuous time, for a network with less attention on the way up:
3.21 bits/dim, FID 3.69 by the probability flow (Song et al. 2021, table 2).  Not retrained here.
"""

from vp_cifar import get_config as vp_cifar

from score_sde.config import use_preset


def get_config():
    c = vp_cifar()
    c.model.resblock_type, c.model.skip_rescale, c.model.num_res_blocks = "ddpm", False, 2
    c.model.attend_each_up = True
    c.training.steps = 800_000
    use_preset(c, "ddpm")
    return c
