"""What trainings of minutes on a CPU share: a rate that rises and falls, a state of each part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathline.core.errors import CheckpointError
from pathline.core.files import write_atomically
from pathline.learn.run import read_state

__all__ = ["Curve", "keep", "rate_shape", "restore"]

Curve = list[tuple[float, ...]]
"""What is kept of each part of a training: its mean loss first, its seconds last."""


def rate_shape(done: float, peak: float = 0.2) -> float:
    """The rate as a share of its peak: up along a line, down along a cosine.

    Args:
        done: the share of the training that is over.
        peak: the share at which the rate is highest.
    """
    if done < peak:
        return max(done / peak, 0.02)
    return (1 + math.cos(math.pi * (done - peak) / (1 - peak))) / 2


def keep(
    path: Path, lesson: Any, network: nn.Module, optimizer: torch.optim.Optimizer, curve: Curve
) -> None:
    """Write the state after a part of a lesson."""
    state = {
        "lesson": repr(lesson),
        "epochs": len(curve),
        "curve": curve,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    write_atomically(path, lambda file: torch.save(state, file))


def restore(
    path: Path, lesson: Any, network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, Curve]:
    """Take up a state, if there is one; return how many parts are done, and their curve.

    Raises:
        CheckpointError: the state is damaged or of another lesson.
    """
    if not path.exists():
        return 0, []
    state: Mapping[str, Any] = read_state(path, torch.device("cpu"))
    if state.get("lesson") != repr(lesson):
        raise CheckpointError(f"{path} is of another lesson; choose another folder, or remove it.")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epochs"], [tuple(row) for row in state["curve"]]
