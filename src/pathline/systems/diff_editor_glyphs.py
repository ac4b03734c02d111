"""Six digits anywhere on a canvas: an exact denoiser, and edits that are right or wrong.

An edit asks for one glyph at another place; what comes of it is exact if the data point nearest to
it is that glyph at that place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.data import digits
from pathline.edit.diff_editor import DiffEdited, DiffEditor, diff_edit, invert
from pathline.edit.diff_task import Laid
from pathline.edit.diff_tasks import Move
from pathline.edit.trajectory import Trajectory
from pathline.fields import Spherical
from pathline.paths import Tabulated
from pathline.solvers import grids
from pathline.steer.features import Patches

GLYPHS, SIDE, CANVAS = 6, 8, 20
PLACES = CANVAS - SIDE + 1
STD = 0.02
EDITS = 12
STRENGTH = 40.0
"""η κ."""


def stable_diffusion() -> tuple[Tabulated, tuple[float, ...]]:
    """Return the path of Stable Diffusion 1.5, and its 50 steps: labels 981, 961 … 1, 0."""
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    path = Tabulated.from_betas(roots.square().tolist())
    labels = torch.tensor([*range(981, 0, -20), 0], dtype=torch.float64)
    return path, tuple(path.time_of_label(labels).tolist())


@dataclass(frozen=True)
class Edit:
    """A glyph, where it is, and where it shall be: (row, column) of its upper left corner."""

    glyph: int
    start: tuple[int, int]
    end: tuple[int, int]

    @property
    def task(self) -> Move:
        """The edit as a task; the mask is the glyph's box."""
        mask = torch.zeros(CANVAS, CANVAS)
        (row, column), (down, right) = self.start, self.end
        mask[row : row + SIDE, column : column + SIDE] = 1
        return Move(mask, right - column, down - row)


class Glyphs:
    """The law, and what edits of it come to; computed when first asked for, and once."""

    @cached_property
    def glyphs(self) -> Tensor:
        """The first handwritten 0, 1, … 5, (6, 8, 8) in [−1, 1]."""
        data = digits.load()
        images = torch.from_numpy(data.train_images).double() / ((digits.LEVELS - 1) / 2) - 1
        labels = torch.from_numpy(data.train_labels)
        return torch.stack([images[labels == k][0] for k in range(GLYPHS)])

    @cached_property
    def points(self) -> Tensor:
        """All glyphs at all places, (1014, 1, 20, 20)."""
        made = -torch.ones(GLYPHS, PLACES, PLACES, 1, CANVAS, CANVAS, dtype=torch.float64)
        for row in range(PLACES):
            for column in range(PLACES):
                place = made[:, row, column, 0, row : row + SIDE, column : column + SIDE]
                place.copy_(self.glyphs)
        return made.flatten(0, 2)

    @cached_property
    def law(self) -> Spherical:
        """Round Gaussians of deviation 0.02 around them."""
        n = len(self.points)
        stds = torch.full((n,), STD, dtype=torch.float64)
        return Spherical(stable_diffusion()[0], self.points, stds, torch.full_like(stds, 1 / n))

    @cached_property
    def editor(self) -> DiffEditor:
        """Guided copies, without noise or time travel."""
        times = stable_diffusion()[1]
        return DiffEditor(
            steps=len(times) - 1, grid=grids.times(times), features=Patches(), strength=STRENGTH,
            kappa=1.0, eta_sde=0.0, travel=1,
        )  # fmt: skip

    @cached_property
    def edits(self) -> list[Edit]:
        """From the upper left quadrant to the lower right one."""
        u = noise.uniform(range(EDITS), (4,), stream="data", dtype=torch.float64)
        corners = (6 * u + torch.tensor([0, 0, 7, 7])).long().tolist()  # of 13 places a side
        return [Edit(i % GLYPHS, (a, b), (c, d)) for i, (a, b, c, d) in enumerate(corners)]

    def picture(self, i: int) -> Tensor:
        """Return the data of an edit, (1, 1, 20, 20)."""
        edit = self.edits[i]
        mean = self.points[self._number(edit.glyph, edit.start)]
        return mean[None] + STD * noise.normal([i], mean.shape, stream="data", dtype=mean.dtype)

    @cache  # noqa: B019 - lives as long as the run
    def inverted(self, i: int) -> Trajectory:
        """Return where an edit's picture was at every level."""
        return invert(self.law, self.picture(i), editor=self.editor)

    def edited(self, i: int, editor: DiffEditor, task: Move | None = None) -> DiffEdited:
        """Return what comes of an edit."""
        return diff_edit(
            self.law, self.picture(i), task or self.edits[i].task, editor=editor,
            inverted=(self.inverted(i),), seed=i,
        )  # fmt: skip

    def counted(self, copies: bool = True, **changes: float) -> tuple[int, int, int]:
        """Return how many edits are exact, how many stay, and how many end as another glyph.

        Args:
            copies: whether the object's noise is copied to the new place at the start.
            changes: of the editor.
        """
        exact = stayed = others = 0
        for i, edit in enumerate(self.edits):
            task = edit.task if copies else _Uncopied(edit.task.mask, edit.task.dx, edit.task.dy)
            x = self.edited(i, replace(self.editor, **changes), task).x  # type: ignore[arg-type]
            nearest = int((self.points - x).square().flatten(1).sum(1).argmin())
            exact += nearest == self._number(edit.glyph, edit.end)
            stayed += nearest == self._number(edit.glyph, edit.start)
            others += nearest // PLACES**2 != edit.glyph
        return exact, stayed, others

    @staticmethod
    def _number(glyph: int, place: tuple[int, int]) -> int:
        return (glyph * PLACES + place[0]) * PLACES + place[1]


@dataclass(frozen=True, eq=False)
class _Uncopied(Move):
    """A move whose noise stays where it is."""

    def laid(self, state: tuple[int, int], features: tuple[int, int]) -> Laid:
        return replace(super().laid(state, features), begin=lambda noisy: noisy[0].clone())
