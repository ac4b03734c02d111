"""What a run returns: the measured claims, as JSON and as a page that any browser opens."""

from __future__ import annotations

import io
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

from pathline.core.files import write_atomically
from pathline.core.page import page
from pathline.core.receipt import versions
from pathline.systems.system import Measured, Plot, System

_STYLE = "table { width: 100% } svg { margin-top: 2rem }"


@dataclass(frozen=True)
class Report:
    """The outcome of a run.

    Args:
        system: what was run.
        claims: those that were measured, and how they came out; a claim not run is absent.
        seconds: how long it took.
        artifacts: the files that it wrote.
    """

    system: System
    claims: tuple[Measured, ...]
    seconds: float
    artifacts: tuple[Path, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether at least one claim ran, and every claim that ran holds."""
        return bool(self.claims) and all(measured.passed for measured in self.claims)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "system": self.system.slug,
            "title": self.system.title,
            "claims": [measured.to_dict() for measured in self.claims],
            "seconds": round(self.seconds, 3),
            "artifacts": [str(path) for path in self.artifacts],
        }


def write_page(report: Report, experiment: Any, path: Path) -> Path:
    """Write the report as one self-contained HTML file, with plots where matplotlib is present."""
    body = _body(report, _figures(report, experiment))
    return write_atomically(path, page(report.system.title, body, _STYLE))


def markdown(report: Report) -> str:
    """Return the report as a page in Markdown: what was claimed, what was measured, with what."""
    system = report.system
    rows = ["| claim | text | measured | bound | |", "| --- | --- | --- | --- | --- |"]
    for each in report.claims:
        claim, value = each.claim, "—" if each.value is None else f"{each.value:.4g}"
        text = claim.text if each.error is None else f"{claim.text} ({each.error})"
        verdict = "holds" if each.passed else "**fails**"
        rows.append(f"| `{claim.id}` | {text} | {value} | {claim.bound} | {verdict} |")
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        f"# {system.title}: what was trained\n\n{system.summary} {system.paper}.\n\n"
        + "\n".join(rows)
        + f"\n\nMeasured on {platform.machine()} with {made}, in {report.seconds:.0f} s (less what "
        "was trained before, which may have been elsewhere). Again: "
        f"`pathline run {system.slug} --train`; networks are kept in the cache, and a training "
        "that is cut short goes on.\n"
    )


def _body(report: Report, figures: str) -> Iterator[str]:
    system = report.system
    yield f'<p>{escape(system.summary)}</p>\n<p class="small">{escape(system.paper)}</p>'
    yield "<table>\n<tr><th>claim<th><th>measured<th>bound<th>"
    yield from map(_line, report.claims)
    yield "</table>"
    ran = {measured.claim.id for measured in report.claims}
    absent = [claim.id for claim in system.claims if claim.id not in ran]
    if absent:
        yield f"<p>Not measured in this run: {escape(', '.join(absent))}.</p>"
    yield figures
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield f'<p class="small">Measured in {report.seconds:.1f} s with {escape(made)}.</p>'


def _line(measured: Measured) -> str:
    claim = measured.claim
    text = escape(claim.text) if measured.error is None else (
        f"{escape(claim.text)}<br><span class='fails'>{escape(measured.error)}</span>"
    )  # fmt: skip
    value = "—" if measured.value is None else f"{measured.value:.4g}"
    verdict = "holds" if measured.passed else "fails"
    name = f"<b>{escape(claim.id)}</b>" if claim.headline else escape(claim.id)
    return (
        f"<tr><td>{name}<td>{text}<td>{value}<td>{escape(claim.bound)}"
        f'<td class="{verdict}">{verdict}'
    )


def _figures(report: Report, experiment: Any) -> str:
    """Return the plots as SVG, or a sentence that says why there are none."""
    try:
        plots = report.system.plots(experiment)
        return "\n".join(map(_svg, plots))
    except ImportError:
        return '<p class="small">No plots: pip install "pathline[plot]" brings them.</p>'
    except Exception as error:  # the claims that share its cause are already reported failing
        return f'<p class="fails">No plots: {escape(f"{type(error).__name__}: {error}")}</p>'


def _svg(plot: Plot) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for (name, points), marker in zip(plot.curves.items(), cycle("osD^vP"), strict=False):
        axes.loglog(*_columns(points), marker=marker, markersize=5, label=name)
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    image = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": plot.title}):  # the same file for the same numbers
        figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()[image.getvalue().index("<svg") :]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
