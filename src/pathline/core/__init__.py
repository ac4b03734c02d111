"""Core: noise, solutions, receipts, the registry, errors, files and progress."""

from pathline.core.errors import (
    CheckpointError,
    MissingExtra,
    NonFiniteError,
    PathlineError,
    ReceiptError,
    SolveError,
    UnfinishedError,
    UsageError,
)
from pathline.core.registry import Entry, Registry
from pathline.core.solution import Solution, Stats, Status

__all__ = [
    "CheckpointError",
    "Entry",
    "MissingExtra",
    "NonFiniteError",
    "PathlineError",
    "ReceiptError",
    "Registry",
    "Solution",
    "SolveError",
    "Stats",
    "Status",
    "UnfinishedError",
    "UsageError",
]
