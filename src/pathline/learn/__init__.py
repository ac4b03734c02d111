"""Learning: objectives, the trainer, and the model folders that it writes."""

from pathline.learn.checkpoint import load_model, model_names, save_model
from pathline.learn.classify import load_classifier, train_classifier
from pathline.learn.journal import TrainingError
from pathline.learn.objectives import LogitNormalTimes, Matching, UniformTimes, stratified
from pathline.learn.recipe import Recipe, Watch, read_recipe
from pathline.learn.trainer import train

__all__ = [
    "LogitNormalTimes",
    "Matching",
    "Recipe",
    "TrainingError",
    "UniformTimes",
    "Watch",
    "load_classifier",
    "load_model",
    "model_names",
    "read_recipe",
    "save_model",
    "stratified",
    "train",
    "train_classifier",
]
