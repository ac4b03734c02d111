"""Pathline: conditional fields, integrated.

dx = f(x, t; c) dt + g(t) dW: one library for diffusion and flow models, neural differential
equations and physics. A `Field` is integrated by a `Solver`, which is compiled into a `Plan` for a
path and a `Grid`; `Guide`s act on fields. See the README for a minute's tour.
"""

from pathline.core import (
    NonFiniteError,
    PathlineError,
    Solution,
    Status,
    UsageError,
)
from pathline.edit import decode, encode
from pathline.fields import Dataset, Denoiser, Field, Gaussian, Mixture, Prediction, VectorField
from pathline.paths import EDM, VE, CondOT, VPLinear
from pathline.solvers import (
    BDIA,
    DDIM,
    RK4,
    DPMpp,
    Euler,
    Grid,
    Heun,
    Plan,
    Solver,
    SolverSchedule,
    explain,
    grids,
    sample,
    solve,
    steps,
)
from pathline.solvers.likelihood import log_prob
from pathline.steer import CFG, Classifier, Guide, Known, Measured

__all__ = [
    "BDIA",
    "CFG",
    "DDIM",
    "EDM",
    "RK4",
    "VE",
    "Classifier",
    "CondOT",
    "DPMpp",
    "Dataset",
    "Denoiser",
    "Euler",
    "Field",
    "Gaussian",
    "Grid",
    "Guide",
    "Heun",
    "Known",
    "Measured",
    "Mixture",
    "NonFiniteError",
    "PathlineError",
    "Plan",
    "Prediction",
    "Solution",
    "Solver",
    "SolverSchedule",
    "Status",
    "UsageError",
    "VPLinear",
    "VectorField",
    "decode",
    "encode",
    "explain",
    "grids",
    "load",
    "log_prob",
    "sample",
    "solve",
    "steps",
]


def load(name: str) -> Denoiser:
    """Return a model: one that is shipped, by name, or a folder that `pathline train` wrote.

    Raises:
        UsageError: no model of this name; the message has the nearest ones.
        CheckpointError: the folder cannot be read, or is not ours.
    """
    from pathline.learn.checkpoint import load_model

    return load_model(name)
