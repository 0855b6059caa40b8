"""Likelihoods: divergence, density by the probability flow, bits per dimension."""

from score_sde.likelihood.density import LogProb as LogProb
from score_sde.likelihood.density import log_prob as log_prob
from score_sde.likelihood.dequantisation import BitsPerDim as BitsPerDim
from score_sde.likelihood.dequantisation import bits_per_dim as bits_per_dim
from score_sde.likelihood.dequantisation import dequantise as dequantise
from score_sde.likelihood.dequantisation import quantise as quantise
from score_sde.likelihood.divergence import Divergence as Divergence
from score_sde.likelihood.divergence import ExactDivergence as ExactDivergence
from score_sde.likelihood.divergence import Hutchinson as Hutchinson
