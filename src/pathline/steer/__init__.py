"""Steering: guides, functions from field to field, and what is kept while a solve goes on."""

from pathline.steer.cfg import CFG
from pathline.steer.classifier import Classifier
from pathline.steer.guide import Guide, Guided, guides
from pathline.steer.known import Known
from pathline.steer.measured import Measured

__all__ = ["CFG", "Classifier", "Guide", "Guided", "Known", "Measured", "guides"]
