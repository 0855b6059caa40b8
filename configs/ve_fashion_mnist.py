r"""VE SDE on Fashion-MNIST with a small NCSN++, sized for two CPU cores.

python -m score_sde.main --config=configs/ve_fashion_mnist.py --mode=train --config.data.dir=FOLDER_OF_THE_IDX_FILES

700 steps took 16 min on 2 shared cores (Intel Xeon, JAX 0.12.0.1); the 64 samples of --mode=sample, at 401 NFE, are
experiments/results/ve_fashion_mnist.png.
"""

from vp_fashion_mnist import get_config as vp_fashion_mnist


def get_config():
    c = vp_fashion_mnist()
    c.data.range = (0.0, 1.0)
    c.sde.name, c.sde.beta_min, c.sde.beta_max = "ve", None, None
    c.sde.sigma_min, c.sde.sigma_max = 0.01, 20.0  # about the largest distance of two images, 21
    c.model.fir_kernel, c.model.progressive_input = (1, 3, 3, 1), "residual"
    c.model.embedding_type, c.model.fourier_scale = "fourier", 16.0
    c.model.center_input, c.model.scale_by_sigma = True, True
    c.objective.prediction = "score"
    c.training.steps, c.training.learning_rate, c.training.warmup = 700, 2e-3, 200
    c.sampling.sampler, c.sampling.grid, c.sampling.steps = "reverse_diffusion", "uniform", 200
    c.sampling.corrector, c.sampling.snr, c.sampling.corrector_first = "langevin", 0.16, True
    return c
