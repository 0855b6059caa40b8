"""Conditional laws: scores given labels or measurements, samplers that hold on to what is known, particles, editing."""

from score_sde.guidance import operators as operators
from score_sde.guidance.editing import sdedit as sdedit
from score_sde.guidance.editing import translate as translate
from score_sde.guidance.guided import NoiseInterval as NoiseInterval
from score_sde.guidance.guided import network_evaluations as network_evaluations
from score_sde.guidance.inverse import dps as dps
from score_sde.guidance.inverse import moment_matching as moment_matching
from score_sde.guidance.inverse import pigdm as pigdm
from score_sde.guidance.labels import ConditionalScore as ConditionalScore
from score_sde.guidance.labels import autoguidance as autoguidance
from score_sde.guidance.labels import classifier_free_guidance as classifier_free_guidance
from score_sde.guidance.labels import classifier_guidance as classifier_guidance
from score_sde.guidance.particles import Particles as Particles
from score_sde.guidance.particles import sample_smc as sample_smc
from score_sde.guidance.projection import Projection as Projection
from score_sde.guidance.projection import RePaint as RePaint
