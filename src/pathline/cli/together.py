"""Whether what was typed for `pathline sample` goes together, and what to type if it does not."""

from __future__ import annotations

from pathline.cli.request import Request
from pathline.core.errors import UsageError
from pathline.solvers.grids import Times
from pathline.solvers.saved import SAVED, fitted_weight, saved_schedule, warn_of_weight
from pathline.solvers.solve import DEFAULT_SOLVER
from pathline.steer import Chain


def check_together(
    request: Request, solver: str | None, steps: int | None, speed: str | None
) -> None:
    """Refuse a request that cannot run, and warn where a schedule was fitted to other guidance.

    Args:
        request: what was typed, as it is run.
        solver, steps, speed: as they were typed.

    Raises:
        UsageError: it says what to type instead.
    """
    _check_grid(request)
    name = str(solver or request.model.defaults.get("solver", DEFAULT_SOLVER))
    if speed == "sada" and request.solver.is_stochastic:
        which = name if solver is not None else f"{name}, this model's own,"
        raise UsageError(
            f"--speed sada is for solvers that draw no noise, and {which} draws some: give "
            "--solver dpmpp_2m."
        )
    if name in SAVED:
        _check_guide(request, name, steps)


def _check_grid(request: Request) -> None:
    """Refuse times that rise."""
    if not isinstance(request.grid, Times):
        return
    values = request.grid.values
    if values[0] < values[-1]:
        turned = ",".join(f"{t:g}" for t in reversed(values))
        raise UsageError(
            f"the grid rises from t = {values[0]:g} to t = {values[-1]:g}, and samples are drawn "
            f"from noise (1) to data (0): give --grid {turned}; pathline invert goes the other way."
        )


def _check_guide(request: Request, name: str, steps: int | None) -> None:
    """Refuse a schedule of guided sampling without guidance, and warn of another weight."""
    schedule, guide = saved_schedule(request.model, steps, name), request.guide
    is_alone = not isinstance(guide, Chain) or len(guide.members) == 1
    if schedule.ratios and not (guide is not None and guide.chooses_evaluations and is_alone):
        weight = fitted_weight(schedule)
        fitted = "W" if weight is None else f"{weight:g}, which it was fitted to"
        raise UsageError(
            f"--solver {name} is for classifier-free guidance alone: give a prompt, no other "
            f"--guide, and --guidance {fitted}."
        )
    warn_of_weight(schedule, guide)
