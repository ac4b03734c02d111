"""What is no differential equation, to compare with: GRUs told what is missing, and chords."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pathline.domains.series.series import Observed, check_channels
from pathline.paths import controls

__all__ = ["Chords", "GRUClassifier", "GRUFiller"]


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

    def forward(self, series: Observed, seeds: Sequence[int] = ()) -> Tensor:
        """Return logits, (n, classes); seeds are not used."""
        del seeds
        out, _ = self.gru(told(series, self.gru))
        return self.last(out[:, -1])


class GRUFiller(nn.Module):
    """The same, that says all values of a series and reads it from both ends.

    Args:
        channels: of the series.
        hidden: numbers in a state, of each direction.
    """

    penalised: Sequence[nn.Parameter] = ()

    def __init__(self, channels: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.gru = nn.GRU(2 * channels + 1, hidden, batch_first=True, bidirectional=True)
        self.last = nn.Linear(2 * hidden, channels)

    def forward(self, series: Observed, seeds: Sequence[int] = ()) -> Tensor:
        """Return values, (n, length, channels); seeds are not used."""
        del seeds
        return self.last(self.gru(told(series, self.gru))[0])


class Chords(nn.Module):
    """What is missing is on the chord of its neighbours, and before and after all as the nearest.

    It learns nothing. Of what is to come it says the last value.
    """

    def forward(self, series: Observed, seeds: Sequence[int] = ()) -> Tensor:
        """Return values, (n, length, channels); seeds are not used."""
        del seeds
        return controls.filled(series.values, series.times)


def told(series: Observed, to: nn.GRU) -> Tensor:
    """Return the last observed values, what was observed, and gaps, (n, length, 2 channels + 1)."""
    check_channels(series, (to.input_size - 1) // 2)
    seen = series.values.isfinite()
    place = torch.arange(seen.shape[1])[None, :, None]
    latest = torch.where(seen, place, -1).cummax(1).values
    held = series.values.nan_to_num().gather(1, latest.clamp(min=0))
    held = torch.where(latest < 0, 0.0, held)  # 0 is the mean of what is scaled
    gaps = series.times.diff(prepend=series.times[:1]) * (len(series.times) - 1)
    gaps = gaps.to(held)[None, :, None].expand(len(held), -1, 1)
    return torch.cat((held, seen.to(held), gaps), 2)
