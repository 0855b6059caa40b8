r"""Sub-VP SDE on CIFAR-10 with the published DDPM++ (continuous), 61,804,419 parameters.

python -m score_sde.main --config=configs/subvp_cifar.py --mode=train

Published with these settings: 3.02 bits/dim, FID 2.61 (Song et al. 2021, table 3; 1.3M steps).  Not retrained here.
On 2 CPU cores (AMD EPYC, JAX 0.12.0.1) a step of 8 images takes 2.9 s (2.7 images/s) and compiles in 77 s
(`experiments/cifar_step.py`): train it on a GPU.
"""

from vp_cifar import get_config as vp_cifar


def get_config():
    c = vp_cifar()
    c.sde.name = "subvp"
    return c
