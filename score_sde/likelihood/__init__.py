"""Likelihoods: divergence, density by the probability flow, variational bounds, bits per dimension."""

from score_sde.flow import cash_karp as cash_karp
from score_sde.likelihood.bits import BitsPerDim as BitsPerDim
from score_sde.likelihood.bits import bits_per_dim as bits_per_dim
from score_sde.likelihood.bits import importance_weighted as importance_weighted
from score_sde.likelihood.bounds import Bound as Bound
from score_sde.likelihood.bounds import continuous_bound as continuous_bound
from score_sde.likelihood.bounds import discrete_bound as discrete_bound
from score_sde.likelihood.bounds import optimal_variances as optimal_variances
from score_sde.likelihood.bounds import prior_kl as prior_kl
from score_sde.likelihood.density import LogProb as LogProb
from score_sde.likelihood.density import log_prob as log_prob
from score_sde.likelihood.dequantisation import Cells as Cells
from score_sde.likelihood.dequantisation import dequantise as dequantise
from score_sde.likelihood.dequantisation import quantise as quantise
from score_sde.likelihood.diagnostics import bound_by_noise_level as bound_by_noise_level
from score_sde.likelihood.diagnostics import energy_distance as energy_distance
from score_sde.likelihood.diagnostics import score_error as score_error
from score_sde.likelihood.divergence import Divergence as Divergence
from score_sde.likelihood.divergence import ExactDivergence as ExactDivergence
from score_sde.likelihood.divergence import Hutchinson as Hutchinson
