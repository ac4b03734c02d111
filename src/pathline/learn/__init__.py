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
from pathline.learn.directed import Directed, Proposal, train_directed
from pathline.learn.fine_tuning import FineTuning
from pathline.learn.journal import TrainingError
from pathline.learn.noisy_classes import load_noisy_classes, train_noisy_classes
from pathline.learn.objectives import (
    LogitNormalTimes,
    LogNormalLevels,
    Matching,
    UniformTimes,
    stratified,
)
from pathline.learn.pseudolabel import (
    Labels,
    PseudoLabelled,
    Regressor,
    Ridge,
    fit_regressor,
    fit_ridge,
    pseudo_labels,
)
from pathline.learn.rates import Rate, measure_rate
from pathline.learn.recipe import Recipe, Watch, read_recipe
from pathline.learn.trainer import train

__all__ = [
    "BalancedGibbs",
    "Coupling",
    "Directed",
    "ExactOT",
    "FineTuning",
    "Gibbs",
    "Independent",
    "Labels",
    "LogNormalLevels",
    "LogitNormalTimes",
    "Matching",
    "Proposal",
    "PseudoLabelled",
    "Rate",
    "Recipe",
    "Regressor",
    "Ridge",
    "Sinkhorn",
    "TrainingError",
    "UniformTimes",
    "Watch",
    "choose_eps",
    "couplings",
    "diagnose",
    "fit_regressor",
    "fit_ridge",
    "load_classifier",
    "load_model",
    "measure_rate",
    "load_noisy_classes",
    "model_names",
    "pseudo_labels",
    "read_recipe",
    "save_model",
    "stratified",
    "train",
    "train_classifier",
    "train_directed",
    "train_noisy_classes",
]
