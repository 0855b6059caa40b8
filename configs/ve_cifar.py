r"""VE SDE on CIFAR-10 with the published NCSN++ (continuous), 62,758,915 parameters.

python -m score_sde.main --config=configs/ve_cifar.py --mode=train

Published with these settings: FID 2.38, inception score 9.83, by predictor and corrector in 2,000 evaluations (Song et
al. 2021, table 3 and README of their code; 0.95M steps in the paper, 1.3M in the code).  Not retrained here.

The network sees images in [0, 1] with noise of up to sigma = 50 and predicts the score.
"""

from vp_cifar import get_config as vp_cifar

from score_sde.config import use_preset


def get_config():
    c = vp_cifar()
    c.data.range = (0.0, 1.0)
    c.sde.name, c.sde.beta_min, c.sde.beta_max = "ve", None, None
    c.sde.sigma_min, c.sde.sigma_max = 0.01, 50.0
    c.model.fir_kernel, c.model.progressive_input = (1, 3, 3, 1), "residual"
    c.model.embedding_type, c.model.fourier_scale = "fourier", 16.0
    c.model.center_input, c.model.scale_by_sigma = True, True
    c.objective.prediction = "score"
    c.training.ema_rate = 0.999
    use_preset(c, "song_ve")
    return c
