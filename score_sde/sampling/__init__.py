"""Samplers: time grids, steps, and the loop that runs them."""

from score_sde.sampling import grids as grids
from score_sde.sampling.adaptive import sample_adaptive as sample_adaptive
from score_sde.sampling.loop import sample as sample
from score_sde.sampling.predictors import EulerMaruyama as EulerMaruyama
from score_sde.sampling.predictors import Sampler as Sampler
from score_sde.sampling.results import Samples as Samples
