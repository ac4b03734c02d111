"""Dual-conditional inversion: a little reconstruction for codes that an edit can work with.

Measured on two classes that share four contents, in 64 dimensions: the perfect edit of a sample is
known there, the same content and residual in the other class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from pathline.core import noise
from pathline.edit import AdamW, FixedPoint, Reference, Way, dci, ddim_inversion
from pathline.edit.inverter import Inverter
from pathline.fields import Denoiser, Mixture, Prediction
from pathline.paths import VPLinear
from pathline.solvers import grids
from pathline.steer import CFG
from pathline.systems.inverting_emoji import OnEmoji
from pathline.systems.system import Claim, Plot, System, register

LENGTH = 0.2
LADDER = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
LAW = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
A, B = 0, 1


class TwoClasses:
    """Four contents in two classes, exactly denoised under either class or none."""

    def __init__(self) -> None:
        content = 0.8 * noise.normal(range(4), (64,), stream="data", index=5, dtype=torch.float64)
        self.shift = 0.6 * noise.normal(
            range(2), (64,), stream="data", index=6, dtype=torch.float64
        )
        path, stds = VPLinear(), torch.full((4, 64), 0.2, dtype=torch.float64)
        quarter = torch.full((4,), 0.25, dtype=torch.float64)
        each = [Mixture(path, content + s, stds, quarter) for s in self.shift]
        means, both = torch.cat([m.means for m in each]), torch.cat((stds, stds))
        self.laws = [*each, Mixture(path, means, both, torch.full((8,), 0.125).double())]
        self.field = Denoiser(self._said, path, view="eps", null={"cls": torch.tensor([2])})

    def _said(self, x: Tensor, t: Tensor, cls: Tensor) -> Tensor:
        """Return ε̂; batches of one class, or of the null condition beside one, are asked once."""
        parts = [self.laws[int(c)](x[cls == c], t[0].double()).eps for c in cls.unique(sorted=True)]
        made = torch.empty_like(x)
        for c, part in zip(cls.unique(sorted=True), parts, strict=True):
            made = made.masked_scatter((cls == c)[:, None], part)
        return made


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    n: int = 64
    steps: int = 50
    emoji: OnEmoji = OnEmoji()

    @cached_property
    def oracle(self) -> TwoClasses:
        """The two classes."""
        return TwoClasses()

    @cached_property
    def data(self) -> Tensor:
        """Samples of class A."""
        return self.oracle.laws[A].draw(range(self.n))

    def way(self, cls: int, weight: float = 1.0) -> Way:
        """Return the way under a class, on the grid even in λ."""
        field = self.oracle.field if weight == 1 else CFG(weight)(self.oracle.field)
        times = grids.log_snr(self.steps).times(self.oracle.field.path)[::-1]
        return Way(field, times, {"cls": torch.full((self.n,), cls)})

    @cache  # noqa: B019 - lives as long as the run
    def code(self, method: Inverter, weight: float = 1.0) -> tuple[Tensor, ...]:
        """Return the code of the data under class A."""
        return method.invert(self.way(A, weight), self.data).states

    def back(self, method: Inverter) -> float:
        """Return the rms error of the reconstruction."""
        return _rms(method.regenerate(self.way(A), self.code(method)).x - self.data)

    def edit(self, method: Inverter, weight: float) -> float:
        """Return the rms distance from the perfect edit, to class B under this guidance."""
        shift = self.oracle.shift
        made = method.regenerate(self.way(B, weight), self.code(method)).x
        return _rms(made - (self.data - shift[A] + shift[B]))

    def gained(self, over: Inverter, weight: float) -> float:
        """Return the edit's distance over that of another method."""
        return self.edit(drawn(LENGTH), weight) / self.edit(over, weight)

    def length_off(self) -> float:
        """Return how far corrections are from having the length λ, at most."""
        x, field, worst = self.data, self.oracle.field, 0.0
        t = torch.tensor(0.4, dtype=torch.float64)
        cond: dict[str, Any] = {"cls": torch.full((self.n,), A)}
        plain = field(x, t, **cond).eps
        for length in LAW:
            moved: Prediction = Reference(length=length)(field, self.data.flip(0))(x, t, **cond)
            worst = max(worst, float(((moved.eps - plain).norm(dim=1) - length).abs().max()))
        return worst

    def steadiness(self) -> float:
        """Return the largest over the smallest reconstruction error per λ."""
        each = [self.back(drawn(length)) / length for length in LAW]
        return max(each) / min(each)

    def best_inside(self) -> float:
        """Return the least error of an edit at either end of λ, over the least between them."""
        errors = [self.edit(drawn(length), 3.0) for length in LADDER]
        return min(errors[0], errors[-1]) / min(errors[1:-1])

    @cached_property
    def spreads(self) -> list[float]:
        """The deviation of codes that were found under guidance 5, by λ."""
        return [float(self.code(drawn(length), 5.0)[0].std()) for length in LADDER]

    def movement(self) -> float:
        """Return the furthest that AdamW moves an entry within a step, over K × its rate."""
        way, worst, solver = self.way(A), 0.0, FixedPoint(25, 0.0, AdamW())
        z = self.data
        for i in range(1, way.n + 1, 7):
            step = Way(way.field, way.times[i - 1 : i + 1], way.cond)
            first, found = (m.invert(step, z).states[0] for m in (ddim_inversion(), solver))
            worst = max(worst, float((found - first).abs().max()))
            z = (
                ddim_inversion()
                .invert(Way(way.field, way.times[i - 1 : i + 7], way.cond), z)
                .states[0]
            )
        return worst / (25 * AdamW().rate)

    def table(self, methods: dict[str, Inverter]) -> list[dict[str, float | str]]:
        """Return methods beside each other: reconstruction, code, edit at guidance 3, calls."""
        rows: list[dict[str, float | str]] = []
        for name, method in methods.items():
            found = method.invert(self.way(A), self.data)
            rows.append({
                "method": name, "reconstruction": self.back(method),
                "code": float(found.states[0].std()), "edit": self.edit(method, 3.0),
                "calls": found.nfe + 2 * self.steps,
            })  # fmt: skip
        return rows


def drawn(length: float) -> FixedPoint:
    """Return dual-conditional inversion at a length λ."""
    return dci(length=length)


def pure(rounds: int = 25) -> FixedPoint:
    """Return fixed-point inversion of so many rounds, whatever is left."""
    return FixedPoint(rounds, 0.0)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _falls(values: Sequence[float]) -> float:
    """Return the largest ratio of a value to the one before."""
    return max(b / a for a, b in zip(values, values[1:], strict=False))


def plots(e: Experiment) -> tuple[Plot, ...]:
    """Return the edit's error over λ."""
    ladder = LADDER[1:]
    each = {f"guidance {w:g}": [(k, e.edit(drawn(k), w)) for k in ladder] for w in (3.0, 5.0)}
    return (Plot("An optimum inside", "λ", "rms distance from the perfect edit", each),)


DDIM, FIXED = ddim_inversion(), pure()
CLAIMS = (
    Claim("edit", "λ = 0.2, class A inverted at w = 1, class B drawn at guidance 3: rms distance "
          "from the perfect edit over DDIM inversion's", lambda e: e.gained(DDIM, 3.0), 0.5,
          headline=True),
    Claim("edit-fixed", "over that of the pure fixed point", lambda e: e.gained(FIXED, 3.0), 0.5,
          headline=True),
    Claim("edit-5", "at guidance 5, over DDIM inversion's", lambda e: e.gained(DDIM, 5.0), 0.5,
          headline=True),
    Claim("edit-fixed-5", "at guidance 5, over the pure fixed point's",
          lambda e: e.gained(FIXED, 5.0), 0.5, headline=True),
    Claim("reconstruction", "its reconstruction's rms over DDIM inversion's",
          lambda e: e.back(drawn(LENGTH)) / e.back(DDIM), 1.0, headline=True),
    Claim("exact", "λ = 0 and 100 rounds: rms of the round trip",
          lambda e: e.back(pure(100)), 1e-12),
    Claim("25-rounds", "with 25 rounds", lambda e: e.back(FIXED), 1e-6),
    Claim("ddim", "DDIM inversion's", lambda e: e.back(DDIM), 1e-2, "higher"),
    Claim("length", "each sample's correction has the length λ; off by", Experiment.length_off,
          1e-12),
    Claim("linear", "reconstruction rms over λ varies over λ of 0.01 to 0.32 by a factor of",
          Experiment.steadiness, 2.0),
    Claim("interior", "the edit's error at the better end of λ (0 or 1) over the best between",
          Experiment.best_inside, 1.0, "higher"),
    Claim("atypical", "the code's deviation with guidance 5 in the inversion, λ = 0",
          lambda e: e.spreads[0], 1.5, "higher"),
    Claim("typical", "it falls with λ: the largest ratio of neighbours", lambda e: _falls(
        e.spreads), 1.0),
    Claim("adamw-moves", "AdamW moves no entry within a step by more than so many K × rate",
          Experiment.movement, 1.05),
    Claim("adamw", "its reconstruction at K = 25 over Picard's", lambda e: e.back(
        FixedPoint(25, 0.0, AdamW())) / e.back(FIXED), 1.0, "higher"),
    Claim("emoji", "held-out emoji at equal calls: PSNR of the reconstruction beyond DDIM "
          "inversion's, in dB", lambda e: e.emoji.outcome("DCI").psnr
          - e.emoji.outcome("DDIM inversion").psnr, 3.0, "higher", needs="training"),
    Claim("emoji-edit", "the judge's success rate beyond that of DDIM inversion", lambda e:
          e.emoji.outcome("DCI").success - e.emoji.outcome("DDIM inversion").success, 0.0,
          "higher", needs="training"),
)  # fmt: skip

register(System(
    slug="dci",
    title="Dual-conditional inversion",
    paper="Li et al. 2025, arXiv:2506.02560",
    summary="Codes drawn towards the picture: a little reconstruction for better edits.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=plots,
))  # fmt: skip
