"""Learning: objectives, the trainer, and the model folders that it writes."""

from pathline.learn.adapt import Surgery, adapt, load_control, save_control
from pathline.learn.calibrate import Calibrated, best_temperature, calibration_error
from pathline.learn.checkpoint import load_model, model_names, save_model
from pathline.learn.classify import load_classifier, train_classifier
from pathline.learn.control import Question, SoftControl, noise_unit
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
from pathline.learn.independence import residual_test
from pathline.learn.journal import TrainingError
from pathline.learn.memory import measure_memory
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
from pathline.learn.reward import (
    ClassPrior,
    ClassReward,
    FitLesson,
    JointReward,
    Labelled,
    fit_classifier,
)
from pathline.learn.teaching import ControlLesson, assess, train_control
from pathline.learn.trainer import train

__all__ = [
    "BalancedGibbs",
    "Calibrated",
    "ClassPrior",
    "ClassReward",
    "ControlLesson",
    "Coupling",
    "Directed",
    "ExactOT",
    "FineTuning",
    "FitLesson",
    "Gibbs",
    "Independent",
    "JointReward",
    "Labelled",
    "Labels",
    "LogNormalLevels",
    "LogitNormalTimes",
    "Matching",
    "Proposal",
    "PseudoLabelled",
    "Question",
    "Rate",
    "Recipe",
    "Regressor",
    "Ridge",
    "Sinkhorn",
    "SoftControl",
    "Surgery",
    "TrainingError",
    "UniformTimes",
    "Watch",
    "adapt",
    "assess",
    "best_temperature",
    "calibration_error",
    "choose_eps",
    "couplings",
    "diagnose",
    "fit_classifier",
    "fit_regressor",
    "fit_ridge",
    "load_classifier",
    "load_control",
    "load_model",
    "load_noisy_classes",
    "measure_memory",
    "measure_rate",
    "model_names",
    "noise_unit",
    "pseudo_labels",
    "read_recipe",
    "residual_test",
    "save_control",
    "save_model",
    "stratified",
    "train",
    "train_classifier",
    "train_control",
    "train_directed",
    "train_noisy_classes",
]
