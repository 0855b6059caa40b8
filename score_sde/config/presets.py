"""What papers sample with: values of the config's sampling section, by name.

`--config.sampling.preset=NAME` sets the whole sampler; flags beside it win.  In a config file, call
`score_sde.config.use_preset(config, NAME)`.

Norms of the Langevin corrector are per sample here, where the published code takes means over the batch
(`batch_norm`).  A published grid of N times ends with a step to the data: its N - 1 others are `steps` here, and that
one is `denoise`, the posterior mean.
"""

# name -> (what it is, values)
PRESETS = {
    "song_ve": (
        "predictor-corrector of Song et al. 2021 for VE: reverse diffusion, Langevin with snr 0.16, 1000 steps",
        dict(
            sampler="reverse_diffusion", published=True, corrector="langevin", snr=0.16, corrector_first=True,
            steps=999, t_end=1e-5,
        ),
    ),
    "song_vp": (
        "Euler-Maruyama of Song et al. 2021 for VP and sub-VP, 1000 steps",
        dict(sampler="euler_maruyama", steps=999, t_end=1e-3),
    ),
    "song_ode": (
        "probability flow of Song et al. 2021: adaptive Runge-Kutta, tolerance 1e-5",
        dict(sampler="adaptive_ode", rtol=1e-5, atol=1e-5),
    ),
    "ddpm": (
        "ancestral sampling of Ho et al. 2020 with the variance that Song et al. 2021 use, 1000 steps",
        dict(sampler="ancestral", forward_variance=True, published=True, steps=999, t_end=1e-3),
    ),
    "ncsn": (
        "annealed Langevin of NCSNv2 on CIFAR-10: 232 levels, 5 steps each, snr 0.176",
        dict(sampler="none", corrector="annealed_langevin", snr=0.176, corrector_steps=5, steps=232),
    ),
    "ddim": (
        "DDIM of Song, Meng & Ermon 2021, 50 steps, quadratic grid",
        dict(sampler="ddim", steps=50, grid="quadratic"),
    ),
    "edm": (
        "Heun of Karras et al. 2022 for CIFAR-10: 18 steps, the last to sigma = 0; 35 evaluations",
        dict(sampler="heun", steps=17, grid="edm", grid_rho=7.0),
    ),
    "edm_stochastic": (
        "stochastic sampler of Karras et al. 2022 for ImageNet-64: 256 steps, 511 evaluations",
        dict(
            sampler="edm_stochastic", s_churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003, steps=255, grid="edm",
            grid_rho=7.0,
        ),
    ),
    "dpm_solver_pp": (
        "DPM-Solver++(2M) of Lu et al. 2022, 20 steps in log-SNR",
        dict(sampler="dpm_solver_pp", order=2, steps=20, grid="log_snr"),
    ),
    "unipc": (
        "UniPC-3 of Zhao et al. 2023, 10 steps in log-SNR",
        dict(sampler="unipc", order=3, published=True, steps=10, grid="log_snr"),
    ),
    "restore": (
        "what --mode=restore takes unless told otherwise: steps of q(x' | x, D(x)), 100 in log-SNR",
        dict(sampler="ddim", eta=1.0, steps=100, grid="log_snr"),
    ),
}  # fmt: skip
