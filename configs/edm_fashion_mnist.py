r"""EDM on Fashion-MNIST with a small DDPM++, sized for two CPU cores.

python -m score_sde.main --config=configs/edm_fashion_mnist.py --mode=train --config.data.dir=FOLDER_OF_THE_IDX_FILES

700 steps took 21 min on 2 busy cores (Intel Xeon, JAX 0.12.0.1); its samples are
experiments/results/edm_fashion_mnist.png.
"""

from vp_fashion_mnist import get_config as vp_fashion_mnist

from score_sde.config import use_preset


def get_config():
    c = vp_fashion_mnist()
    c.sde.name, c.sde.beta_min, c.sde.beta_max = "edm", None, None
    c.objective.prediction, c.objective.sigma_data = "edm", 0.7  # of grey levels in [-1, 1]
    c.objective.weighting, c.objective.times = "edm", "log_normal"
    c.training.steps, c.training.learning_rate, c.training.warmup = 700, 2e-3, 200
    use_preset(c, "edm")
    return c
