"""Neural differential equations, the numerical base: what claims 1 to 6 read, in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core import bridge, noise
from pathline.core.brownian import Brownian
from pathline.fields import CDE, SDE, Field, VectorField
from pathline.learn.path_laws import with_path_kl
from pathline.nets.implicit import DEQ, FixedPoint, TanhLayer
from pathline.nets.vector_fields import NoiseNet, ODENet
from pathline.paths import controls
from pathline.paths.controls import Control
from pathline.solvers import AdaptiveRK, grids, pace, solve
from pathline.solvers.adjoints import Continuous
from pathline.solvers.events import Event
from pathline.solvers.order import fitted_slope

TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
LARGE = 1e9
"""A tolerance that every step meets."""


def rotation(x: Tensor, t: Tensor) -> Tensor:
    """Return x rotated by a right angle; its flow turns once in 2π."""
    del t
    return x @ TURN


def turned(t: float) -> Tensor:
    """Return where (1, 0) is at time t."""
    return torch.tensor([[math.cos(t), math.sin(t)]], dtype=torch.float64)


# -- 1: reversible Heun


@cache
def nets() -> tuple[Field, Field]:
    """Return a neural ODE and a neural Stratonovich SDE in four dimensions."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        f = ODENet(4, timed=True).double()
        g = NoiseNet(4, 3).double()
    return VectorField(f), SDE(f, g, noise="general", sde_type="stratonovich", channels=3)


def gradient(field: Field, solver: str, adjoint: Any, n: int) -> tuple[list[Tensor], float | None]:
    """Return the gradients in start and weights, and how far back to the start was off."""
    x = noise.normal(range(8), (4,), dtype=torch.float64).requires_grad_()
    grid = grids.uniform(n, start=0.0, end=4.0)
    net = getattr(field, "function", None) or getattr(field, "drift")  # noqa: B009
    weights = list(net.parameters())
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sol = solve(field, x, solver=solver, grid=grid, adjoint=adjoint, seed=0)
        found = torch.autograd.grad(sol.x.square().sum(), [x, *weights])
    return list(found), None if sol.backward is None else sol.backward.drift


def unlike(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return ‖a − b‖/‖b‖ of gradients, all together."""
    off = torch.cat([(p - q).flatten() for p, q in zip(a, b, strict=True)])
    return float(off.norm() / torch.cat([q.flatten() for q in b]).norm())


def round_trip(which: int, counts: Sequence[int]) -> float:
    """Return the largest relative distance of the start that was carried back."""
    drifts = (gradient(nets()[which], "reversible_heun", "reversible", n)[1] for n in counts)
    return max(math.inf if d is None else d for d in drifts)


def reversible_off(which: int, n: int = 100) -> float:
    """Return how far the reversible gradient is from backpropagation, relatively."""
    one, other = (gradient(nets()[which], "reversible_heun", how, n)[0]
                  for how in ("reversible", "direct"))  # fmt: skip
    return unlike(one, other)


@cache
def continuous_off(n: int) -> float:
    """Return how far Heun's continuous adjoint is from backpropagation, relatively."""
    one = gradient(nets()[0], "heun", Continuous("heun", probe=0), n)[0]
    return unlike(one, gradient(nets()[0], "heun", "direct", n)[0])


# -- 2: orders


def turning_error(solver: Any, n: int, end: float = 2.0) -> float:
    """Return the error of the rotation after so many steps."""
    grid = grids.uniform(n, start=0.0, end=end)
    return float((solve(rotation, turned(0.0), solver=solver, grid=grid).x - turned(end)).norm())


def tsit5(first: float | None = None) -> AdaptiveRK:
    """Return Tsit5 that takes one step from each grid point to the next."""
    return AdaptiveRK(rtol=LARGE, atol=LARGE, method="tsit5", first=first)


def inside_error(h: float) -> float:
    """Return the largest error of Tsit5's interpolant within one step."""
    sol = solve(rotation, turned(0.0), solver=tsit5(h), grid=[0.0, h], dense=True)
    at = torch.linspace(0, h, 21, dtype=torch.float64)[1:-1]
    made = sol.at(at[:, None])[:, 0]
    return float((made - torch.cat([turned(float(t)) for t in at])).norm(dim=1).max())


def interpolant_falls() -> float:
    """Return by what a step of half the size divides the error inside; the least of three."""
    errors = [inside_error(0.8 / 2**k) for k in range(4)]
    return min(a / b for a, b in zip(errors, errors[1:], strict=False))


@cache
def strong_order(solver: str, paths: int = 400) -> float:
    """Return the fitted strong order on geometric Brownian motion, over four halvings."""
    r, s = 0.5, 0.8
    path = Brownian(0.0, 1.0, tuple(range(paths)), (1,), depth=10, has_area=True)
    made = SDE(lambda x, t: r * x, lambda x, t: s * x, noise="diagonal", sde_type="ito",
               brownian=path)  # fmt: skip
    kind = "ito" if solver in ("euler_maruyama", "milstein", "srk") else "stratonovich"
    sde = getattr(made, kind)()
    exact = ((r - s**2 / 2) + s * path(0.0, 1.0)).exp()
    counts, errors = [32, 64, 128, 256, 512], list[float]()
    for n in counts:
        grid = grids.uniform(n, start=0.0, end=1.0)
        end = solve(sde, torch.ones(paths, 1, dtype=torch.float64), solver=solver, grid=grid,
                    seed=0).x  # fmt: skip
        errors.append(float((end - exact).square().mean().sqrt()))
    return fitted_slope(counts, errors)


# -- 3: Brownian motion


@cache
def motion() -> Brownian:
    """Return 20 000 paths with their areas."""
    return Brownian(0.0, 2.0, tuple(range(20_000)), (1,), depth=10, has_area=True)


def asked_again() -> float:
    """Return how many answers differ when they are asked again, elsewhere or in another order."""
    times = [0.1 * k for k in range(21)]
    path = Brownian(0.0, 2.0, tuple(range(500)), (1,), depth=10, has_area=True)
    together, backwards = path.at(times), path.at(times[::-1]).flip(0)
    alone = Brownian(0.0, 2.0, (7,), (1,), depth=10, has_area=True).at([times[7]])[0, 0]
    off = (together != path.at(times)).sum() + (together != backwards).sum()
    return float(off + (alone != together[7, 7]).sum())


def additivity_off() -> float:
    """Return the largest |W_{s,t} − W_{s,r} − W_{r,t}|."""
    w = motion()
    return max(float((w(s, t) - w(s, r) - w(r, t)).abs().max())
               for s, r, t in ((0.0, 0.3, 1.1), (0.25, 0.5, 2.0), (0.123, 0.6, 0.77)))  # fmt: skip


def join_off() -> float:
    """Return the largest error of ℓH = l H_l + r H_r + ½ (r W_l − l W_r): split, and asked."""
    x = noise.normal(range(1000), (2,), dtype=torch.float64).T[..., None]
    worst = 0.0
    for left, right in ((0.3, 0.9), (0.5, 0.5), (1e-3, 1.0)):
        w, h = noise.normal(range(5000, 6000), (2,), dtype=torch.float64).T[..., None]
        whole = bridge.Piece(w * (left + right) ** 0.5, h * ((left + right) / 12) ** 0.5)
        parts = bridge.halves(whole, left, right, x)
        again = bridge.joined(*parts, left, right)
        assert again.h is not None and whole.h is not None
        worst = max(worst, float((again.h - whole.h).abs().max()),
                    float((again.w - whole.w).abs().max()))  # fmt: skip
    for s, r, t in ((0.0, 0.3, 1.1), (0.25, 0.5, 2.0)):
        parts, whole = motion().over((s, r, t)), motion().over((s, t))
        assert parts.h is not None and whole.h is not None
        ends = [bridge.Piece(parts.w[i], parts.h[i]) for i in range(2)]
        again = bridge.joined(ends[0], ends[1], r - s, t - r)
        assert again.h is not None
        worst = max(worst, float((again.h - whole.h[0]).abs().max()))
    return worst


def variance_off(of_area: bool) -> float:
    """Return by how many standard errors a variance is off, at most over three intervals."""
    worst = 0.0
    for s, t in ((0.0, 1.0), (0.3, 0.45), (0.123, 1.9)):
        piece = motion().over((s, t))
        assert piece.h is not None
        x, exact = (piece.h, (t - s) / 12) if of_area else (piece.w, t - s)
        spread = exact * math.sqrt(2 / x.numel())
        worst = max(worst, abs(float(x.square().mean()) - exact) / spread)
    return worst


def area_correlation() -> float:
    """Return the correlation of W and H over an interval."""
    piece = motion().over((0.3, 1.7))
    assert piece.h is not None
    return abs(float(torch.corrcoef(torch.stack((piece.w.flatten(), piece.h.flatten())))[0, 1]))


# -- 4: control paths


def observed(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return 8 series of 12 observations at uneven times, and the times."""
    steps = noise.uniform([seed], (12,), stream="data", dtype=torch.float64)[0] + 0.2
    x = noise.normal(range(8), (12, 2), stream="data", dtype=torch.float64)
    return x, steps.cumsum(0)


def knots_off() -> float:
    """Return by how much a Hermite path misses its knots, from both sides."""
    x, times = observed()
    path = controls.hermite(x, times)
    right = [(path.value(t) - x[:, i]).abs().max() for i, t in enumerate(times[:-1])]
    left = [(path.value(times[i], "left") - x[:, i]).abs().max() for i in range(1, len(times))]
    return float(torch.stack(right + left).max())


def slopes_off() -> float:
    """Return by how much the derivative at a knot misses the chord before it, from both sides."""
    x, times = observed()
    path, chords = controls.hermite(x, times), x.diff(dim=1) / times.diff()[:, None]
    before = [chords[:, 0], *(chords[:, i - 1] for i in range(1, len(times) - 1))]
    off = [(path.derivative(t) - b).abs().max() for t, b in zip(times[:-1], before, strict=True)]
    off += [(path.derivative(times[i], "left") - chords[:, i - 1]).abs().max()
            for i in range(1, len(times))]  # fmt: skip
    return float(torch.stack(off).max())


def influence(
    make: Callable[[Tensor, Tensor], Control], k: int, until: Callable[[int], float]
) -> float:
    """Return by how much a change of x_k moves a path before a time."""
    x, times = observed()
    other = x.clone()
    other[:, k] += 1.0
    at = torch.linspace(float(make(x, times).start), until(k), 200, dtype=torch.float64)[:-1]
    pair = make(x, times), make(other, times)
    return max(float((pair[0].value(t) - pair[1].value(t)).abs().max()) for t in at)


def hermite_influence() -> float:
    """Return by how much x_k moves a Hermite path before t_(k−1)."""
    times = observed()[1]
    return influence(controls.hermite, 5, lambda k: float(times[k - 1]))


def rectilinear_influence() -> float:
    """Return by how much x_k moves a rectilinear path before the knot at which it is seen."""
    return influence(
        lambda x, t: controls.rectilinear(controls.with_time(x, t)), 5, lambda k: 2.0 * k - 1.0
    )


def reparametrisation_off() -> float:
    """Return how much a CDE's end depends on how fast a path is walked along."""
    points = noise.normal(range(4), (6, 2), stream="data", dtype=torch.float64)
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 6), nn.Tanh()).double()
    ends = list[Tensor]()
    for times in (torch.arange(6.0), torch.tensor([0.0, 0.2, 1.7, 2.0, 4.5, 5.0])):
        control = controls.linear(points, times.double())
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # no channel is time: that is the point
            field = CDE(lambda z, t: net(z).unflatten(1, (3, 2)), control)
            solver = AdaptiveRK(rtol=1e-11, atol=1e-11, method="tsit5", jumps=field.jumps)
            z = torch.ones(4, 3, dtype=torch.float64)
            ends.append(solve(field, z, solver=solver, grid=[0.0, 5.0]).x)
    return float((ends[0] - ends[1]).abs().max())


def exponential_off() -> float:
    """Return how far dz = A z dX₁ is from expm(A ΔX₁) z."""
    a = torch.tensor([[0.0, 1.0, 0.2], [-1.0, 0.1, 0.0], [0.3, 0.0, -0.2]], dtype=torch.float64)
    x, times = observed()
    control = controls.hermite(controls.with_time(x, times), times)

    def response(z: Tensor, t: Tensor) -> Tensor:
        del t
        zero = torch.zeros_like(z)
        return torch.stack((zero, z @ a.T, zero), -1)

    z = noise.normal(range(8), (3,), dtype=torch.float64)
    solver = AdaptiveRK(rtol=1e-11, atol=1e-11, method="tsit5")
    end = solve(CDE(response, control), z, solver=solver, grid=times.tolist()).x
    rise = x[:, -1, 0] - x[:, 0, 0]
    exact = (torch.linalg.matrix_exp(rise[:, None, None] * a) @ z[..., None])[..., 0]
    return float((end - exact).abs().max())


# -- 5: step control


@cache
def van_der_pol(integral: float, proportional: float) -> tuple[int, int]:
    """Return the steps that were taken and rejected at μ = 30, to T = 60, with tolerance 1e-6."""

    def oscillator(x: Tensor, t: Tensor) -> Tensor:
        del t
        return torch.stack((x[:, 1], 30 * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]), 1)

    control = pace.Control(0.9, integral, proportional)
    solver = AdaptiveRK(rtol=1e-6, atol=1e-6, method="tsit5", control=control, max_steps=100_000)
    start = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    stats = solve(oscillator, start, solver=solver, grid=[0.0, 60.0]).stats
    return stats.steps, stats.rejected


# -- 6: events, implicit layers, divergences


@cache
def fall() -> tuple[float, float, float]:
    """Return when a ball from 10 m lands (g = 8), how fast, and the time's slope in the height."""
    height = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)

    def falling(x: Tensor, t: Tensor) -> Tensor:
        del t
        return torch.stack((x[:, 1], torch.full_like(x[:, 1], -8.0)), 1)

    with torch.enable_grad():
        start = torch.stack((height, torch.zeros_like(height)))[None]
        solver = AdaptiveRK(rtol=1e-10, atol=1e-10, method="tsit5")
        sol = solve(falling, start, solver=solver, grid=[0.0, 5.0],
                    events=Event(lambda x, t: x[:, 0], direction="down"))  # fmt: skip
        when = torch.as_tensor(sol.t)[0]
        (slope,) = torch.autograd.grad(when, height)
    return float(when.detach()), float(sol.x[0, 1].detach()), float(slope)


def implicit_off() -> float:
    """Return how far the gradient of a DEQ is from that of 400 unrolled iterations."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = DEQ(TanhLayer(16, 4), 16, FixedPoint(1e-13, max_steps=500)).double()
    x = noise.normal(range(32), (4,), dtype=torch.float64)
    with torch.enable_grad():
        z = torch.zeros(32, 16, dtype=torch.float64)
        for _ in range(400):
            z = net.layer(z, x)
        pair = [torch.autograd.grad(made.square().sum(), list(net.parameters()))
                for made in (net(x), z)]  # fmt: skip
    return unlike(*pair)


def kl_off(paths: int = 20_000, n: int = 40) -> float:
    """Return by how many standard errors the divergence of two OU laws is off (h → 0)."""
    start = 1 + 0.2**0.5 * noise.normal(range(paths), (1,), stream="data", dtype=torch.float64)
    start = torch.cat((start, torch.zeros_like(start)), 1)
    sde = with_path_kl(lambda x, t: -x, lambda x, t: -0.3 * x, lambda x, t: 0.5 + 0 * x)
    fine, coarse = (
        solve(sde, start, solver="ito_euler", grid=grids.uniform(m, start=0.0, end=1.0), seed=0).x
        for m in (2 * n, n)
    )
    made = (2 * fine - coarse)[:, 1]
    return abs(float(made.mean()) - 0.57796) / (float(made.std()) / math.sqrt(paths))
