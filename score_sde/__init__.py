"""Score-based generative modelling through stochastic differential equations, on JAX.

A forward SDE turns data into noise; a score s(x, t) = grad log p_t(x) turns noise into data, by samplers of the
reverse SDE or of the probability flow, whose change of variables gives exact likelihoods.  A score is any function
`score(x, t)` of x (B, *event) and t (B,).
"""

from score_sde import discrete as discrete
from score_sde import objectives as objectives
from score_sde import predictions as predictions
from score_sde.analytic import Gaussian as Gaussian
from score_sde.analytic import GaussianMixture as GaussianMixture
from score_sde.guidance import ConditionalScore as ConditionalScore
from score_sde.guidance import NoiseInterval as NoiseInterval
from score_sde.guidance import Particles as Particles
from score_sde.guidance import Projection as Projection
from score_sde.guidance import RePaint as RePaint
from score_sde.guidance import autoguidance as autoguidance
from score_sde.guidance import classifier_free_guidance as classifier_free_guidance
from score_sde.guidance import classifier_guidance as classifier_guidance
from score_sde.guidance import dps as dps
from score_sde.guidance import moment_matching as moment_matching
from score_sde.guidance import network_evaluations as network_evaluations
from score_sde.guidance import operators as operators
from score_sde.guidance import pigdm as pigdm
from score_sde.guidance import sample_smc as sample_smc
from score_sde.guidance import sdedit as sdedit
from score_sde.guidance import translate as translate
from score_sde.likelihood import BitsPerDim as BitsPerDim
from score_sde.likelihood import Bound as Bound
from score_sde.likelihood import Cells as Cells
from score_sde.likelihood import ExactDivergence as ExactDivergence
from score_sde.likelihood import Hutchinson as Hutchinson
from score_sde.likelihood import LogProb as LogProb
from score_sde.likelihood import bits_per_dim as bits_per_dim
from score_sde.likelihood import bound_by_noise_level as bound_by_noise_level
from score_sde.likelihood import continuous_bound as continuous_bound
from score_sde.likelihood import dequantise as dequantise
from score_sde.likelihood import discrete_bound as discrete_bound
from score_sde.likelihood import energy_distance as energy_distance
from score_sde.likelihood import importance_weighted as importance_weighted
from score_sde.likelihood import log_prob as log_prob
from score_sde.likelihood import optimal_variances as optimal_variances
from score_sde.likelihood import prior_kl as prior_kl
from score_sde.likelihood import quantise as quantise
from score_sde.likelihood import score_error as score_error
from score_sde.objectives import denoising_score_matching as denoising_score_matching
from score_sde.objectives import times as times
from score_sde.objectives import weightings as weightings
from score_sde.predictions import Network as Network
from score_sde.predictions import PredictedScore as PredictedScore
from score_sde.sampling import DDIM as DDIM
from score_sde.sampling import DEIS as DEIS
from score_sde.sampling import IPNDM as IPNDM
from score_sde.sampling import Ancestral as Ancestral
from score_sde.sampling import AnnealedLangevin as AnnealedLangevin
from score_sde.sampling import Clipped as Clipped
from score_sde.sampling import Corrector as Corrector
from score_sde.sampling import DPMSolver as DPMSolver
from score_sde.sampling import DPMSolverPP as DPMSolverPP
from score_sde.sampling import DPMSolverPP2S as DPMSolverPP2S
from score_sde.sampling import DynamicThreshold as DynamicThreshold
from score_sde.sampling import EDMStochastic as EDMStochastic
from score_sde.sampling import EulerMaruyama as EulerMaruyama
from score_sde.sampling import Heun as Heun
from score_sde.sampling import Langevin as Langevin
from score_sde.sampling import LinearSampler as LinearSampler
from score_sde.sampling import PredictorCorrector as PredictorCorrector
from score_sde.sampling import ProbabilityFlowEuler as ProbabilityFlowEuler
from score_sde.sampling import ReverseDiffusion as ReverseDiffusion
from score_sde.sampling import RungeKutta as RungeKutta
from score_sde.sampling import Sampler as Sampler
from score_sde.sampling import Samples as Samples
from score_sde.sampling import SASolver as SASolver
from score_sde.sampling import SDEDPMSolverPP as SDEDPMSolverPP
from score_sde.sampling import UniPC as UniPC
from score_sde.sampling import encode as encode
from score_sde.sampling import encode_adaptive as encode_adaptive
from score_sde.sampling import grids as grids
from score_sde.sampling import interpolate as interpolate
from score_sde.sampling import sample as sample
from score_sde.sampling import sample_adaptive as sample_adaptive
from score_sde.sampling import sample_sde as sample_sde
from score_sde.sdes import EDM as EDM
from score_sde.sdes import VE as VE
from score_sde.sdes import VP as VP
from score_sde.sdes import AffineSDE as AffineSDE
from score_sde.sdes import CosineVP as CosineVP
from score_sde.sdes import RectifiedFlow as RectifiedFlow
from score_sde.sdes import SubVP as SubVP
from score_sde.trees import Frozen as Frozen
from score_sde.trees import static as static

__version__ = "0.1.0"
