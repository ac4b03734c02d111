"""The record of a training run: losses and times, as CSV on the way and in the model's record."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import PathlineError
from pathline.core.files import write_atomically

__all__ = ["Journal", "Row", "TrainingError"]


class TrainingError(PathlineError):
    """Training cannot go on: a loss or gradient is not finite; the message names the step."""


@dataclass
class Row:
    """The mean over some steps that end at `step`.

    Args:
        step: how many updates were made.
        samples: how many samples were seen.
        seconds: spent on training, in all sessions.
        loss: of the regression.
        gradient: its norm, before it was clipped.
        held_out: the loss of the averaged weights on held-out data; None if it was not measured.
        penalty: what the regulariser added to the loss; None if there is none.
    """

    step: int
    samples: int
    seconds: float
    loss: float
    gradient: float
    held_out: float | None = None
    penalty: float | None = None


@dataclass
class Journal:
    """Rows in the order of time."""

    rows: list[Row] = field(default_factory=lambda: [])
    _since: float = field(default_factory=time.monotonic, repr=False)

    def add(self, step: int, losses: Sequence[tuple[Tensor, ...] | None], batch: int) -> None:
        """Note the mean of (loss, gradient[, penalty]) over the last steps, which end at `step`.

        Steps of None made no update; where all are, nothing is noted.

        Raises:
            TrainingError: one of them is not finite; names the first such step.
        """
        made = [(k, *map(float, pair)) for k, pair in enumerate(losses, 1) if pair is not None]
        if not made:
            return
        steps, *values = zip(*made, strict=True)
        table = torch.tensor(values).T
        bad = (~torch.isfinite(table)).any(1).nonzero()[:, 0].tolist()
        if bad:
            loss, norm = table[bad[0], :2].tolist()
            raise TrainingError(
                f"training met a loss of {loss:g} with a gradient of norm {norm:g} at step "
                f"{step - len(losses) + steps[bad[0]]}; the last checkpoint is from before it. "
                "Try a smaller rate."
            )
        before = self.rows[-1].seconds if self.rows else 0.0
        now = time.monotonic()
        seconds, self._since = before + now - self._since, now
        loss, gradient, *penalty = table.double().mean(0).tolist()
        self.rows.append(Row(step, step * batch, seconds, loss, gradient, None, *penalty))

    def note_held_out(self, loss: float) -> None:
        """Note the held-out loss beside the last row."""
        if self.rows:
            self.rows[-1].held_out = loss

    def write(self, path: Path) -> None:
        """Write the rows as CSV.

        Raises:
            UsageError: the place cannot be written to.
        """
        header = list(Row.__dataclass_fields__)
        rows = [[getattr(row, name) for name in header] for row in self.rows]
        lines = [",".join("" if v is None else f"{v:.7g}" for v in row) for row in rows]
        write_atomically(path, "\n".join([",".join(header), *lines]) + "\n")

    def summary(self, points: int = 50) -> dict[str, Any]:
        """Return what a model's record says of its training, with a curve of about `points`."""
        measured = [row.held_out for row in self.rows if row.held_out is not None]
        last = self.rows[-1] if self.rows else Row(0, 0, 0.0, math.nan, math.nan)
        curve = [(row.step, round(row.loss, 5)) for row in self.rows]
        return {
            "step": last.step,
            "samples": last.samples,
            "seconds": round(last.seconds),
            "held_out_loss": measured[-1] if measured else None,
            "curve": curve[:: max(1, len(curve) // points)],
        }
