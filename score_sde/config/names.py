"""What the names in a config stand for; those of data sets are in `datasets`, of presets in `presets`."""

from functools import partial
from typing import Any

from score_sde import likelihood, models, predictions, sampling, sdes
from score_sde.evaluation import guided, measured
from score_sde.objectives import times, weightings
from score_sde.sampling import grids


def _diffrax_solver(name: str) -> Any:
    import diffrax

    return getattr(diffrax, name)()


SDES = {
    "ve": sdes.VE,
    "vp": sdes.VP,
    "subvp": sdes.SubVP,
    "cosine_vp": sdes.CosineVP,
    "edm": sdes.EDM,
    "rectified_flow": sdes.RectifiedFlow,
}
CLASSIFIERS = {"classifier": models.Classifier, "mlp_classifier": models.MLPClassifier}  # of noised data
MODELS = {"unet": models.UNet, "mlp": models.MLP, **CLASSIFIERS}
PREDICTIONS = {
    "score": predictions.Score,
    "noise": predictions.Noise,
    "data": predictions.Data,
    "velocity": predictions.Velocity,
    "v": predictions.V,
    "edm": predictions.EDM,
}
WEIGHTINGS = {
    "sigma_squared": weightings.SigmaSquared,
    "likelihood": weightings.Likelihood,
    "edm": weightings.EDM,
    "output": weightings.Output,
}
TIMES = {
    "uniform": times.Uniform,
    "stratified": times.Stratified,
    "log_snr": times.LogSNR,
    "log_normal": times.LogNormal,
    "logit_normal": times.LogitNormal,
}
SAMPLERS = {
    "euler_maruyama": sampling.EulerMaruyama,
    "reverse_diffusion": sampling.ReverseDiffusion,
    "ancestral": sampling.Ancestral,
    "ddim": sampling.DDIM,
    "sde_dpm_solver_pp": sampling.SDEDPMSolverPP,
    "edm_stochastic": sampling.EDMStochastic,
    "probability_flow_euler": sampling.ProbabilityFlowEuler,
    "runge_kutta": sampling.RungeKutta,
    "heun": sampling.Heun,
    "dpm_solver": sampling.DPMSolver,
    "dpm_solver_pp": sampling.DPMSolverPP,
    "dpm_solver_pp_2s": sampling.DPMSolverPP2S,
    "deis": sampling.DEIS,
    "unipc": sampling.UniPC,
    "sa_solver": sampling.SASolver,
    "ipndm": sampling.IPNDM,
}
# Beside them: no predictor at all (with a corrector), and solvers of diffrax that choose their steps.
OTHER_SAMPLERS = {
    "none": "No predictor: the corrector alone samples.",
    "adaptive_ode": "Probability flow by an adaptive Runge-Kutta solver; `rtol` and `atol` in place of `steps`.",
    "adaptive_sde": "Reverse SDE by an adaptive solver of strong order 1.5; `rtol` and `atol` in place of `steps`.",
}
CORRECTORS = {"langevin": sampling.Langevin, "annealed_langevin": sampling.AnnealedLangevin}
GRIDS = {"uniform": grids.uniform, "quadratic": grids.quadratic, "log_snr": grids.log_snr, "edm": grids.edm}
GUIDES = {"classifier_free": guided.by_label, "classifier": guided.by_classifier, "autoguidance": guided.by_weaker}
OPERATORS, METHODS = measured.OPERATORS, measured.METHODS
BOUNDS = ("continuous", "discrete", "none")
CLIPS = {"none": None, "static": sampling.Clipped, "dynamic": sampling.DynamicThreshold}
# Settings whose plain names mean something else in the section.
SAMPLER_KEYS = {"corrector": "unipc_corrector"}
CORRECTOR_KEYS = {"steps": "corrector_steps", "levels": "corrector_levels"}

# Makers, since diffrax is imported late.
SOLVERS = {
    "cash_karp": likelihood.cash_karp,
    **{name.lower(): partial(_diffrax_solver, name) for name in ("Tsit5", "Dopri5", "Dopri8", "Bosh3")},
}
DIVERGENCES = {"hutchinson": likelihood.Hutchinson, "exact": likelihood.ExactDivergence}
