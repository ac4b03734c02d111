"""Who takes part: our adjoints, and torchdiffeq's with everything that makes it faster.

torchdiffeq is told the same field by the same function, in the raw form or as the plain integral in
σ/α, with coefficients and time labels that were worked out before (so that what it is timed for is
its own). It gets a grid of its own making, on which its adjoint takes one call instead of one a
step; and Dormand-Prince at whatever tolerance does, with the norm that leaves out the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pathline.bench.adjoint.problems import PATH, Found, Problem, loss, ours
from pathline.fields import Evaluate
from pathline.solvers import Solver, grids
from pathline.solvers import solvers as known
from pathline.solvers.adjoints import Adjoint, Checkpoint, Continuous
from pathline.solvers.adjoints.flow import Clocked, Form, Point
from pathline.solvers.runge_kutta import RK4

LADDER = tuple(range(8, 161))
"""Numbers of steps: all of them, or whose error falls to the bound just behind a rung is lucky."""

TOLERANCES = tuple(10.0 ** (-k / 8) for k in range(16, 73))
"""Of adaptive steps, from 1e-2 to 1e-9, eight to a decade."""

TOGETHER, STATES = 4, 16
"""Of our checkpointing: steps that are taken again at a time, and states that are kept at most."""

DIRECT, CHECKPOINT = "pathline, direct", "pathline, checkpoint"
BOUNDED, CONTINUOUS = f"pathline, checkpoint, {STATES} states", "pathline, continuous"
PEER, PEER_DIRECT = "torchdiffeq, adjoint", "torchdiffeq, direct"

FORMS: tuple[Form, ...] = ("eps", "velocity")


class Contestant(NamedTuple):
    """Who takes part.

    Args:
        family: of whom the fastest counts.
        name: in the table.
        gradients: a number of steps, or a tolerance → the gradients.
        ladder: of these, the cheapest first.
        sought: the same gradients, by whatever is quickest; None for `gradients` itself.
    """

    family: str
    name: str
    gradients: Callable[[Any], Found]
    ladder: Sequence[Any]
    sought: Callable[[Any], Found] | None = None


def solvers() -> Mapping[str, Solver | str]:
    """Return our solvers, by the name in the table."""
    return {
        "rk4 in σ/α": RK4(view="eps"),
        "unipc_3": "unipc_3",
        "adams_pc, order 4": known.build("adams_pc", order=4),
    }


def contestants(problem: Problem, ladder: Sequence[int] = LADDER) -> Iterator[Contestant]:
    """Yield everybody.

    Args:
        problem: what is differentiated.
        ladder: numbers of steps to choose from.
    """
    adjoints: Mapping[str, Adjoint | str] = {
        DIRECT: "direct",
        CHECKPOINT: Checkpoint(together=TOGETHER),
        BOUNDED: Checkpoint(memory=STATES, together=TOGETHER),
    }
    for name, solver in solvers().items():
        sought = cache(partial(ours, problem, solver, adjoints[CHECKPOINT]))  # of one, and of all
        for family, adjoint in adjoints.items():
            run = partial(ours, problem, solver, adjoint)
            yield Contestant(family, f"{family}, {name}", run, ladder, sought)
    for form in FORMS:
        run = partial(ours, problem, RK4(view=form), Continuous("rk4", form, probe=0))
        yield Contestant(CONTINUOUS, f"{CONTINUOUS}, rk4, {form}", run, ladder)
    for form in FORMS:
        flow = Flow(problem, form)
        for how in (Fixed(flow), Fixed(flow, stops=True), Fixed(flow, is_direct=True)):
            yield Contestant(how.family, f"{how.family}, {how.name}, {form}", how, ladder)
        for norm in (None, "seminorm"):
            how = Adaptive(flow, norm)
            yield Contestant(PEER, f"{PEER}, {how.name}, {form}", how, TOLERANCES)


class Flow(nn.Module):
    """The field as torchdiffeq is told it: w = x/s as a function of a clock.

    Args:
        problem: what is differentiated.
        form: (x, t) is "velocity", (x/α, σ/α) is "eps".
    """

    def __init__(self, problem: Problem, form: Form) -> None:
        super().__init__()
        self.problem, self.clocked, self.nfe = problem, Clocked(problem.field, form), 0
        self._known: dict[float, tuple[Point, Evaluate]] = {}

    def forward(self, u: Tensor, w: Tensor) -> Tensor:
        self.nfe += 1
        clock = float(u.detach())
        point, field = self._known.get(clock) or self._met(clock, w)
        x = w if point.scale == 1 else point.scale * w
        f = field(0, x)
        if (point.p, point.q) == (0, 1):
            return f
        return torch.add(point.q * f, x, alpha=point.p)

    def _met(self, clock: float, w: Tensor) -> tuple[Point, Evaluate]:
        (point,) = self.clocked.points([clock], {})
        with torch.no_grad():
            bound = self.problem.field.bind(point.t[None], w.detach(), {})
        self._known[clock] = point, bound
        return point, bound

    def ends(self, n: int) -> tuple[Tensor, float, float]:
        """Return the clock at the points of a grid of n steps, and s at both ends."""
        times = grids.log_snr(n).times(PATH)
        clocks = self.clocked.clocks(times)
        first, *_, last = self.clocked.points(clocks, dict(zip(clocks, times, strict=True)))
        return torch.tensor(clocks, dtype=torch.float64), first.scale, last.scale

    def gradients(self, nodes: Tensor, scales: tuple[float, float], **how: Any) -> Found:
        """Return torchdiffeq's gradients; `how` is what its function takes besides."""
        x, self.nfe = self.problem.x.clone().requires_grad_(), 0
        weights = self.problem.weights
        odeint = import_module("torchdiffeq")
        given = {} if how.pop("is_direct", False) else {"adjoint_params": weights}
        run: Any = odeint.odeint_adjoint if given else odeint.odeint
        with torch.enable_grad():
            end = run(self, x / scales[0], nodes, **given, **how)[-1] * scales[1]
            first, *others = torch.autograd.grad(loss(end), [x, *weights])
        return Found(first, tuple(others), self.nfe)


class Fixed(NamedTuple):
    """torchdiffeq's RK4, with a number of steps.

    Args:
        flow: what is integrated.
        stops: whether the state is returned, and put back by the adjoint, at every step.
        is_direct: whether autograd goes through the loop.
    """

    flow: Flow
    stops: bool = False
    is_direct: bool = False

    @property
    def family(self) -> str:
        """Whose best counts."""
        return PEER_DIRECT if self.is_direct else PEER

    @property
    def name(self) -> str:
        """In the table."""
        return "rk4, states kept" if self.stops else "rk4"

    def __call__(self, n: int) -> Found:
        nodes, *scales = self.flow.ends(n)
        ends = scales[0], scales[1]
        if self.stops:
            return self.flow.gradients(nodes, ends, method="rk4")
        falls = bool(nodes[0] > nodes[-1])
        rising = nodes if not falls else -nodes  # it turns a falling clock round before its adjoint

        def there(f: Any, y: Any, t: Tensor) -> Tensor:
            return nodes

        def back(f: Any, y: Any, t: Tensor) -> Tensor:
            return rising.flip(0)

        how: dict[str, Any] = {"method": "rk4", "options": {"grid_constructor": there}}
        if self.is_direct:
            how["is_direct"] = True
        else:
            how["adjoint_options"] = {"grid_constructor": back}
        return self.flow.gradients(nodes[[0, -1]], ends, **how)


class Adaptive(NamedTuple):
    """torchdiffeq's Dormand-Prince, at a tolerance.

    Args:
        flow: what is integrated.
        norm: by which the adjoint's error is judged: None for all of its state.
    """

    flow: Flow
    norm: str | None

    @property
    def name(self) -> str:
        """In the table."""
        return "dopri5" if self.norm is None else f"dopri5, {self.norm}"

    def __call__(self, tolerance: float) -> Found:
        nodes, *scales = self.flow.ends(1)
        how: dict[str, Any] = {"method": "dopri5", "rtol": tolerance, "atol": tolerance}
        how["options"] = {"step_t": nodes[-1:]}  # or its last step goes to where there is no flow
        how["adjoint_options"] = {} if self.norm is None else {"norm": self.norm}
        return self.flow.gradients(nodes, (scales[0], scales[1]), **how)
