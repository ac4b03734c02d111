"""Steering: guides, functions from field to field."""

from pathline.steer.cfg import CFG
from pathline.steer.guide import Guide, Guided, guides

__all__ = ["CFG", "Guide", "Guided", "guides"]
