"""The program `pathline`: its commands, and how it says that something is wrong."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pathline.cli import (
    completing,
    diff_editing,
    editing,
    evaluating,
    inverting,
    likelihood,
    listing,
    opening,
    replaying,
    sampling,
    tuning,
    working,
)
from pathline.cli.demo import demo
from pathline.cli.steering import steer
from pathline.core.errors import PathlineError
from pathline.core.receipt import versions

INTERRUPTED = 130
"""The exit code of a program that was stopped by Ctrl-C."""


class OneSentence(TyperGroup):
    """A group of commands that reports what the user can mend in one sentence, with exit code 2.

    Anything else is a defect of ours, and keeps its traceback. Warnings are a line each.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the user named."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except PathlineError as error:
            typer.echo(f"pathline: {_one_line(error)}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            typer.echo("pathline: interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as a person reads it, without the line of code that gave it."""
    typer.echo(f"warning: {_one_line(message)}", err=True)


def _one_line(told: object) -> str:
    return " ".join(str(told).split())


app = typer.Typer(
    name="pathline",
    cls=OneSentence,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PANELS = {
    "Make": [
        sampling.sample, replaying.replay, completing.complete, completing.interpolate, steer,
        inverting.invert, editing.edit, diff_editing.diff_edit, opening.studio, demo,
    ],
    "Look up": [
        listing.models, listing.solvers, listing.grids, listing.paths, listing.guides,
        working.systems,
    ],
    "Work": [
        working.run, working.bench, working.train, working.average, working.data,
        evaluating.evaluate, likelihood.likelihood, tuning.tune,
        completing.classifier,
    ],
}  # fmt: skip

for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        ours, *others = versions().items()
        typer.echo(f"pathline {ours[1]} ({', '.join(' '.join(pair) for pair in others)})")
        raise typer.Exit


@app.callback()
def _pathline(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Conditional fields, integrated: sample, replay, measure and train."""


def main() -> None:
    """Run the program."""
    app()
