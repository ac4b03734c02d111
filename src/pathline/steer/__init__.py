"""Steering: guides, functions from field to field, and what is kept while a solve goes on."""

from pathline.steer.autoguidance import Autoguidance
from pathline.steer.cfg import APG, CFG
from pathline.steer.classifier import Classifier
from pathline.steer.constraints import Clip, DynamicThreshold
from pathline.steer.estimate import Correction, Estimate, Pull, Steering
from pathline.steer.guide import Chain, Guide, Guided, guides
from pathline.steer.known import Known
from pathline.steer.measured import Measured
from pathline.steer.regions import Regions

__all__ = [
    "APG",
    "CFG",
    "Autoguidance",
    "Chain",
    "Classifier",
    "Clip",
    "Correction",
    "DynamicThreshold",
    "Estimate",
    "Guide",
    "Guided",
    "Known",
    "Measured",
    "Pull",
    "Regions",
    "Steering",
    "guides",
]
