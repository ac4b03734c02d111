"""CODE against SDEdit on damaged emoji: realism, fidelity, and which is better at equal realism.

Realism is how near a result is to real pictures in the eyes of a network that no method uses: the
mean distance to the nearest of the reference's real emoji, on the sphere of EfficientNet-Lite0
features. Fidelity is the root mean square distance to the damaged input, and the perceptual
distance to the picture before its damage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.bench.editing.damage import DAMAGE, clean
from pathline.bench.kept import kept
from pathline.core.progress import track
from pathline.edit import Edited, code, sdedit
from pathline.fields import Denoiser
from pathline.learn import load_model
from pathline.learn.quality.features import Lite0, embed
from pathline.learn.quality.neighbours import nearest_features
from pathline.learn.quality.perceptual import perceptual_distance
from pathline.learn.quality.reference import load_reference, to_uint8
from pathline.learn.quality.subjects import subject_of
from pathline.solvers import grids

STEPS = 25
GRID = grids.uniform(STEPS, end=0.02)
"""Pixels are rounded to 1/255 and damaged besides: at σ = 0.001 a network takes that for signal."""
STRENGTHS = (0.16, 0.32, 0.48, 0.64)
WALK, RATE = 32, 0.05
"""Langevin steps and ε/σ²: Σε/σ² = 1.2 over the four blocks, as much as 200 steps of 0.01 come to.
What is forgotten depends on that sum; a tenth of it leaves damage where it is."""


@dataclass(frozen=True)
class Setting:
    """A method with its knobs."""

    name: str
    edit: Callable[[Denoiser, Tensor], Edited]


def _noised(strength: float) -> Setting:
    def run(model: Denoiser, y: Tensor) -> Edited:
        return sdedit(model, y, strength=strength, grid=GRID)

    return Setting(f"SDEdit {strength:g}", run)


def _code(depth: int, n: int = WALK) -> Setting:
    def run(model: Denoiser, y: Tensor) -> Edited:
        return code(model, y, depth=depth, eps_rel=RATE, n=n, grid=GRID)

    return Setting(f"CODE L = {depth}{'' if n else ', clipping alone'}", run)


SETTINGS = (
    *(_noised(s) for s in STRENGTHS),
    _code(12, 0),
    _code(8),
    _code(12),
    _code(16),
)


class Made(NamedTuple):
    """What a setting made of all damage, in one batch.

    Args:
        x: (damage · pictures, *state).
        nfe: evaluations of the network for each.
        clipped: the share of entries that were clipped on the way up, (damage · pictures,); None
            without clipping.
    """

    x: Tensor
    nfe: int
    clipped: Tensor | None

    @classmethod
    def of(cls, edited: Edited) -> Made:
        """Return what is compared of an edit."""
        clipped = getattr(edited.log, "clipped", None)
        return cls(edited.x[:, 0], edited.nfe, None if clipped is None else clipped.mean(0))


@dataclass(frozen=True)
class Row:
    """What a setting made of one kind of damage.

    Args:
        damage: its name.
        setting: the method's.
        unreal: mean distance to the nearest real picture, features; lower is more real.
        off: root mean square distance to the damaged input.
        unlike: mean perceptual distance to the picture before its damage.
        calls: evaluations of the network for each picture.
        clipped: the mean share of entries that were clipped on the way up; None without clipping.
    """

    damage: str
    setting: str
    unreal: float
    off: float
    unlike: float
    calls: int
    clipped: float | None = None


@dataclass(frozen=True)
class Contest:
    """Everything that is compared.

    Args:
        n: pictures.
    """

    n: int = 16

    @cached_property
    def model(self) -> Denoiser:
        """The shipped model; nobody tells it what a picture shows."""
        return load_model("emoji")

    @cached_property
    def sight(self) -> Lite0:
        """The network that looks."""
        return Lite0()

    @cached_property
    def real(self) -> Tensor:
        """Features of real pictures of the training split."""
        return load_reference(subject_of(self.model)).features["efficientnet-lite0/train"]

    @cached_property
    def shown(self) -> tuple[Tensor, list[str]]:
        """The pictures before their damage, and what they show."""
        return clean(self.n)

    @cached_property
    def damaged(self) -> dict[str, Tensor]:
        """The same pictures, by damage."""
        return {name: harm(self.shown[0]) for name, harm in DAMAGE.items()}

    @cached_property
    def made(self) -> dict[str, Made]:
        """What each setting makes of all damage; from the cache if it has been made before."""
        return {each.name: self._made(each) for each in track(SETTINGS, "repairing emoji")}

    def _made(self, setting: Setting) -> Made:
        told = [setting.name, self.n, STEPS, repr(GRID), WALK, RATE, self.model.details["weights"]]

        def make() -> dict[str, Tensor]:
            with torch.no_grad():
                made = Made.of(setting.edit(self.model, torch.cat(list(self.damaged.values()))))
            clipped = {} if made.clipped is None else {"clipped": made.clipped}
            return {"x": made.x, "nfe": torch.tensor(made.nfe), **clipped}

        found = kept("bench-editing", told, make)
        return Made(found["x"], int(found["nfe"]), found.get("clipped"))

    def repaired(self, setting: str, damage: str) -> Tensor:
        """Return the pictures that a setting made of one kind of damage."""
        first = list(self.damaged).index(damage) * self.n
        return self.made[setting].x[first : first + self.n].clamp(-1, 1)

    def unreal(self, x: Tensor) -> float:
        """Return the mean distance to the nearest real picture."""
        seen = embed(self.sight, to_uint8(x))
        return float(nearest_features(seen, self.real).distance.mean())

    def row(self, damage: str, setting: str) -> Row:
        """Return the measurements of a setting on one kind of damage."""
        made, first = self.made[setting], list(self.damaged).index(damage) * self.n
        x, y = self.repaired(setting, damage), self.damaged[damage]
        unlike = perceptual_distance(self.sight, to_uint8(x), to_uint8(self.shown[0]))
        clipped = None if made.clipped is None else made.clipped[first : first + self.n]
        return Row(
            damage, setting, self.unreal(x), float((x - y).square().mean().sqrt()),
            float(unlike.mean()), made.nfe, None if clipped is None else float(clipped.mean()),
        )  # fmt: skip

    @cached_property
    def rows(self) -> list[Row]:
        """All measurements."""
        return [self.row(d, s.name) for d in self.damaged for s in SETTINGS]

    @cached_property
    def untouched(self) -> list[Row]:
        """The damaged pictures themselves, and the clean ones."""
        x, rows = self.shown[0], list[Row]()
        for name, y in {**self.damaged, "none": x}.items():
            unlike = perceptual_distance(self.sight, to_uint8(y), to_uint8(x))
            rows.append(Row(name, "input", self.unreal(y), 0.0, float(unlike.mean()), 0))
        return rows

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """For each CODE setting, its distances over SDEdit's at the same realism, and who wins."""
        made: list[dict[str, Any]] = []
        for row in self.rows:
            if row.setting.startswith("SDEdit"):
                continue
            others = [r for r in self.rows if r.damage == row.damage and "SDEdit" in r.setting]
            ratio = over(row, others, "off")
            made.append({
                "damage": row.damage, "setting": row.setting, "input": ratio,
                "clean": over(row, others, "unlike"), "winner": _winner(row, others, ratio),
            })  # fmt: skip
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "pictures": self.shown[1],
            "steps": STEPS,
            "walk": WALK,
            "rate": RATE,
            "weights": self.model.details.get("weights", {}),
            "rows": [asdict(r) for r in [*self.untouched, *self.rows]],
            "at equal realism": self.verdicts,
        }


def over(row: Row, others: Sequence[Row], what: str) -> float | None:
    """Return a distance over that of SDEdit at the same realism; None off its curve."""
    curve = sorted((r.unreal, getattr(r, what)) for r in others)
    for (u0, d0), (u1, d1) in pairwise(curve):
        if u0 <= row.unreal <= u1:
            share = (row.unreal - u0) / (u1 - u0) if u1 > u0 else 0.0
            return getattr(row, what) / (d0 + share * (d1 - d0))
    return None


def _winner(row: Row, others: Sequence[Row], ratio: float | None) -> str:
    """Return who is nearer to the input at equal realism, or who alone is as real."""
    if ratio is not None:
        return "CODE" if ratio < 1 else "SDEdit"
    if row.unreal < min(r.unreal for r in others):
        return "CODE (SDEdit is nowhere as real)"
    return "SDEdit (more real at every strength)"
