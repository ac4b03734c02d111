"""Adjoints: how a gradient comes back through a solve, and what is kept for it."""

from pathline.solvers.adjoints.adjoint import Adjoint, Cost, Direct, adjoints, as_adjoint
from pathline.solvers.adjoints.checkpoint import Checkpoint
from pathline.solvers.adjoints.continuous import Continuous
from pathline.solvers.adjoints.reversible import Reversible
from pathline.solvers.adjoints.segments import Loop, Record, Walk

__all__ = [
    "Adjoint",
    "Checkpoint",
    "Continuous",
    "Cost",
    "Direct",
    "Loop",
    "Record",
    "Reversible",
    "Walk",
    "adjoints",
    "as_adjoint",
]
