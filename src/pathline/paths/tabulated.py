"""The path of a discrete-time model, from its table of ᾱ_n."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.registry import Entry
from pathline.paths.path import GaussianPath, Time, as_time, hash_once, log_snr_of, paths


@paths.register("tabulated", aliases=("discrete",), paper="arXiv:2206.00927, App. D.2")
@dataclass(frozen=True)
class Tabulated(GaussianPath):
    """A VP path through the levels ᾱ_0 > ᾱ_1 > … of a model trained at integer labels.

    Label n sits at time t_n = (n + 1)/N, and data (ᾱ = 1) at t = 0; between the nodes log α is
    linear in t. At the nodes the path is the model's own table.

    A table may go on where nothing is left of the data (the cosine table: λ falls to −10). A
    network that says ε̂ is asked there for x̂_0 = (x − σ ε̂)/α with an α next to nothing, and its
    errors are all that comes back; so generation starts at the last label with λ ≥ `lowest`.

    Args:
        alphas_cumprod: ᾱ_0 … ᾱ_{N−1}, falling, in (0, 1); any sequence of numbers.
        lowest: the half log-SNR below which generation does not start; −∞ for the whole table,
            which a network that says v or x̂_0 may be started at.

    Raises:
        UsageError: levels that are none, do not fall or lie all below `lowest`.
    """

    alphas_cumprod: tuple[float, ...] = field(default=(0.999, 0.5, 0.01), repr=False)
    lowest: float = -5.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "alphas_cumprod", _numbers(self.alphas_cumprod, "alphas_cumprod"))
        levels = self.alphas_cumprod
        if not levels or not all(0 < level < 1 for level in levels):
            raise UsageError(
                "alphas_cumprod must lie in (0, 1); schedules rescaled to zero terminal SNR have "
                "no log-SNR at their last label: drop it."
            )
        if any(a <= b for a, b in zip(levels, levels[1:], strict=False)):
            raise UsageError("alphas_cumprod must fall strictly from one label to the next.")
        if self.kept < 1:
            raise UsageError(
                f"no label of the table has a log-SNR λ ≥ {self.lowest:g}, its `lowest`: the first "
                f"has {float(self.log_snr(self.t_min)):.3g}."
            )

    __hash__ = hash_once

    @classmethod
    def from_betas(cls, betas: Iterable[float]) -> Tabulated:
        """Return the path of a table of β_n: ᾱ_n = Π (1 − β_k).

        Raises:
            UsageError: a β outside (0, 1).
        """
        table = torch.tensor(_numbers(betas, "betas"), dtype=torch.float64)
        if not bool(((table > 0) & (table < 1)).all()):
            raise UsageError("betas must lie in (0, 1).")
        return cls(tuple(torch.cumprod(1 - table, 0).tolist()))

    @classmethod
    def linear(cls, first: float = 1e-4, last: float = 0.02, n: int = 1000) -> Tabulated:
        """Return the path of β that rise linearly: DDPM's table."""
        return cls.from_betas(torch.linspace(first, last, n, dtype=torch.float64).tolist())

    @property
    def t_min(self) -> float:
        """The time of label 0."""
        return 1 / len(self.alphas_cumprod)

    @property
    def t_max(self) -> float:
        """The time of the last label with λ ≥ `lowest`."""
        return self.kept / len(self.alphas_cumprod)

    @cached_property
    def kept(self) -> int:
        """How many labels have λ ≥ `lowest`, the first ones."""
        levels = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        return int((0.5 * levels.logit() >= self.lowest).sum())

    def label(self, t: Time) -> Tensor:
        """The (real-valued) label of time t, N t − 1, at least 0."""
        return (as_time(t) * len(self.alphas_cumprod) - 1).clamp(min=0)

    def time_of_label(self, label: Time) -> Tensor:
        """The time of label n, (n + 1)/N."""
        return (as_time(label) + 1) / len(self.alphas_cumprod)

    @cached_property
    def _log_alphas(self) -> Tensor:
        """½ log ᾱ at t = 0, 1/N, …, 1."""
        levels = torch.tensor((1.0, *self.alphas_cumprod), dtype=torch.float64)
        return 0.5 * levels.log()

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log α at the left end of t's segment, its slope, and t − t_left."""
        n = len(self.alphas_cumprod)
        nodes = self._log_alphas.to(device=t.device, dtype=t.dtype)
        left = (t * n).floor().clamp(0, n - 1).long()
        slope = (nodes[left + 1] - nodes[left]) * n
        return nodes[left], slope, t - left.to(t.dtype) / n

    def log_alpha(self, t: Time) -> Tensor:
        """log α_t, piecewise linear."""
        start, slope, offset = self._segment(as_time(t))
        return start + slope * offset

    def alpha(self, t: Time) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Time) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def d_alpha(self, t: Time) -> Tensor:
        return self._segment(as_time(t))[1] * self.alpha(t)

    def d_sigma(self, t: Time) -> Tensor:
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def log_snr(self, t: Time) -> Tensor:
        return log_snr_of(self.log_alpha(t))

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        log_snr = as_time(log_snr)
        log_alpha = -0.5 * torch.logaddexp(-2 * log_snr, torch.zeros_like(log_snr))
        nodes = self._log_alphas.to(device=log_alpha.device, dtype=log_alpha.dtype)
        n = len(self.alphas_cumprod)
        left = torch.searchsorted(-nodes, -log_alpha, right=True).sub(1).clamp(0, n - 1)
        slope = (nodes[left + 1] - nodes[left]) * n
        return left.to(log_alpha.dtype) / n + (log_alpha - nodes[left]) / slope


def _numbers(values: Iterable[float], name: str) -> tuple[float, ...]:
    """Return a table as Python floats; tensors and arrays are tables too."""
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be a sequence of numbers: {error}.") from error


paths.add(
    Entry(
        "tabulated_linear",
        Tabulated.linear,
        aliases=("ddpm_table",),
        paper="arXiv:2006.11239, Sec. 4",
        about="The path of a discrete-time model whose β rise linearly: DDPM's table.",
    )
)
