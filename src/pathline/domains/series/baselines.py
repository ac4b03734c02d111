"""What is no differential equation, to compare with: a GRU that is told what is missing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pathline.domains.series.series import Series

__all__ = ["GRUClassifier"]


class GRUClassifier(nn.Module):
    """A GRU of the last observed values, of what was observed, and of the time since the last step.

    Args:
        channels: of the series.
        classes: how many.
        hidden: numbers in its state.
    """

    penalised: Sequence[nn.Parameter] = ()

    def __init__(self, channels: int, classes: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.gru = nn.GRU(2 * channels + 1, hidden, batch_first=True)
        self.last = nn.Linear(hidden, classes)

    def forward(self, series: Series, seeds: Sequence[int] = ()) -> Tensor:
        """Return logits, (n, classes); seeds are not used."""
        del seeds
        seen = series.values.isfinite()
        place = torch.arange(seen.shape[1])[None, :, None]
        latest = torch.where(seen, place, -1).cummax(1).values
        held = series.values.nan_to_num().gather(1, latest.clamp(min=0))
        held = torch.where(latest < 0, 0.0, held)  # 0 is the mean of what is scaled
        gaps = series.times.diff(prepend=series.times[:1]) * (len(series.times) - 1)
        gaps = gaps.to(held)[None, :, None].expand(len(held), -1, 1)
        out, _ = self.gru(torch.cat((held, seen.to(held), gaps), 2))
        return self.last(out[:, -1])
