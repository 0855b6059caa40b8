r"""VE on CIFAR-10 with the published NCSN++ of 1,000 discrete noise levels, 62,693,251 parameters.

python -m score_sde.weights import checkpoint_N.pth runs/ncsnpp_discrete --config=configs/ve_cifar_discrete.py
python -m score_sde.main --config=configs/ve_cifar_discrete.py --mode=train

Published: FID 2.45, inception score 9.73, by predictor and corrector in 2,000 evaluations (README and config of their
code).  Not retrained here.
The network is told the number of the nearest level, and knows none between; that of configs/ve_cifar.py is told log
sigma itself, and is the one to train.
"""

from ve_cifar import get_config as ve_cifar


def get_config():
    c = ve_cifar()
    c.model.embedding_type, c.model.fourier_scale = "positional", None
    c.model.sigma_levels = (50.0, 0.01, 1000.0)
    return c
