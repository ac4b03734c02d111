"""Steering: guides, functions from field to field, and what is kept while a solve goes on."""

from pathline.steer import operators
from pathline.steer.autoguidance import Autoguidance
from pathline.steer.cfg import APG, CFG
from pathline.steer.classifier import Classifier
from pathline.steer.constraints import Clip, DynamicThreshold
from pathline.steer.control import Control, Shift
from pathline.steer.descending import Adam, Descended, Steepest, Update, descend
from pathline.steer.estimate import Correction, Estimate, Pull, Steering
from pathline.steer.guide import Chain, Guide, Guided, guides
from pathline.steer.known import Known
from pathline.steer.linear import DiffPIR, Inpaint, Projection
from pathline.steer.loss import Loss
from pathline.steer.measured import Measured
from pathline.steer.moments import DPS, MMPS, PiGDM
from pathline.steer.optimise import Learner, Optimiser, Search, slope_of
from pathline.steer.particles import Particles
from pathline.steer.population import Population
from pathline.steer.posterior import Posterior, posterior
from pathline.steer.regions import Regions
from pathline.steer.repeat import Repeat
from pathline.steer.reward import LookAhead, Naive, Targeted, closeness

__all__ = [
    "APG",
    "Adam",
    "CFG",
    "DPS",
    "MMPS",
    "Autoguidance",
    "Chain",
    "Classifier",
    "Clip",
    "Control",
    "Correction",
    "Descended",
    "DiffPIR",
    "DynamicThreshold",
    "Estimate",
    "Guide",
    "Guided",
    "Inpaint",
    "Known",
    "Learner",
    "LookAhead",
    "Loss",
    "Measured",
    "Naive",
    "Optimiser",
    "Particles",
    "PiGDM",
    "Population",
    "Posterior",
    "Projection",
    "Pull",
    "Regions",
    "Repeat",
    "Search",
    "Shift",
    "Steepest",
    "Steering",
    "Targeted",
    "Update",
    "closeness",
    "descend",
    "guides",
    "operators",
    "slope_of",
    "posterior",
]
