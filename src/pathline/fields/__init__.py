"""Fields: what is integrated, and the exact ones that everything is tested against."""

from pathline.fields.cde import CDE, LogODE
from pathline.fields.denoiser import Denoiser
from pathline.fields.field import Condition, Evaluate, Field, Halves, Prediction, VectorField
from pathline.fields.fokker_planck import FokkerPlanck, potential_of
from pathline.fields.oracles import Dataset, Gaussian, Mixture
from pathline.fields.residuals import Residuals, residuals
from pathline.fields.retimed import Retimed, retimed
from pathline.fields.sde import SDE
from pathline.fields.separation import estimate as estimate_separation
from pathline.fields.spherical import Spherical
from pathline.fields.subspace import Subspace
from pathline.fields.unscaled import Unscaled, UnscaledPath
from pathline.fields.views import VIEWS, View, as_view, change, convert, target

__all__ = [
    "CDE",
    "LogODE",
    "SDE",
    "VIEWS",
    "Condition",
    "Dataset",
    "Denoiser",
    "Evaluate",
    "Field",
    "FokkerPlanck",
    "Gaussian",
    "Halves",
    "Mixture",
    "Prediction",
    "Residuals",
    "Retimed",
    "Spherical",
    "Subspace",
    "Unscaled",
    "UnscaledPath",
    "VectorField",
    "View",
    "as_view",
    "change",
    "convert",
    "estimate_separation",
    "potential_of",
    "residuals",
    "retimed",
    "target",
]
