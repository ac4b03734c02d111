"""Learning: objectives, the trainer, and the model folders that it writes."""

from pathline.learn.checkpoint import load_model, model_names, save_model
from pathline.learn.classify import load_classifier, train_classifier
from pathline.learn.couplings import (
    BalancedGibbs,
    Coupling,
    ExactOT,
    Gibbs,
    Independent,
    Sinkhorn,
    choose_eps,
    couplings,
    diagnose,
)
from pathline.learn.journal import TrainingError
from pathline.learn.objectives import (
    LogitNormalTimes,
    LogNormalLevels,
    Matching,
    UniformTimes,
    stratified,
)
from pathline.learn.recipe import Recipe, Watch, read_recipe
from pathline.learn.trainer import train

__all__ = [
    "BalancedGibbs",
    "Coupling",
    "ExactOT",
    "Gibbs",
    "Independent",
    "LogNormalLevels",
    "LogitNormalTimes",
    "Matching",
    "Recipe",
    "Sinkhorn",
    "TrainingError",
    "UniformTimes",
    "Watch",
    "choose_eps",
    "couplings",
    "diagnose",
    "load_classifier",
    "load_model",
    "model_names",
    "read_recipe",
    "save_model",
    "stratified",
    "train",
    "train_classifier",
]
