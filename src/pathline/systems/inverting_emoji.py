"""Inverting and editing held-out emoji with the shipped model: what comes back, and what changes.

Every method has the same evaluations, two solves of `steps`; the judge, which no method uses, says
whether an edited picture shows what was asked for rather than what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.data import emoji
from pathline.edit import EDICT, BySolver, FixedPoint, Way, dci, ddim_inversion
from pathline.edit.inverter import Inverter
from pathline.fields import Denoiser
from pathline.learn import load_model
from pathline.learn.quality.judge import Judge, load_judge
from pathline.learn.quality.reference import to_uint8
from pathline.solvers import BDIA, grids
from pathline.steer import CFG

GUIDANCE = 3.0
END = 0.98
"""Where codes lie: EDICT divides by α, which is 0 at t = 1."""


@dataclass(frozen=True)
class Outcome:
    """What a method made of the pictures.

    Args:
        psnr: of the reconstruction under the source's caption, in dB, the mean over pictures.
        success: how often the judge finds the target's caption nearer than the source's.
        leaning: the mean of that difference of cosines.
        kept: the root mean square distance of the edited pictures from the originals.
        spread: the standard deviation of the code.
        calls: of the network, inversion and edit together.
    """

    psnr: float
    success: float
    leaning: float
    kept: float
    spread: float
    calls: int


class Trip(NamedTuple):
    """Pictures that went to their codes and back.

    Args:
        back: regenerated under their own caption.
        edited: regenerated under another one's.
        spread: the standard deviation of the code.
        calls: of the network, inversion and edit together.
    """

    back: Tensor
    edited: Tensor
    spread: float
    calls: int


@dataclass(frozen=True)
class OnEmoji:
    """Held-out emoji, inverted under their own caption and drawn again under another's.

    Args:
        n: pictures.
        steps: of DDIM inversion and BDIA; the others have as many as they can afford.
    """

    n: int = 16
    steps: int = 20

    @cached_property
    def model(self) -> Denoiser:
        """The shipped model."""
        return load_model("emoji")

    @cached_property
    def judge(self) -> Judge:
        """Who says what a picture shows; no method uses it."""
        return load_judge()

    @cached_property
    def shown(self) -> tuple[Tensor, list[str], list[str]]:
        """Pictures, what they show, and what they shall show: another one of the group."""
        data = emoji.load()
        groups: dict[str, list[int]] = {}
        for i in data.where("held_out").tolist():
            entry = data.entries[i]
            if not (entry.is_flag or entry.is_skin_variant) and entry.vendor == "noto":
                groups.setdefault(entry.group, []).append(i)
        pairs = [
            pair for own in groups.values() for pair in zip(own, [*own[1:], own[0]], strict=True)
        ]
        pairs = [(a, b) for a, b in pairs if data.entries[a].label != data.entries[b].label]
        chosen = pairs[:: max(1, len(pairs) // self.n)][: self.n]
        pixels = torch.from_numpy(data.images[[a for a, _ in chosen]]).permute(0, 3, 1, 2)
        labels = [[data.entries[pair[k]].label for pair in chosen] for k in (0, 1)]
        return pixels.float() / 127.5 - 1, labels[0], labels[1]

    def _way(self, steps: int, guidance: float, texts: Sequence[str]) -> Way:
        grid = grids.log_snr(steps, start=END)
        field = CFG(guidance)(self.model)
        return Way(field, grid.times(self.model.path)[::-1], {"text": list(texts)})

    @cache  # noqa: B019 - lives as long as the run
    def psnr(self, method: Inverter, guidance: float = 1.0, steps: int | None = None) -> float:
        """Return the PSNR of the round trip under the source's caption, in float32."""
        x, source, _ = self.shown
        way = self._way(steps or self.steps, guidance, source)
        with torch.no_grad():
            back = method.regenerate(way, method.invert(way, x).states).x
        return float(_psnr(back, x).mean())

    @property
    def methods(self) -> dict[str, tuple[Inverter, int]]:
        """Methods and their steps: an edit takes three calls for each of `steps` with every one."""
        half, fifth = self.steps // 2, 3 * self.steps // 5
        return {
            "DDIM inversion": (ddim_inversion(), self.steps),
            "fixed point": (FixedPoint(rounds=2, tolerance=0.0), fifth),
            "EDICT": (EDICT(), half),
            "BDIA": (BySolver(BDIA()), self.steps),
            "BDIA, γ = 0.96": (BySolver(BDIA(0.96)), self.steps),
            "DCI": (dci(0.02, rounds=2, tolerance=0.0), fifth),
        }

    def trip(self, name: str) -> Trip:
        """Return the pictures after a method."""
        method, steps = self.methods[name]
        x, source, target = self.shown
        up, down = self._way(steps, 1.0, source), self._way(steps, GUIDANCE, target)
        with torch.no_grad():
            found = method.invert(up, x)
            back = method.regenerate(up, found.states).x
            made = method.regenerate(down, found.states)
        return Trip(back, made.x, float(found.states[0].std()), found.nfe + 2 * made.nfe)

    @cache  # noqa: B019 - lives as long as the run
    def outcome(self, name: str) -> Outcome:
        """Return what a method makes of the pictures."""
        return self.judged(self.trip(name))

    def judged(self, trip: Trip) -> Outcome:
        """Return what became of the pictures."""
        x, source, target = self.shown
        scores = self.judge.scores(to_uint8(trip.edited), [*source, *target])
        own = torch.arange(len(x))
        lean = scores[own, own + len(x)] - scores[own, own]
        return Outcome(
            float(_psnr(trip.back, x).mean()),
            float((lean > 0).float().mean()),
            float(lean.mean()),
            float((trip.edited - x).square().mean().sqrt()),
            trip.spread,
            trip.calls,
        )


def _psnr(made: Tensor, x: Tensor) -> Tensor:
    """Return the PSNR of every picture; its range is 2. Equal pictures count as 150 dB."""
    error = (made - x).square().flatten(1).mean(1).double()
    return (10 * (4 / error.clamp_min(1e-30)).log10()).clamp(max=150)
