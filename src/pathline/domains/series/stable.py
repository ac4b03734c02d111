"""Series read, and classified, by a stable neural SDE whose drift reads the data path.

    z_0 = ζ X(0),   dz = drift(z, t, X(t)) dt + diffusion(z, t) dW,   logits = ℓ(z(1))

Euler-Maruyama, one step from observation to observation. Where log|z| is integrated (the pure
geometric class) signs are kept exactly.

Paper: Oh, Lim & Kim 2024 (arXiv:2402.14989).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.domains.series.series import Observed, check_channels
from pathline.fields import SDE
from pathline.fields.stable_sde import Driven, Kind, Noise, Reads, StableSDE, Variant, logarithm
from pathline.solvers import solve

__all__ = ["Readout", "StableClassifier", "StablePath"]


class Readout(nn.Sequential):
    """Linear, batch norm, ReLU, dropout, linear: from the last state to logits."""

    def __init__(self, hidden: int, classes: int, dropout: float = 0.1) -> None:
        super().__init__(
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )


class StablePath(nn.Module):
    """Hidden states along series, by one of the three stable classes or the naive neural SDE.

    Args:
        kind: "lsde", "lnsde", "gsde" or "naive".
        channels: of the series, without time.
        hidden: numbers in a state.
        depth: hidden layers of the drift.
        variant, reads, noise, allow_unstable: as for `StableSDE`.
        step: Euler's step; the smallest gap between observations, 1e-3 at least, if None.
    """

    def __init__(  # noqa: PLR0913 - keyword-only: the switches of an ablation
        self,
        kind: Kind,
        channels: int,
        *,
        hidden: int = 32,
        depth: int = 2,
        variant: Variant = "runtime",
        reads: Reads | None = None,
        noise: Noise | None = None,
        allow_unstable: bool = False,
        step: float | None = None,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(1 + channels, hidden)
        self.sde = StableSDE(
            kind, hidden, 1 + channels, depth=depth, variant=variant, reads=reads, noise=noise,
            allow_unstable=allow_unstable,
        )  # fmt: skip
        self.step = step

    @property
    def hidden(self) -> int:
        """Numbers in a state."""
        return self.sde.hidden

    @property
    def penalised(self) -> Sequence[nn.Parameter]:
        """The parameters of drift and diffusion, whose norms training adds to the loss."""
        return list(self.sde.parameters())

    def path(self, series: Observed, seeds: Sequence[int], times: Tensor | None = None) -> Tensor:
        """Return the hidden states at the times of the solver, (times, n, hidden).

        Args:
            series: n of them.
            seeds: of the Brownian paths, one a series: fresh ones for every pass.
            times: of Euler's steps, increasing; those of the observations, or finer ones, if None.
        """
        check_channels(series, self.first.in_features - 1)
        times = self._times(series) if times is None else times
        knots = series.knots if torch.equal(times, series.times) else torch.stack(
            [series.control.value(t) for t in times])  # fmt: skip
        z = self.first(knots[0].to(self.first.weight))
        if self.sde.kind == "gsde":
            z = nn.functional.softplus(z) + 1e-4  # 0 would stay 0
        driven = self.sde.along(times, knots)
        how: dict[str, Any] = {
            "solver": "ito_euler",
            "grid": times.tolist(),
            "seeds": seeds,
            "trajectory": True,
            "adjoint": "direct",
            "on_failure": "return",
        }
        if self.sde.kind == "gsde" and self.sde.variant == "pure":
            return self._by_logarithm(driven, z, how)
        sde = SDE(driven.drift, driven.diffusion, noise="diagonal", sde_type="ito")
        made = _states(solve(sde, z, **how).trajectory)
        if driven.lost:
            warnings.warn(
                f"{driven.lost} numbers of the diffusion were NaN, and 0 was taken for them: "
                f"noise={self.sde.noise!r} left its domain.",
                stacklevel=2,
            )
        return made

    def _by_logarithm(self, driven: Driven, z: Tensor, how: dict[str, Any]) -> Tensor:
        y, sign = logarithm(z)
        sde = SDE(
            lambda y, t: driven.log_drift(y, sign, t), driven.log_diffusion, noise="additive"
        )  # fmt: skip
        return sign * _states(solve(sde, y, **how).trajectory).exp()  # type: ignore[arg-type]

    def _times(self, series: Observed) -> Tensor:
        """Return the times of Euler's steps: the observations', or an even finer mesh."""
        gap = float(series.times.diff().min())
        if self.step is None and gap >= 1e-3:
            return series.times
        step = max(gap, 1e-3) if self.step is None else self.step
        if step > gap * (1 + 1e-9):
            warnings.warn(
                f"Euler's step {step:g} is larger than the smallest gap of the data, {gap:g}: "
                "observations are passed over.",
                stacklevel=4,
            )
        start, end = float(series.times[0]), float(series.times[-1])
        n = max(1, round((end - start) / step))
        if n < 1 or step <= 0:
            raise UsageError(f"a step is above 0, not {step}.")
        return torch.linspace(start, end, n + 1, dtype=torch.float64)


class StableClassifier(StablePath):
    """A classifier of series by one of the three stable classes, or the naive neural SDE.

    Args:
        kind, channels: as for `StablePath`.
        classes: how many.
        switches: hidden, depth, variant, reads, noise, allow_unstable and step of `StablePath`.
    """

    def __init__(self, kind: Kind, channels: int, classes: int, **switches: Any) -> None:
        super().__init__(kind, channels, **switches)
        self.readout = Readout(self.hidden, classes)

    def forward(self, series: Observed, seeds: Sequence[int]) -> Tensor:
        """Return logits, (n, classes); arguments as for `path`."""
        return self.readout(self.path(series, seeds)[-1])


def _states(trajectory: Tensor | None) -> Tensor:
    assert trajectory is not None
    return trajectory
