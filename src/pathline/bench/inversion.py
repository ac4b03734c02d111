"""Inversion methods beside each other on held-out emoji, as a page and a gallery in benchmarks/.

Each method's pictures are kept in the cache, so a run may be cut short and begun again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.bench.kept import kept
from pathline.core.files import write_atomically
from pathline.core.images import Layout, encode_png, to_pixels
from pathline.core.page import image, page, table
from pathline.core.progress import track
from pathline.systems.inverting_emoji import END, GUIDANCE, OnEmoji, Trip

ABOUT = (
    "psnr: of the round trip under the own caption, dB; success: how often the judge of captions "
    "finds the target nearer than the source; leaning: by how much, in cosines; kept: rms distance "
    "to the original; spread: deviation of the code."
)


def trip_of(bench: OnEmoji, name: str) -> Trip:
    """Return the pictures after a method, from the cache if they were made before."""
    method, steps = bench.methods[name]
    weights = bench.model.details.get("weights")
    told = [bench.n, method.describe(), steps, GUIDANCE, END, weights]

    def make() -> Mapping[str, Tensor]:
        made = bench.trip(name)
        numbers = torch.tensor([made.spread, made.calls], dtype=torch.float64)
        return {"back": made.back, "edited": made.edited, "numbers": numbers}

    found = kept("bench-inversion", told, make)
    spread, calls = found["numbers"].tolist()
    return Trip(found["back"], found["edited"], spread, int(calls))


def heading(bench: OnEmoji) -> str:
    """Return what is compared, in a sentence or two."""
    return (
        f"{bench.n} held-out emoji, inverted under their own caption without guidance and drawn "
        f"again under another one's with guidance {GUIDANCE:g}, every method with as many network "
        "calls for both."
    )


def gallery(bench: OnEmoji, trips: Mapping[str, Trip], rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the pictures of every method, and the table, as HTML."""
    x, source, target = bench.shown
    words = "; ".join(f"{a} → {b}" for a, b in zip(source, target, strict=True))
    yield f"<p>{heading(bench)}</p><p>{words}.</p><h2>Numbers</h2><p>{ABOUT}</p>"
    yield from table([dict(zip(row, written(row), strict=True)) for row in rows])
    for name, trip in trips.items():
        yield f"<h2>{name}</h2><p>Rows: the picture, its round trip, its edit.</p>"
        strip = Layout(len(x), 2, 2).arrange(to_pixels(torch.cat((x, trip.back, trip.edited))))
        yield image(encode_png(strip), f"{name}: pictures, round trips, edits")


def written(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row."""
    return [v if isinstance(v, str) else f"{v:.4g}" for v in row.values()]


def main(folder: str = "benchmarks") -> None:
    """Write the table and the gallery, `python -m pathline.bench.inversion [FOLDER]`."""
    bench = OnEmoji()
    trips = {name: trip_of(bench, name) for name in track(list(bench.methods), "inverting emoji")}
    rows = [
        {"method": name, "steps": bench.methods[name][1], **asdict(bench.judged(trip))}
        for name, trip in trips.items()
    ]
    weights = bench.model.details.get("weights", {})
    told = {"pictures": bench.n, "guidance": GUIDANCE, "weights": weights, "rows": rows}
    write_atomically(Path(folder) / "inversion.json", json.dumps(told, indent=1) + "\n")
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *map(written, rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    head = f"{heading(bench)} `python -m pathline.bench.inversion` writes this page.\n\n{ABOUT}\n\n"
    write_atomically(Path(folder) / "inversion.md", f"# Inversion of emoji\n\n{head}{text}\n")
    html = page("Inversion of emoji", gallery(bench, trips, rows))
    write_atomically(Path(folder) / "inversion.html", html)


if __name__ == "__main__":
    main(*sys.argv[1:])
