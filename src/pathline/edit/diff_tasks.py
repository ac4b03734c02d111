"""Tasks of DiffEditor: move, resize, drag, change the looks of, paste an object.

A task says where the object is and what becomes of it. Laid on two grids, that of the state and
that of the features, it becomes an energy inside a region, another one outside of it, and the
noise to start from. With f the current features, f^ref those of the reference, ↑ the move:

    move, resize   ½ w_e/(1 + 4 S(f[cur], f^ref↑[cur]))
                   outside: ½ w_c/(1 + 4 S(f[oth], f^ref[oth])) + ½ w_k S⁺(f[vac], f^ref[vac])
                   + w_i/(1 + 4 S⁺(mean f[vac], mean f^ref[bg]))
    drag           mean over points of w_e/(1 + 4 S⁺(patches)) + w_i S⁺(what the origin has left)
    appearance     w_e/(1 + 4 S⁺(mean f[base], mean f^ref[reference]))
    paste          w_e/(1 + 4 S⁺(f[cur], f^ref↑[cur]))
    these three    outside: w_c/(1 + 4 S⁺(f[oth], f^ref[oth]))

cur is where the object will be, vac what it leaves behind, oth the rest, bg the background that
the user points at, or oth.

Paper: Mou et al. 2024 (arXiv:2402.02583); Mou et al. 2023 (arXiv:2307.02421), Sec. 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pathline.core.errors import UsageError, unknown
from pathline.edit.diff_task import Laid, Size, Task, Tuning
from pathline.edit.geometry import (
    Point,
    as_mask,
    moved,
    on_grid,
    pasted,
    patch,
    placed,
    rescaled,
)
from pathline.nets.kv_bank import Assemble, Concatenate, Replace
from pathline.steer.energy import Attract, Energy, Repel

__all__ = ["TASKS", "Appearance", "Drag", "Move", "Paste", "Resize", "task_of"]


Fill = Literal["own", "swap"]


@dataclass(frozen=True, eq=False)
class Move(Task):
    """An object goes to another place, and the place that it leaves is filled.

    Args:
        mask: (height, width), 0 and 1 or bool: the object; any size, lengths are in its pixels.
        dx: to the right.
        dy: down.
        scale: about the object's own centre.
        background: (height, width): what the vacated place shall look like; None for all the rest.
        weights: w_e, w_c, w_k, w_i.
        fill: what noise the vacated place starts from: its "own", as in the paper, of which a model
            tends to make the object again; or "swap", that of the place where the object goes,
            which would have become background.

    Raises:
        UsageError: a mask that is none, empty, or nearly everything; a scale that is not above 0.
    """

    mask: Tensor
    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    background: Tensor | None = None
    weights: tuple[float, float, float, float] = (4.0, 6.0, 0.2, 0.8)
    fill: Fill = "own"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", as_mask(self.mask))
        if self.background is not None:
            object.__setattr__(self, "background", as_mask(self.background, "background mask"))
        _check_scale(self.scale)
        if self.fill not in get_args(Fill):
            raise unknown("filling", self.fill, get_args(Fill))

    @property
    def tuning(self) -> Tuning:
        return Tuning(0.5e3, 0.08)

    def laid(self, state: Size, features: Size) -> Laid:
        warp = placed(self.mask, self.dx, self.dy, self.scale, state)
        target = moved(on_grid(self.mask, state), warp)
        object_ = on_grid(self.mask, state)
        regions = {
            "object": object_,
            "target": target,
            "vacated": object_ & ~target,
            "kept": ~(object_ | target),
            "edited": target,
        }

        def begin(noisy: Sequence[Tensor]) -> Tensor:
            z = pasted(noisy[0], warp.nearest(noisy[0]), target)
            if self.fill == "own":
                return z
            return pasted(z, warp.back.nearest(noisy[0]), regions["vacated"])

        wide = placed(self.mask, self.dx, self.dy, self.scale, features)
        views = (lambda refs: refs[0], lambda refs: [wide.bilinear(each) for each in refs[0]])
        inside, outside = self._energies(features)
        return Laid(inside, outside, target, regions, Replace(), begin, views)

    def _energies(self, size: Size) -> tuple[Energy, Energy]:
        """Return the energies on the grid of the features; view 1 is the moved reference."""
        edit, content, contrast, inpaint = self.weights
        old = on_grid(self.mask, size)
        new = moved(old, placed(self.mask, self.dx, self.dy, self.scale, size))
        rest, vacated = ~(old | new), old & ~new
        ground = rest if self.background is None else on_grid(self.background, size)
        outside = Energy()
        if bool(rest.any()):
            outside += Energy((Attract(content / 2, rest),))
        if bool(vacated.any()):
            outside += Energy((Repel(contrast / 2, vacated),))
            if bool(ground.any()):
                outside += Energy((Attract(inpaint, vacated, ground, pooled=True, safe=True),))
        return Energy((Attract(edit / 2, new, picture=1),)), outside


def Resize(mask: Tensor, scale: float, **more: Any) -> Move:
    """Return the task of an object that stays where it is and becomes larger or smaller."""
    return Move(mask, scale=scale, **more)


@dataclass(frozen=True, eq=False)
class Drag(Task):
    """Points of a picture go to other places, and what surrounds them follows.

    Args:
        points: ((x, y) from, (x, y) to) of each; x to the right and y down, in pixels.
        mask: (height, width): where anything may change; None is everywhere, for landmarks of a
            face.
        size: (height, width) of the frame that the points are in; the mask's if there is one, else
            the state's.
        weights: w_e, w_c, w_k (has no part), w_i.

    Raises:
        UsageError: no points; one outside the picture.
    """

    points: Sequence[tuple[Point, Point]] = ()
    mask: Tensor | None = None
    size: Size | None = None
    weights: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        points = tuple((_point(a), _point(b)) for a, b in self.points)
        if not points:
            raise UsageError("nothing is dragged: give points, ((x, y) from, (x, y) to) of each.")
        object.__setattr__(self, "points", points)
        if self.mask is not None:
            object.__setattr__(self, "mask", as_mask(self.mask, "editable mask"))

    @property
    def is_landmarks(self) -> bool:
        """Whether everything may change."""
        return self.mask is None

    @property
    def tuning(self) -> Tuning:
        return Tuning(3e3, 0.04, eta_sde=0.2) if self.is_landmarks else Tuning(2e3, 0.04)

    def laid(self, state: Size, features: Size) -> Laid:
        points = self._points(state)
        editable = torch.ones(state, dtype=torch.bool)
        if self.mask is not None:
            editable = on_grid(self.mask, state)
        pairs = [(patch(a, state), patch(b, state)) for a, b in points]
        starts, ends = (torch.stack(each).any(0) for each in zip(*pairs, strict=True))
        regions = {"object": starts, "target": ends, "vacated": starts & ~ends,
                   "kept": ~editable, "edited": editable}  # fmt: skip

        def begin(noisy: Sequence[Tensor]) -> Tensor:
            z = noisy[0].clone()
            for start, end in pairs:
                z[..., end.to(z.device)] = noisy[0][..., start.to(z.device)]
            return z

        inside, outside = self._energies(features)
        return Laid(inside, outside, editable, regions, Concatenate(), begin, (_first,))

    def _energies(self, size: Size) -> tuple[Energy, Energy]:
        usual = (12.0, 0.0, 0.0, 0.4) if self.is_landmarks else (4.0, 6.0, 0.0, 0.2)
        edit, content, _, inpaint = self.weights or usual
        points = self._points(size)
        terms: list[Attract | Repel] = []
        for a, b in points:
            start, end = patch(a, size), patch(b, size)
            terms.append(Attract(edit / len(points), end, start, safe=True))
            left = start & ~end
            if bool(left.any()) and inpaint:
                terms.append(Repel(inpaint / len(points), left))
        rest = None if self.mask is None else ~on_grid(self.mask, size)
        kept = Energy() if rest is None else Energy((Attract(content, rest, safe=True),))
        return Energy(tuple(terms)), kept

    def _points(self, size: Size) -> list[tuple[Point, Point]]:
        """Return the points on a grid.

        Raises:
            UsageError: one lies outside the picture.
        """
        whole = size if self.mask is None else (self.mask.shape[0], self.mask.shape[1])
        frame = self.size or whole
        for x, y in (each for pair in self.points for each in pair):
            if not (-0.5 <= x < frame[1] - 0.5 and -0.5 <= y < frame[0] - 0.5):
                raise UsageError(
                    f"the point ({x:g}, {y:g}) lies outside the picture, whose x goes from 0 to "
                    f"{frame[1] - 1} and whose y from 0 to {frame[0] - 1}."
                )
        (ours, theirs) = (rescaled([p[i] for p in self.points], frame, size) for i in (0, 1))
        return list(zip(ours, theirs, strict=True))


@dataclass(frozen=True, eq=False)
class Appearance(Task):
    """An object keeps its shape, and looks like that of another picture.

    Args:
        mask: (height, width): the object.
        reference_mask: (height, width): the object of the other picture that it shall look like.
        weights: w_e and w_c.
    """

    mask: Tensor
    reference_mask: Tensor
    weights: tuple[float, float] = (3.5, 5.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", as_mask(self.mask))
        object.__setattr__(self, "reference_mask", as_mask(self.reference_mask, "reference mask"))

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def tuning(self) -> Tuning:
        return Tuning(2e3, 0.04, guidance=5.0, last_banked=35)

    def laid(self, state: Size, features: Size) -> Laid:
        object_ = on_grid(self.mask, state)
        regions = {"object": object_, "target": object_, "kept": ~object_, "edited": object_}
        edit, content = self.weights
        here, there = on_grid(self.mask, features), on_grid(self.reference_mask, features)
        inside = Attract(edit, here, there, 1, pooled=True, safe=True)
        outside = Attract(content, ~here, safe=True)
        shown = on_grid(self.reference_mask, state)
        return Laid(
            Energy((inside,)), Energy((outside,)), object_, regions,
            Assemble(torch.stack((~object_, shown))), lambda noisy: noisy[0].clone(),
            (_first, lambda refs: refs[1]),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Paste(Task):
    """An object of another picture comes into this one.

    Args:
        mask: (height, width): the object in the other picture.
        dx, dy, scale: where it goes from its place there, as for `Move`.
        weights: w_e and w_c.
    """

    mask: Tensor
    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    weights: tuple[float, float] = (4.0, 6.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", as_mask(self.mask))
        _check_scale(self.scale)

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def tuning(self) -> Tuning:
        return Tuning(1.5e3, 0.04, last_banked=35)

    def laid(self, state: Size, features: Size) -> Laid:
        warp = placed(self.mask, self.dx, self.dy, self.scale, state)
        shown = on_grid(self.mask, state)
        target = moved(shown, warp)
        regions = {"object": shown, "target": target, "kept": ~target, "edited": target}
        edit, content = self.weights
        wide = placed(self.mask, self.dx, self.dy, self.scale, features)
        here = moved(on_grid(self.mask, features), wide)
        inside = Energy((Attract(edit, here, picture=1, safe=True),))
        outside = Energy((Attract(content, ~here, safe=True),))
        return Laid(
            inside, outside, target, regions, Assemble(torch.stack((~target, shown))),
            lambda noisy: pasted(noisy[0], warp.nearest(noisy[1]), target),
            (_first, lambda refs: [wide.bilinear(each) for each in refs[1]]),
        )  # fmt: skip


TASKS: Mapping[str, Callable[..., Task]] = {
    "move": Move,
    "resize": Resize,
    "drag": Drag,
    "appearance": Appearance,
    "paste": Paste,
}
"""Every task, by name."""

_TAKES = {
    "move": ("mask", "dx", "dy", "scale", "background", "fill"),
    "resize": ("mask", "scale", "background", "fill"),
    "drag": ("points", "mask", "size"),
    "appearance": ("mask", "reference_mask"),
    "paste": ("mask", "dx", "dy", "scale"),
}
_NEEDS = {
    "move": ("mask",),
    "resize": ("mask", "scale"),
    "drag": ("points",),
    "appearance": ("mask", "reference_mask"),
    "paste": ("mask",),
}


def task_of(name: str, **arguments: Any) -> Task:
    """Return the task of a name.

    Args:
        name: move, resize, drag, appearance or paste.
        arguments: those of the task; None is as if it was not given.

    Raises:
        UsageError: an unknown task; an argument that it does not take, or lacks.

    Example:
        >>> mask = torch.zeros(8, 8)
        >>> mask[1:3, 1:3] = 1
        >>> type(task_of("resize", mask=mask, scale=1.5)).__name__
        'Move'
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    given = {k: v for k, v in arguments.items() if v is not None}
    extra = [k for k in given if k not in _TAKES[name]]
    if extra:
        raise UsageError(
            f"the task {name!r} takes {', '.join(_TAKES[name])}, and was given {', '.join(extra)}."
        )
    missing = [k for k in _NEEDS[name] if k not in given]
    if missing:
        raise UsageError(f"the task {name!r} needs {', '.join(missing)}.")
    return TASKS[name](**given)


def _first(refs: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    return refs[0]


def _point(point: Sequence[float]) -> Point:
    if len(point) != 2:
        raise UsageError(f"a point is (x, y), and not {tuple(point)}.")
    return float(point[0]), float(point[1])


def _check_scale(scale: float) -> None:
    if not scale > 0:
        raise UsageError(f"scale={scale}: the object's size is multiplied by it; above 0.")
