"""What a benchmark returns: rows, the bars they are held to, and where they were measured."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pathline.core.files import write_atomically


@dataclass(frozen=True)
class Row:
    """One measurement, or the reason why there is none.

    Args:
        method: what was done.
        by: who did it.
        value: the measured number, in the report's unit.
        skipped: why there is no number.
    """

    method: str
    by: str
    value: float | None
    skipped: str | None = None


@dataclass(frozen=True)
class Bar:
    """A ratio, and the limit that it is held to; None for one that is only told."""

    text: str
    measured: float
    limit: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the ratio is at most the limit."""
        return self.limit is None or self.measured <= self.limit

    @property
    def verdict(self) -> str:
        """What came of it, in a few words."""
        if self.limit is None:
            return ""
        return f"at most {self.limit:g}: {'kept' if self.passed else 'NOT KEPT'}"


@dataclass(frozen=True)
class Report:
    """The rows and bars of a benchmark.

    Args:
        name: which benchmark.
        about: what the numbers mean, with their unit.
        rows: the measurements.
        bars: what they are held to.
        settings: what was measured, as plain values.
        notes: what else a reader must know.
        place: machine, versions and date.
    """

    name: str
    about: str
    rows: Sequence[Row]
    bars: Sequence[Bar]
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()
    place: Mapping[str, str] = field(default_factory=lambda: place())

    @property
    def passed(self) -> bool:
        """Whether every bar that could be measured is kept."""
        return all(bar.passed for bar in self.bars)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {**asdict(self), "passed": self.passed}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """Read what `to_dict` returned."""
        given = {key: value for key, value in content.items() if key != "passed"}
        given["rows"] = [Row(**row) for row in content["rows"]]
        given["bars"] = [Bar(**bar) for bar in content["bars"]]
        return cls(**given)

    def table(self) -> str:
        """Return the report as text: who by what, then the ratios."""
        ratios = [[bar.text, f"{bar.measured:.2f}", bar.verdict] for bar in self.bars]
        lines = [self.about, "", *aligned(self._cells()), "", *aligned(ratios)]
        return "\n".join([*lines, "", *self.notes, *self._absences()]).rstrip()

    def markdown(self) -> str:
        """Return the report as a page of Markdown."""
        head, *body = self._cells()
        facts = [f"- {key}: {value}" for key, value in {**self.place, **self.settings}.items()]
        table = [piped(head), "|" + " --- |" * len(head), *map(piped, body)]
        ratios = [piped([bar.text, f"{bar.measured:.2f}", bar.verdict]) for bar in self.bars]
        ratios = [piped(["ratio", "measured", ""]), "| --- | --- | --- |", *ratios]
        notes = [line for note in (*self.notes, *self._absences()) for line in ("", note)]
        title = f"# pathline bench {self.name}"
        return "\n".join([title, "", self.about, "", *facts, "", *table, "", *ratios, *notes, ""])

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write NAME.json and NAME.md into a folder, and return their paths."""
        folder = Path(folder)
        content = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        return (
            write_atomically(folder / f"{self.name}.json", content),
            write_atomically(folder / f"{self.name}.md", self.markdown()),
        )

    def _cells(self) -> list[list[str]]:
        """The table: a line for everybody who has a number, a column for each method."""
        methods = list(dict.fromkeys(row.method for row in self.rows))
        values = {(row.by, row.method): row.value for row in self.rows if row.value is not None}
        lines = [["", *methods]]
        for by in dict.fromkeys(who for who, _ in values):
            numbers = [values.get((by, method)) for method in methods]
            lines.append([by, *("" if n is None else f"{n:.1f}" for n in numbers)])
        return lines

    def _absences(self) -> list[str]:
        reasons = {row.by: row.skipped for row in self.rows if row.value is None}
        return [f"Left out: {by}, {reason}." for by, reason in reasons.items()]


@dataclass(frozen=True)
class Reports:
    """Several reports as one, with a picture.

    Args:
        name: which benchmark.
        about: what the picture shows.
        reports: one for each measure or problem.
        picture: PNG; None where matplotlib is not installed.
        page: HTML, where there is one.
    """

    name: str
    about: str
    reports: Sequence[Report]
    picture: bytes | None
    page: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every bar of every report is kept."""
        return all(report.passed for report in self.reports)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"passed": self.passed, "reports": [r.to_dict() for r in self.reports]}

    def table(self) -> str:
        """Return the tables as text."""
        return "\n\n".join(report.table() for report in self.reports)

    def save(self, folder: str | Path) -> list[Path]:
        """Write NAME.json, NAME.md, the page and the picture."""
        home = Path(folder)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        body = "\n\n".join(report.markdown() for report in self.reports)
        shown = "" if self.picture is None else f"![{self.about}]({self.name}.png)\n\n"
        written = [
            write_atomically(home / f"{self.name}.json", text),
            write_atomically(home / f"{self.name}.md", shown + body),
        ]
        if self.page is not None:
            written.append(write_atomically(home / f"{self.name}.html", self.page))
        if self.picture is not None:
            written.append(write_atomically(home / f"{self.name}.png", self.picture))
        return written


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return cells as lines of text with columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def piped(cells: Sequence[str]) -> str:
    """Return cells as a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def place() -> dict[str, str]:
    """Return machine, versions and date."""
    names = (
        "pathline",
        "torch",
        "diffusers",
        "azula",
        "k-diffusion",
        "deepinv",
        "torchsde",
        "diffrax",
    )
    found = {name: _version(name) for name in names}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "python": platform.python_version(),
        **{name: version for name, version in found.items() if version},
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's model, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
