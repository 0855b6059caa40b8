"""Training objectives: losses, weightings, and how times are drawn."""

from score_sde.objectives import times as times
from score_sde.objectives import weightings as weightings
from score_sde.objectives.matching import denoising_score_matching as denoising_score_matching
