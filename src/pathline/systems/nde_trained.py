"""Neural differential equations, trained: spirals, predators and prey, and formulas found again.

What was trained is kept in the cache as its outcome, a small JSON each: minutes, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pathline.core import noise
from pathline.domains.series import CDEClassifier, Fit, accuracy, fit, prepared
from pathline.domains.series import problems as series
from pathline.fields import VectorField
from pathline.learn.expression import Expression
from pathline.learn.shooting import Shooting, fit_trajectories, sparse_regression, whole
from pathline.learn.symbolic import Formulas, choose, fine_tune, search
from pathline.nets.vector_fields import Hybrid, ODENet
from pathline.solvers import AdaptiveRK, solve
from pathline.systems.kept import kept

NAMES = ("x", "y")


HOME = "neural-differential-equations"


@dataclass(frozen=True)
class Trained:
    """The outcomes of three trainings; each is made when a claim asks for it."""

    @cached_property
    def spirals(self) -> Mapping[str, float]:
        return kept(f"{HOME}/spirals-1", spirals)

    @cached_property
    def predators(self) -> Mapping[str, Any]:
        return kept(f"{HOME}/lotka-volterra-2", predators)

    @cached_property
    def formulas(self) -> Mapping[str, Any]:
        return kept(f"{HOME}/formulas-1", formulas)


# -- spirals


def spirals() -> Mapping[str, float]:
    """Return test accuracies of a CDE, and of its network fed the first value alone."""
    sets = [series.spirals(range(first, first + 256), 30) for first in (0, 10_000)]
    parts = prepared(sets[0], sets[1], classes=2, missing=0.3)
    made = dict[str, float]()
    for name, driven in (("cde", True), ("start", False)):
        torch.manual_seed(0)
        model = CDEClassifier(2, 2, is_driven=driven)
        fit(model, parts.train, parts.valid, Fit(iterations=300, batch=64, rate=3e-3))
        made[name] = accuracy(model, parts.test, passes=1)
    return made


# -- predators and prey


RATES = (1.3, 0.9, 0.8, 1.8)
"""Of x' = a x − b x y, y' = c x y − d y (Rackauckas et al. 2020)."""
STEP = 0.1


KNOWN = torch.tensor([RATES[0], -RATES[3]], dtype=torch.float64)


def growth_and_decay(x: Tensor, t: Tensor | float) -> Tensor:
    """Return what is known, a x and −d y.

    The rates are held while the network learns: it could say a x as well, and nobody would know
    whose share is whose. They are tuned afterwards, when only x y is beside them.
    """
    del t
    return KNOWN * x


def lotka_volterra(x: Tensor, t: Tensor | float) -> Tensor:
    """Return the true right-hand side."""
    del t
    a, b, c, d = RATES
    prey, predators = x.unbind(1)
    return torch.stack((a * prey - b * prey * predators, c * prey * predators - d * predators), 1)


def trajectories(field: Callable[..., Tensor], starts: Tensor, times: Tensor) -> Tensor:
    """Return the flow at these times, (batch, times, dim), to a tolerance of 1e-10."""
    solver = AdaptiveRK(rtol=1e-10, atol=1e-10, method="dop853", max_steps=100_000)
    with torch.no_grad():
        sol = solve(VectorField(field), starts, solver=solver, grid=[float(times[0]), float(
            times[-1])], save=times, on_failure="return")  # fmt: skip
    assert sol.trajectory is not None
    return sol.trajectory.transpose(0, 1)


def predators() -> Mapping[str, Any]:
    """Return what a hybrid and a plain neural ODE make of six trajectories up to t = 3."""
    starts = 0.5 + 1.5 * noise.uniform(range(6), (2,), stream="data", dtype=torch.float64)
    times = STEP * torch.arange(91, dtype=torch.float64)
    truth = trajectories(lotka_volterra, starts, times)
    seen = times <= 3 + 1e-9
    data = truth[:, seen]
    torch.manual_seed(0)
    hybrid = Hybrid(growth_and_decay, 2).double()
    fit_trajectories(hybrid, times[seen], data, Shooting(rate=1e-2))
    plain = ODENet(2).double()
    fit_trajectories(plain, times[seen], data, Shooting())
    visited = data.flatten(0, 1)
    low, high = visited.amin(0), visited.amax(0)
    line = torch.linspace(0, 1, 20, dtype=torch.float64)
    box = low + (high - low) * torch.cartesian_prod(line, line)
    with torch.no_grad():
        added, learned = hybrid.rest(box), hybrid.rest(visited)
    exact, there = interaction(box), interaction(visited)
    found = sparse_regression(candidates(visited), learned)
    chosen = found != 0
    tuned = tuned_formulas(found, times[seen], data)
    return {
        "interaction": float((added - exact).norm() / exact.norm()),
        "visited": float((learned - there).norm() / there.norm()),
        "others": float(chosen.sum() - chosen[4].sum()) + float(2 - chosen[4].sum()),
        "extrapolation": off(trajectories(tuned, starts, times), truth, ~seen),
        "plain": off(trajectories(plain, starts, times), truth, ~seen),
        "found": [str(each) for each in tuned.read()],
    }


def interaction(x: Tensor) -> Tensor:
    """Return what is missing, −b x y and c x y."""
    product = x.prod(1)
    return torch.stack((-RATES[1] * product, RATES[2] * product), 1)


def candidates(x: Tensor) -> Tensor:
    """Return 1, x, y, x², xy, y² at these points, (n, 6)."""
    a, b = x.unbind(1)
    return torch.stack((torch.ones_like(a), a, b, a * a, a * b, b * b), 1)


def tuned_formulas(found: Tensor, times: Tensor, data: Tensor) -> Formulas:
    """Return the known part and the terms that were chosen, fitted through the solver."""
    terms = ("1", "x", "y", "x**2", "x*y", "y**2")
    written = list[Expression]()
    for j, (name, rate) in enumerate(zip(NAMES, KNOWN.tolist(), strict=True)):
        rest = [f"({float(c)!r})*{t}" for c, t in zip(found[:, j], terms, strict=True) if c != 0]
        written.append(Expression(" + ".join([f"({rate!r})*{name}", *rest]), NAMES))
    how, every = Shooting(solver="rk4"), whole(times, data)
    return fine_tune(Formulas(written), lambda f: how.error(f, every))


def off(made: Tensor, truth: Tensor, when: Tensor) -> float:
    """Return the relative root mean square error at these times; 1 where a trajectory was lost."""
    error = (made - truth)[:, when].nan_to_num(nan=float(truth.abs().max()))
    return min(float(error.norm() / truth[:, when].norm()), 1e3)


# -- formulas


def example(x: Tensor, t: Tensor | float) -> Tensor:
    """Return the right-hand side of diffrax's example, y/(1 + y) and −x/(1 + x)."""
    del t
    a, b = x.unbind(1)
    return torch.stack((b / (1 + b), -a / (1 + a)), 1)


TRUTH = ("y/(1 + y)", "-x/(1 + x)")


def formulas() -> Mapping[str, Any]:
    """Return how many of both right-hand sides come back from 256 trajectories, and as what."""
    starts = -0.6 + 1.6 * noise.uniform(range(256), (2,), stream="data", dtype=torch.float64)
    times = torch.linspace(0, 10, 100, dtype=torch.float64)
    data = trajectories(example, starts, times)
    torch.manual_seed(0)
    net = ODENet(2).double()
    fit_trajectories(net, times, data, Shooting(iterations=1500, batch=256))
    visited = data[:, ::10].flatten(0, 1)
    rows = torch.randperm(len(visited), generator=torch.Generator().manual_seed(0))[:300]
    with torch.no_grad():
        slopes = net(visited[rows], 0.0)
    chosen = [choose(search(visited[rows], slopes[:, j], NAMES)).expression for j in range(2)]
    every, how = whole(times[:30], data[::8, :30]), Shooting()
    read = fine_tune(Formulas(chosen), lambda f: how.error(f, every)).read()
    rounded = [each.rounded() for each in read]
    right = [r.same_as(t) for r, t in zip(rounded, TRUTH, strict=True)]
    return {"recovered": float(sum(right)), "found": [str(r) for r in rounded]}
