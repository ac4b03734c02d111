"""Solvers: frozen rules that write the rows of a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.registry import Entry, Registry
from pathline.fields.field import Field
from pathline.fields.sde import SDE
from pathline.fields.views import View
from pathline.paths import GaussianPath
from pathline.paths.path import LOWEST_LOG_SNR
from pathline.solvers.grids import Grid, grids
from pathline.solvers.plan import Coefficient, Plan, Products, Row, Terms


class Level(NamedTuple):
    """A point of a path: time, α, σ and λ, as Python floats.

    Where α = 0, λ = −∞ is replaced by a number, so that derivatives can be taken across the first
    step from pure noise; linear parts are written with α and σ, and stay exact there.
    """

    t: float
    alpha: float
    sigma: float
    log_snr: float


DATA = Level(0.0, 1.0, 0.0, float("inf"))
"""Where a grid that ends in "denoise" lands: data itself, whatever σ the path has at t = 0."""


def _bounded(log_snr: Tensor) -> Tensor:
    """Replace λ = −∞ by `LOWEST_LOG_SNR`, or by one less than the others where they are as low."""
    infinite = log_snr.isneginf()
    lowest = min([LOWEST_LOG_SNR, *(log_snr[~infinite] - 1).tolist()])
    return log_snr.masked_fill(infinite, lowest)


@dataclass
class Writer:
    """Collects the rows of a plan while a solver writes them.

    Args:
        path: the path, or None for a plain differential equation.
        times: the times of the grid.
        denoises: whether the last step lands on data.
        alike: whether the rows must be the same at every noise level, for plans that are stacked: a
            row that a level does not need is written all the same, and does nothing.
    """

    path: GaussianPath | None
    times: tuple[float, ...]
    denoises: bool
    alike: bool = False
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.levels = self.at(self.times)
        if self.denoises:
            self.levels[-1] = DATA

    def at(self, times: Sequence[float]) -> list[Level]:
        """Return the path's levels at these times (NaN where there is no path)."""
        if self.path is None:
            nan = float("nan")
            return [Level(t, nan, nan, nan) for t in times]
        t = torch.tensor(times, dtype=torch.float64)
        log_snr = _bounded(self.path.log_snr(t))
        columns = (t, self.path.alpha(t), self.path.sigma(t), log_snr)
        return [Level(*values) for values in zip(*(c.tolist() for c in columns), strict=True)]

    def intervals(self) -> Iterator[tuple[Level, Level]]:
        """Yield each step as (from, to), the closing step to data excepted."""
        levels = self.levels[:-1] if self.denoises else self.levels
        yield from zip(levels, levels[1:], strict=False)

    def move(self, times: Sequence[float]) -> None:
        """Stop over at these times instead of the grid's (the one of data excepted)."""
        self.times = (*times, 0.0) if self.denoises else tuple(times)
        self.__post_init__()

    def write(  # noqa: PLR0913 - a row: most are left out
        self,
        t: float,
        x: Terms,
        f: Terms,
        z: Terms | None = None,
        *,
        lands: bool = True,
        constant: Coefficient = 0.0,
        g: Products | None = None,
    ) -> int:
        """Append a row and return the number of the state that it makes."""
        self.rows.append(Row(t, x, f, z or {}, lands, constant, g or {}))
        return len(self.rows)


@dataclass(frozen=True)
class Solver(ABC):
    """A rule that compiles a path and a grid into a plan.

    Solvers are values: nothing about a solve is stored on them. Subclasses give `order` (and
    `convergence`, where that is another number) and `view`, and write the rows of every step; a
    closing step to data is the same for all of them, x = x̂_0, and is written here.
    """

    @property
    @abstractmethod
    def order(self) -> int:
        """The order as the solver's family counts it."""

    @property
    def convergence(self) -> int:
        """The claimed order of convergence: of the result, or of its law if it is stochastic."""
        return self.order

    @property
    @abstractmethod
    def view(self) -> View:
        """What the F of the rows is."""

    @property
    def needs_path(self) -> bool:
        """Whether the solver works with denoisers only."""
        return self.view != "velocity"

    @property
    def is_stochastic(self) -> bool:
        """Whether the solver draws noise."""
        return False

    @property
    def is_exact_on_points(self) -> bool:
        """Whether, on the straight path, data that are one point are sampled without error."""
        return True

    @property
    def nfe_per_step(self) -> int:
        """Evaluations of the field a step."""
        return 1

    def evaluations(self, n: int) -> int:
        """Return the evaluations of n steps, a closing one to data not among them."""
        return n * self.nfe_per_step

    def describe(self) -> dict[str, Any]:
        """Return what `solvers.rebuild` makes the solver from, as plain values."""
        return solvers.describe(self)

    @property
    def is_adaptive(self) -> bool:
        """Whether the solver chooses its own steps between the points of the grid."""
        return False

    @abstractmethod
    def write(self, to: Writer) -> None:
        """Write the rows of every step of `to.intervals()`."""

    def tuned(self, field: Field, shape: Sequence[int]) -> Solver:
        """Return the solver with what was measured on this field, if it works with such numbers.

        Args:
            field: what is integrated, before it is guided.
            shape: of one state.

        Raises:
            UsageError: nothing was measured on this field, or on another one.
        """
        del shape
        if isinstance(field, SDE):
            raise UsageError(
                f"{type(self).__name__} integrates no noise, and this field has some: use "
                "euler_maruyama, milstein or srk for an Itô equation; heun, midpoint, euler_heun "
                "or reversible_heun for a Stratonovich one."
            )
        return self

    def standard(self, path: GaussianPath | None) -> Solver:
        """Return the solver as it is measured on standard problems, where no model is at hand."""
        del path
        return self

    def plan(self, path: GaussianPath | None, grid: Grid | Sequence[Grid]) -> Plan:
        """Compile the solver for a path and a grid, or for grids of one length, one a sample.

        Raises:
            UsageError: the solver needs a path and there is none, or the grid does not suit it.
        """
        if isinstance(grid, Grid):
            return _compiled(self, path, grid)
        made = {g: _compiled(self, path, g, alike=True) for g in dict.fromkeys(grid)}
        return Plan.stacked([made[g] for g in grid])


class Solvers(Registry[Solver]):
    """A registry that knows what "DPM++ 2M Karras" means elsewhere."""

    def entry(self, name: str) -> Entry[Solver]:
        """Return the entry of a name or alias.

        Raises:
            UsageError: nobody registered it; the message has the nearest names.
        """
        solver, _, grid = name.replace("_", " ").rpartition(" ")
        if grid.lower() == "karras" and solver in self:
            known = super().entry(solver).name
            raise UsageError(
                f"{name!r} is a solver and a grid: take solver {known!r} on grid 'karras'."
            )
        return super().entry(name)


solvers = Solvers("solver")
"""Every solver, by name."""


@lru_cache(maxsize=512)
def _compiled(
    solver: Solver, path: GaussianPath | None, grid: Grid, *, alike: bool = False
) -> Plan:
    check_path(solver, path, grid)
    writer = Writer(path, grid.times(path), grid.last == "denoise", alike)
    solver.write(writer)
    if writer.denoises:
        _write_denoising(writer, solver.view)
    known = solvers.has(solver) and grids.has(grid)
    recipe = {"solver": solvers.describe(solver), "grid": grids.describe(grid)} if known else {}
    legs = tuple(zip(writer.times, writer.times[1:], strict=False))
    legs = legs if any(row.g for row in writer.rows) else ()
    start, rows = (writer.times[0],), tuple(writer.rows)
    return Plan(start, rows, solver.view, path, recipe, legs=legs)


def check_order(who: str, order: object, orders: Sequence[int]) -> None:
    """Refuse an order that a family of solvers does not have; 2.0 is none either."""
    if not isinstance(order, int) or order not in orders:
        *others, last = map(str, orders)
        some = f"{', '.join(others)} and {last}" if len(orders) < 4 else f"{others[0]} to {last}"
        raise UsageError(f"{who} has orders {some}; order {order!r} was asked for.")


def check_path(solver: Solver, path: GaussianPath | None, grid: Grid) -> None:
    """Refuse a field without a path where one is needed, and noise that has no reverse SDE."""
    if path is None and (solver.needs_path or grid.last == "denoise"):
        raise UsageError(
            f"{type(solver).__name__} with last={grid.last!r} needs a path (a Denoiser); "
            "for a plain differential equation use Euler, Heun, RK4 or dopri5 with last='stop'."
        )
    if solver.is_stochastic:
        check_gaussian(path)


def check_gaussian(path: GaussianPath | None) -> None:
    """Refuse to sample stochastically where the noise is not Gaussian."""
    if path is not None and not path.kernel.is_gaussian:
        raise UsageError(
            "stochastic sampling is only defined here for D=inf, and the noise of this path has "
            f"D={path.kernel.dof:g}; use a deterministic solver: Heun, DPM-Solver++, DEIS …"
        )


def _write_denoising(to: Writer, view: View) -> None:
    """The closing step to data, x = x̂_0 (DDIM with σ = 0), for every solver."""
    from pathline.fields.views import change

    assert to.path is not None
    last = len(to.rows)
    p, q = (float(c) for c in change(to.path, view, "x0", to.levels[-2].t))
    to.write(0.0, {last: p} if p else {}, {last: q})
