"""Inversion methods beside each other on held-out emoji, as a page in benchmarks/."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pathline.core.files import write_atomically
from pathline.core.progress import track
from pathline.systems.inverting_emoji import GUIDANCE, OnEmoji


def main(folder: str = "benchmarks") -> None:
    """Write the table of all methods, `python -m pathline.bench.inversion [FOLDER]`."""
    bench, rows = OnEmoji(), list[dict[str, Any]]()
    for name in track(list(bench.methods), "inverting emoji"):
        rows.append(
            {"method": name, "steps": bench.methods[name][1], **asdict(bench.outcome(name))}
        )
    weights = bench.model.details.get("weights", {})
    told = {"pictures": bench.n, "guidance": GUIDANCE, "weights": weights, "rows": rows}
    write_atomically(Path(folder) / "inversion.json", json.dumps(told, indent=1) + "\n")
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[v if isinstance(v, str) else f"{v:.4g}" for v in row.values()] for row in rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    head = (
        f"{bench.n} held-out emoji, inverted under their own caption without guidance and drawn "
        f"again under another one's with guidance {GUIDANCE:g}, every method with as many network "
        "calls for both. `python -m pathline.bench.inversion` writes this page.\n\n"
        "psnr: of the round trip under the own caption, dB; success: how often the judge of "
        "captions finds the target nearer than the source; leaning: by how much, in cosines; kept: "
        "rms distance to the original; spread: deviation of the code.\n\n"
    )
    write_atomically(Path(folder) / "inversion.md", f"# Inversion of emoji\n\n{head}{text}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
