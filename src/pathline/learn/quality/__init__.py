"""Quality: how good a model's samples are, beside real pictures and beside noise."""

from pathline.learn.quality.card import write_card
from pathline.learn.quality.distances import frechet, halves, kernel, on_scale
from pathline.learn.quality.drawing import How
from pathline.learn.quality.evaluate import evaluate, how_of
from pathline.learn.quality.judge import load_judge
from pathline.learn.quality.judge_training import train_judge
from pathline.learn.quality.reference import Reference, load_reference, make_reference
from pathline.learn.quality.report import Measure, Report
from pathline.learn.quality.subjects import subject_of

__all__ = [
    "How",
    "Measure",
    "Reference",
    "Report",
    "evaluate",
    "frechet",
    "halves",
    "how_of",
    "kernel",
    "load_judge",
    "load_reference",
    "make_reference",
    "on_scale",
    "subject_of",
    "train_judge",
    "write_card",
]
