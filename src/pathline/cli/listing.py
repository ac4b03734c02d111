"""What there is: tables of models, solvers, grids, paths and guides, from the registries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from pathline.core.progress import track
from pathline.core.registry import Entry, Registry
from pathline.solvers.grids import grids as all_grids
from pathline.solvers.solver import Solver
from pathline.solvers.solver import solvers as all_solvers

Json = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
Measure = Annotated[bool, typer.Option("--measure", help="Measure each order of convergence.")]

Markdown = Annotated[bool, typer.Option("--markdown", help="Measured, as in docs/solvers.md.")]

Row = Mapping[str, Any]


def solvers(json: Json = False, measure: Measure = False, markdown: Markdown = False) -> None:
    """List the solvers: what each is, its order, and what a step costs."""
    if markdown:
        typer.echo(solver_table())
        return
    entries = track(all_solvers, "measuring") if measure else all_solvers
    rows = [
        _solver(entry) | ({"measured": measured(entry.build())} if measure else {})
        for entry in entries
    ]
    show(rows, json)


def _solver(entry: Entry[Solver]) -> dict[str, Any]:
    solver = entry.build()
    names = {"name": entry.name, "aliases": list(entry.aliases)}
    claims = {
        "order": solver.order,
        "convergence": solver.convergence,
        "nfe_per_step": solver.nfe_per_step,
        "stochastic": solver.is_stochastic,
    }
    return names | claims | {"paper": entry.paper, "about": entry.about}


def measured(solver: Solver) -> float | None:
    """Return the order of convergence on a mixture, VP-linear.

    None where it is not the slope over step counts: a stochastic solver, or one without a plan.
    """
    from pathline.paths import VPLinear
    from pathline.solvers.solve import as_grid

    if solver.is_stochastic or solver.is_adaptive:
        return None
    path = VPLinear()
    return round(solver.standard(path).plan(path, as_grid(None, None)).order(), 2)


def solver_table() -> str:
    """Return the table of docs/solvers.md: what every solver claims, and what is measured."""
    head = "| name | also | order | claimed | measured | NFE a step | paper | |"
    lines = [head, "|---" * 8 + "|"]
    for entry in all_solvers:
        solver = entry.build()
        order = measured(solver)
        unmeasured = "by tolerance" if solver.is_adaptive else "in law"
        found = unmeasured if order is None else f"{order:.1f}"
        cells = (
            f"`{entry.name}`",
            ", ".join(entry.aliases),
            solver.order,
            solver.convergence,
            found,
            solver.nfe_per_step,
            entry.paper,
            entry.about,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def grids(json: Json = False) -> None:
    """List the grids: at which times a solve stops over."""
    show(_entries(all_grids), json)


def paths(json: Json = False) -> None:
    """List the paths: how data becomes noise."""
    from pathline.paths import paths as all_paths

    show(_entries(all_paths), json)


def guides(json: Json = False) -> None:
    """List the guides: what steers a model."""
    from pathline.steer import guides as all_guides

    show(_entries(all_guides), json)


def models(json: Json = False) -> None:
    """List the models that are shipped."""
    from pathline.learn.checkpoint import load_model, model_names

    rows = []
    for name in model_names():
        model = load_model(name)
        shape, condition = model.shape or (), model.details.get("condition")
        rows.append(
            {"name": name, "shape": list(shape), "condition": condition, "view": model.view}
        )
    show(rows, json)


def _entries(registry: Registry[Any]) -> list[Row]:
    return [
        {"name": e.name, "aliases": list(e.aliases), "paper": e.paper, "about": e.about}
        for e in registry
    ]


def show(rows: Sequence[Row], as_json: bool) -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        typer.echo(json.dumps(list(rows), ensure_ascii=False, indent=1))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    if not rows:
        typer.echo("none")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), no_wrap=name == "name")
    for row in rows:
        table.add_row(*map(_written, row.values()))
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    console.print(table)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return "" if value is None else str(value)
