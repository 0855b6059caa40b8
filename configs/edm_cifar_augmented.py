r"""EDM on CIFAR-10 with its augmentation, of which the network is told by 9 labels: 55,733,891 parameters.

python -m score_sde.main --config=configs/edm_cifar_augmented.py --mode=train

Published for unconditional samples in 35 evaluations: FID 1.97 (Karras et al. 2022, table 2, configuration F; 200M
images).  Not retrained here.
"""

from edm_cifar import get_config as edm_cifar


def get_config():
    c = edm_cifar()
    c.model.augment_dim, c.objective.augment_probability = 9, 0.12
    c.data.flip = False  # the augmentation flips, and says so
    return c
