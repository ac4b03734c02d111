"""Stable neural SDEs, trained on what is not there: visits filled in, and motions foretold.

    liver      half of the visits of patients are hidden, and filled in
    motions    accelerometers and gyroscopes of a wrist: ten values are foretold from fifty of which
               three in ten are lost

Real data; a mean square error of 1 is that of the mean. Chords say the last value, or what lies
between neighbours.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pathline.data import timeseries
from pathline.domains.series import (
    Bound,
    Chords,
    Fit,
    Gapped,
    GRUFiller,
    Parts,
    Squares,
    StableForecaster,
    StableInterpolator,
    StablePath,
    ahead,
    error,
    fit,
    patients,
)
from pathline.systems.kept import file_of, kept

DATA = ("liver", "motions")
MODELS = ("lnsde", "naive", "gru", "chords")
HOW = Fit(iterations=300, batch=32, rate=5e-3, every=25)
VERSION, WINDOW = 1, 60
DEVIATION = 0.3
"""Of an observation from what is decoded, in units of the training part's."""


class Gap(NamedTuple):
    """A training: a model and a set."""

    model: str
    data: str

    @property
    def parts(self) -> Parts[Gapped]:
        """The data."""
        if self.data == "liver":
            return patients()
        values = _motions()
        windows = values.unfold(1, WINDOW, 20).transpose(2, 3)
        whose = torch.arange(len(values)).repeat_interleave(windows.shape[1])
        return ahead(windows.flatten(0, 1), 10, missing=0.3, groups=whose)

    def network(self, channels: int) -> nn.Module:
        """The model with the weights that it begins with."""
        torch.manual_seed(0)
        if self.model == "chords":
            return Chords()
        if self.model == "gru":
            return GRUFiller(channels)
        path = StablePath(self.model, channels)  # type: ignore[arg-type]
        if self.data == "liver":
            return StableInterpolator(path, channels, width=32, deviation=DEVIATION)
        return StableForecaster(path, channels)

    def outcome(self) -> float:
        """Return the mean square error of what is asked of the test part, from the cache."""
        name = f"stable-neural-sde/gaps-{VERSION}-{HOW.iterations}/{self.model}-{self.data}"
        state = file_of(name).with_suffix(".pt")
        found = kept(name, lambda: self._trained(state))["error"]
        state.unlink(missing_ok=True)
        return found

    def _trained(self, state: Path) -> dict[str, Any]:
        parts = self.parts
        model = self.network(parts.train.channels)
        aim = Bound() if isinstance(model, StableInterpolator) else Squares()
        if list(model.parameters()):
            fit(model, parts.train, parts.valid, HOW, aim=aim, state=state)
        return {"error": error(model, parts.test), "how": asdict(HOW)}


ALL = [Gap(model, data) for data in DATA for model in MODELS]


def _motions() -> Tensor:
    """Return the motions of the archive, both of its parts, (80, 100, 6)."""
    data = timeseries.load("BasicMotions")
    return torch.from_numpy(np.concatenate((data.train_values, data.test_values)))


ABOUT = """Mean square errors of what was not seen, in units of the variance: `liver`, half of the
visits of 227 patients with a liver disease, filled in (by a latent variable and its bound, except
for `gru`); `motions`, ten values of the six channels of a wrist's sensors from the fifty before, of
which three in ten are lost. `chords` learns nothing: it says the last value, or what lies between
neighbours. `gru` reads a series from both ends."""
