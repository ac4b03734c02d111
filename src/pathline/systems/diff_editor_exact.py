"""What DiffEditor's parts are by construction: regional noise, separated gradients, energies."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.core import noise
from pathline.fields import Gaussian
from pathline.paths import VPLinear
from pathline.solvers import DDIM, Plan, grids, solve
from pathline.solvers.execute import complete
from pathline.steer.energy import Attract, Energy, attraction, separated, slope
from pathline.steer.regional import Regional
from pathline.systems.diff_editor_glyphs import Glyphs, stable_diffusion

ETAS = (0.2, 0.4, 1.0)
VARIANCES = (0.05, 0.1, 0.2, 0.5, 1.0)
WINDOW = range(11, 20)
"""Of 50 steps, those with noise."""


class Exact:
    """The measurements, computed when first asked for, and once."""

    def __init__(self, glyphs: Glyphs) -> None:
        self._glyphs = glyphs

    def leak(self) -> float:
        """Return by how much a regional step is off the ODE's step outside the mask, at most."""
        path, times = stable_diffusion()
        law = self._glyphs.law
        x = noise.normal(range(4), law.shape, dtype=torch.float64)
        mask = torch.zeros(law.shape, dtype=torch.bool)
        mask[:, 3:11, 5:13] = True
        off = 0.0
        for k in WINDOW:
            step = grids.times(times[k : k + 2])
            state = (
                float(path.alpha(times[k])) * self._glyphs.points[:4]
                + float(path.sigma(times[k])) * x
            )
            plain = solve(law, state, solver=DDIM(), grid=step).x
            made = solve(law, state, solver=Regional(DDIM(0.4), DDIM(), mask), grid=step,
                         seeds=range(4)).x  # fmt: skip
            if not bool((made != plain)[:, mask].any()):
                raise RuntimeError("a regional step drew no noise inside")
            off = max(off, float((made - plain)[:, ~mask].abs().max()))
        return off

    def variance_off(self) -> float:
        """Return how far the variance inside is off the marginal's after the window, at most."""
        return max(self._variance_off(eta, c) for eta in ETAS for c in VARIANCES)

    def _variance_off(self, eta: float, data: float) -> float:
        """Return the same for one amount of noise and one variance of Gaussian data.

        Steps of such data are linear, x ← a x + c n, and so v ← a² v + c².
        """
        path = VPLinear()
        times = grids.uniform(50).times(path)
        law = Gaussian(path, torch.zeros(2, dtype=torch.float64),
                       torch.full((2,), data, dtype=torch.float64))  # fmt: skip
        mask = torch.tensor([True, False])

        def marginal(t: float) -> float:
            return float(path.alpha(t) ** 2 * data + path.sigma(t) ** 2)

        v = marginal(times[0])
        for k, (s, t) in enumerate(pairwise(times[: WINDOW.stop + 1])):
            rule = Regional(DDIM(eta), DDIM(), mask) if k in WINDOW else DDIM()
            plan = rule.plan(path, grids.times((s, t)))
            kept, drawn = (_response(law, plan, s, x, z) for x, z in ((1.0, 0.0), (0.0, 1.0)))
            v = kept**2 * v + drawn**2
        return abs(v / marginal(times[WINDOW.stop]) - 1)

    @cached_property
    def _energies(self) -> tuple[Tensor, Tensor, Energy, Energy, list[Tensor]]:
        """Return a state, the region, energies inside and outside of it, and a reference."""
        x, other = noise.normal([0, 1], (2, 8, 8), stream="data", dtype=torch.float64).split(1)
        mask = torch.zeros(8, 8, dtype=torch.bool)
        mask[1:5, 2:6] = True
        return (
            x,
            mask,
            Energy((Attract(4.0, mask),)),
            Energy((Attract(6.0, ~mask, safe=True),)),
            [_features(other)],
        )

    def gradient_leak(self) -> float:
        """Return the largest part of a gradient in the other one's region."""
        x, mask, inside, outside, ref = self._energies
        x = x.clone().requires_grad_()
        found: list[Tensor] = []
        for energy in (inside, outside):
            found.append(slope(energy([_features(x)], [ref]), x))
        first, second = found
        maps = [_features(x)]
        both = separated(inside(maps, [ref]), outside(maps, [ref]), x, mask)
        if not (first[..., ~mask].abs().max() > 0 and second[..., mask].abs().max() > 0):
            raise RuntimeError("the energies do not reach across, so nothing would be shown")
        off = torch.where(mask, both - first, both - second)
        return float(off.abs().max())

    def gradient_off(self) -> float:
        """Return how far separated gradients are off central differences, relatively."""
        x, mask, inside, outside, ref = self._energies
        at = x.clone().requires_grad_()
        maps = [_features(at)]
        found = separated(inside(maps, [ref]), outside(maps, [ref]), at, mask)
        h, differences = 1e-5, torch.zeros_like(x)
        for place in range(x.numel()):
            shift = torch.zeros_like(x)
            shift.view(-1)[place] = h
            energy = inside if bool(mask.expand_as(x).flatten()[place]) else outside
            ends = [float(energy([_features(x + s * shift)], [ref])) for s in (1, -1)]
            differences.view(-1)[place] = (ends[0] - ends[1]) / (2 * h)
        return float((found - differences).norm() / differences.norm())

    @staticmethod
    def rises() -> int:
        """Return at how many places w/(1 + 4 S) rises with S, from −0.2 to 1."""
        values = attraction(torch.linspace(-0.2, 1, 100_001, dtype=torch.float64))
        return int((values.diff() >= 0).sum())

    @staticmethod
    def pole() -> float:
        """Return 1/|1 + 4 S| next to S = −1/4, which is not held."""
        s = torch.tensor(-0.25 + 1e-9, dtype=torch.float64)
        return float(1 / (1 + 4 * s).abs())

    @staticmethod
    def most(safe: bool) -> float:
        """Return the largest attraction of weight 1 at any S."""
        return float(
            attraction(torch.linspace(-1, 1, 100_001, dtype=torch.float64), safe=safe).max()
        )


def _response(law: Gaussian, plan: Plan, t: float, x: float, z: float) -> float:
    """Return what the rows of a step make of a state and of its noise, in the first entry."""
    like = torch.ones(1, 2, dtype=torch.float64)
    end = complete(plan, lambda _, state: law(state, t).x0, [x * like], draw=lambda _: z * like)
    return float(end[0, 0])


def _features(x: Tensor) -> Tensor:
    """Return three smooth features of 5 × 5 pixels, so that regions see across their border."""
    kernels = noise.normal([7], (3, x.shape[1], 5, 5), stream="probe", dtype=x.dtype)[0]
    return torch.tanh(F.conv2d(x, kernels / 5, padding=2)) + 1.2
