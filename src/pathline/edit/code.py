"""CODE: confident ordinary differential editing, blind repair with nothing but a model.

A damaged picture is carried up the probability flow, its likelihood is raised by Langevin steps at
chosen depths, and the flow carries it back. Three knobs are apart that SDEdit has in one: the depth
(realism), the length of the Langevin walk (fidelity), and the width η of an interval to which
states are clipped on the way up, which repairs by itself what no data could have come to.

    y + 0.01 n  →  encode to L, clipped to ±(α + ησ)  →  Langevin blocks at L − 1, …  →  decode

With clipping the way down begins at the deepest state, so that all clipping has acted; without it
at the first correction, with the state that was stored there. x̂_0 is thresholded dynamically on
both ways and in the Langevin steps.

How far the input is forgotten at a depth is Σε/σ²; with ε ≤ 0.05 σ² the bias of the steps is a few
per cent of a variance. The published code has no such cap.

Paper: van Delft, Martorella & Alahi 2024 (arXiv:2408.12418).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError, unknown
from pathline.edit.clip import Confidence
from pathline.edit.edited import Edited, check_picture, seeds_of
from pathline.edit.inverter import Inverter
from pathline.edit.latent_edit import Acted, EditLog, Latent, latent_edit
from pathline.edit.ways import method_of, rising
from pathline.fields import Field
from pathline.fields.denoiser import denoiser_in
from pathline.paths import GaussianPath
from pathline.solvers import Grid, Solver
from pathline.solvers.langevin import AnnealedBlocks
from pathline.solvers.solve import Guide
from pathline.steer import DynamicThreshold
from pathline.steer import Guide as Composed

__all__ = ["THRESHOLD", "CodeLog", "DepthLog", "Evenly", "StepSizes", "code"]

THRESHOLD = DynamicThreshold(0.98, most=1.3)
"""The thresholding of x̂_0 that the paper's code has, for data in [−1, 1]."""
CAP = 0.05
"""The most that ε may be, in σ² of its level."""
BEYOND = 1.5
"""How far outside of the data's range a damaged picture may lie."""
JITTER = 0.01
STEPS = 200

Over = Literal["depth", "sigma", "flat"]


@dataclass(frozen=True)
class StepSizes:
    """Absolute steps ε over the depths, as the published code has them.

        depth   ε(i) = base · 100^(1 − i/(N − 1))
        sigma   ε(i) = base · σ_L/σ_i
        flat    ε(i) = base

    Args:
        base: of the deepest level; shallower steps are capped at 0.05 σ².
        over: how it changes with the depth.
    """

    base: float
    over: Over = "depth"

    def __post_init__(self) -> None:
        _check_positive(self.base)
        if self.over not in get_args(Over):
            raise unknown("schedule of steps", self.over, get_args(Over))

    def at(self, index: int, n: int, sigma: float, deepest: float) -> float:
        """Return ε at grid point `index` of 0 to n, where the noise is `sigma`."""
        if self.over == "flat":
            return self.base
        if self.over == "sigma":
            return self.base * deepest / sigma
        return self.base * 100 ** (1 - index / max(n - 1, 1))


@dataclass(frozen=True)
class Evenly:
    """k correction depths, evenly spaced from `least` to L − 1.

    Args:
        k: how many.
        least: the shallowest.
    """

    k: int
    least: int = 1

    def __post_init__(self) -> None:
        if self.k < 1 or self.least < 1:
            raise UsageError(f"{self}: one depth or more, of grid points from 1 on.")

    def depths(self, depth: int) -> tuple[int, ...]:
        """Return them for L, the deepest first."""
        last = depth - 1
        if self.k == 1:
            return (last,)
        if self.least > last:
            raise UsageError(f"the least depth {self.least} is deeper than L − 1 = {last}.")
        share = (last - self.least) / (self.k - 1)
        return tuple(sorted({round(self.least + j * share) for j in range(self.k)}, reverse=True))


@dataclass(frozen=True)
class DepthLog:
    """What happened at a correction depth.

    Args:
        index: the grid point.
        t: its time.
        eps: ε of the first block.
        before: the norm of the score at the start, (batch · samples,).
        after: at the end.
        restarts: blocks that ran away and were begun again with a quarter of ε.
    """

    index: int
    t: float
    eps: float
    before: Tensor
    after: Tensor
    restarts: Tensor


class CodeLog(NamedTuple):
    """What happened on the way.

    Args:
        clipped: the share of entries that were outside at each grid point of the way up but data,
            (depth, batch); None without clipping.
        depths: the corrections, deepest first.
    """

    clipped: Tensor | None
    depths: tuple[DepthLog, ...]


def code(  # noqa: PLR0913 - keyword-only: each is one idea of the house
    model: Field,
    y: Tensor,
    *,
    depth: int = 80,
    at: Sequence[int] | Evenly | None = None,
    eps_rel: float = 1e-3,
    eps: StepSizes | None = None,
    n: int = 200,
    eta: float | None = 1.7,
    data_range: tuple[float, float] | None = (-1.0, 1.0),
    threshold: DynamicThreshold | None = THRESHOLD,
    jitter: float | None = None,
    blocks: AnnealedBlocks | None = None,
    solver: Inverter | Solver | str = "ddim",
    grid: Grid | str | Sequence[float] | None = None,
    steps: int | None = None,
    guide: Guide | None = None,
    samples: int = 1,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    check: bool = False,
    keep: bool = False,
    **cond: Any,
) -> Edited:
    """Repair pictures of which nobody knows how they were damaged.

    Choose a deep L (200 of 200) and small steps for global changes (fog, contrast), a shallow one
    (20 to 40) and larger steps for fine ones (noise, blur); clipping alone (n = 0) for holes.

    Args:
        model: a denoiser.
        y: damaged data, (batch, *state).
        depth: L, the grid point up to which data are encoded, 1 to N.
        at: the correction depths, each below L; (L − 1,) if None, `Evenly(k)` for k of them.
        eps_rel: e, the Langevin step in σ² of its level, above 0 and at most 0.05.
        eps: absolute steps instead, as the published code has them.
        n: Langevin steps at each depth; 0 for none.
        eta: η of the clipping; None for none.
        data_range: the least and the most that entries of data can be.
        threshold: of x̂_0, on both ways; None for none. Its limit follows `data_range`.
        jitter: the deviation of noise that is added first, in the data's units; None for 0.01, or σ
            of the first grid point if that is less: the network takes more for damage.
        blocks: the Langevin blocks, instead of n steps in four.
        solver, grid, steps, guide: as for `latent_edit`; 200 DDIM steps even in t.
        samples, seed, seeds: answers to each picture. They share the way up.
        check: whether the round trip without corrections is made, and its error measured.
        keep: whether the result holds every latent of the way up.
        cond: the condition, in the user's words; none is fine for a model that has a null one.

    Raises:
        UsageError: data of another scale; a depth, step or width that cannot be.

    Returns:
        The answers; `log` is a `CodeLog`.

    Cost: L evaluations up, for each picture, and for each answer L down and n + 4 at each depth.
    """
    check_picture(model, y)
    clip = _clip(eta, data_range, y)
    _check_told(model, cond)
    times = rising(model, "uniform" if grid is None else grid, _count(grid, steps), 1.0)
    chosen = _corrections(depth, at, len(times) - 1)
    walk = AnnealedBlocks(n) if blocks is None else blocks
    size = _Sizes(eps_rel, eps, len(times) - 1, chosen[0])
    size.check(model.path, times, chosen)
    limited = _limited(threshold, data_range)
    whole = _together(guide, limited)
    method = method_of(solver)

    def clipped(latent: Latent) -> Acted:
        assert clip is not None
        return Acted(*clip(latent.x, latent.path, latent.t))

    def corrected(latent: Latent) -> Acted:
        e = size(latent.index, latent.way.levels.sigma)
        ran = walk.run(
            latent.score, latent.x, e, latent.sigma, seeds=latent.seeds, level=latent.index
        )
        told = DepthLog(latent.index, latent.t, e, ran.before, ran.after, ran.restarts)
        return Acted(ran.x, told)

    firsts = seeds_of(len(y), samples, seed, seeds)[::samples]
    begun = _jittered(y, _deviation(jitter, model, times[0]), firsts)
    made = latent_edit(
        model, begun, corrected if walk.n else _alone, solver=method,
        depth=chosen[0] if clip is None and walk.n else depth,
        at=chosen if walk.n else (), rise=None if clip is None else clipped, grid=times[::-1],
        guide=whole, samples=samples, seed=seed, seeds=seeds, check=check, keep=keep, **cond,
    )  # fmt: skip
    return replace(made, log=_log(made.log))


def _alone(latent: Latent) -> Tensor:
    return latent.x


def _log(log: EditLog) -> CodeLog:
    rise = [log.rise[i] for i in sorted(log.rise)]
    depths = tuple(log.acts[i] for i in sorted(log.acts, reverse=True))
    return CodeLog(torch.stack(rise) if rise else None, depths)


def _deviation(jitter: float | None, model: Field, t: float) -> float:
    """Return the deviation of the noise that is added first."""
    assert model.path is not None
    return min(JITTER, float(model.path.sigma(t))) if jitter is None else jitter


def _jittered(y: Tensor, jitter: float, seeds: tuple[int, ...]) -> Tensor:
    if not jitter >= 0:
        raise UsageError(f"jitter={jitter}: noise has a deviation of 0 or more.")
    if jitter == 0:
        return y
    z = noise.normal(seeds, y.shape[1:], stream="initial", dtype=y.dtype, device=y.device)
    return y + jitter * z


def _clip(
    eta: float | None, data_range: tuple[float, float] | None, y: Tensor
) -> Confidence | None:
    """Return the interval; refuse data that lie far outside of their range."""
    if data_range is None:
        if eta is not None:
            raise UsageError(
                "clipping needs what data can be at all: data_range=(least, most); or eta=None "
                "for none."
            )
        return None
    low, high = data_range
    largest = BEYOND * max(abs(low), abs(high))
    found = float(y.detach().abs().max())
    if found > largest:
        raise UsageError(
            f"the data reach to ±{found:.4g}, and pictures of this model lie in [{low:g}, "
            f"{high:g}]: scale them (pixels / 127.5 − 1), or say data_range=(least, most)."
        )
    return None if eta is None else Confidence(eta, (low, high))


def _limited(
    threshold: DynamicThreshold | None, data_range: tuple[float, float] | None
) -> DynamicThreshold | None:
    """Return the threshold for the data's range, if it is the usual one."""
    if threshold is None or threshold is not THRESHOLD or data_range is None:
        return threshold
    largest = max(map(abs, data_range))
    return replace(threshold, limit=largest, most=threshold.most * largest)


def _together(guide: Guide | None, limited: DynamicThreshold | None) -> Guide | None:
    """Return the guide of the user, and the threshold behind it."""
    if guide is None or limited is None:
        return limited if guide is None else guide
    if isinstance(guide, Composed):
        return guide & limited
    return lambda field: limited(guide(field))


def _check_told(model: Field, cond: Any) -> None:
    """Refuse a conditional model without a condition, where it has not even a null one."""
    denoiser = denoiser_in(model)
    if denoiser is None or cond or denoiser.encode is None or denoiser.is_conditional:
        return
    if denoiser.details.get("condition", "unknown") is None:  # its folder says so: it takes none
        return
    raise UsageError(
        "this model was trained with a condition only, and there is none: say what the picture "
        "shows (text=...)."
    )


def _count(grid: Grid | str | Sequence[float] | None, steps: int | None) -> int | None:
    return STEPS if steps is None and (grid is None or isinstance(grid, str)) else steps


def _corrections(depth: int, at: Sequence[int] | Evenly | None, n: int) -> tuple[int, ...]:
    """Return the correction depths, the deepest first."""
    if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= n:
        raise UsageError(
            f"L = {depth}: the depth is a grid point from 1 (almost data) to {n} (noise)."
        )
    if isinstance(at, Evenly):
        return at.depths(depth)
    chosen = (max(depth - 1, 1),) if at is None else tuple(sorted(set(at), reverse=True))
    for index in chosen:
        if not 1 <= index <= depth:
            raise UsageError(
                f"a correction at grid point {index}: corrections are made from 1 up to L = "
                f"{depth}, and not deeper than data are encoded."
            )
    return chosen


def _check_positive(size: float) -> None:
    if not size > 0:
        raise UsageError(f"ε = {size:g}: a Langevin step is longer than 0.")


class _Sizes:
    """The Langevin step at each depth."""

    def __init__(self, relative: float, absolute: StepSizes | None, n: int, deepest: int) -> None:
        self._relative, self._absolute, self._n, self._deepest = relative, absolute, n, deepest

    def __call__(self, index: int, sigma: Sequence[float]) -> float:
        """Return ε at a grid point, capped."""
        if self._absolute is None:
            return self._relative * sigma[index] ** 2
        e = self._absolute.at(index, self._n, sigma[index], sigma[self._deepest])
        return min(e, CAP * sigma[index] ** 2)

    def check(
        self, path: GaussianPath | None, times: Sequence[float], depths: Sequence[int]
    ) -> None:
        """Refuse steps that are not above 0, or above the cap at the deepest level."""
        assert path is not None
        _check_positive(self._relative)
        deep = depths[0]
        sigma = path.sigma(torch.tensor(times, dtype=torch.float64)).tolist()
        cap, e = CAP * sigma[deep] ** 2, self._relative * sigma[deep] ** 2
        if self._absolute is not None:
            e = self._absolute.at(deep, self._n, sigma[deep], sigma[self._deepest])
        if e > cap * (1 + 1e-12):
            raise UsageError(
                f"ε = {e:.3g} at grid point {deep}, where σ = {sigma[deep]:.3g}, is above its cap "
                f"of 0.05 σ² = {cap:.3g}: steps that long do not sample the level. Take smaller "
                f"ones, and more of them."
            )
