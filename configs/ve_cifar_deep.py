r"""VE SDE on CIFAR-10 with the published deep NCSN++ (continuous), 107,587,075 parameters.

python -m score_sde.main --config=configs/ve_cifar_deep.py --mode=train

Published with these settings: FID 2.20, inception score 9.89, by predictor and corrector in 2,000 evaluations (Song et
al. 2021, table 3; 0.95M steps).  Not retrained here.
"""

from ve_cifar import get_config as ve_cifar


def get_config():
    c = ve_cifar()
    c.model.num_res_blocks, c.training.steps = 8, 950_000
    return c
