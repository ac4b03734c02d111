"""The gallery: edits by words, by noise and by CODE, as one HTML file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pathline.bench.editing.contest import RATE, STEPS, WALK, Contest, Row
from pathline.core.images import Layout, encode_png, to_pixels
from pathline.core.page import image, page, table
from pathline.edit import Edited, text_edit
from pathline.solvers import BDIA, grids
from pathline.steer import CFG

SCALE = 2
TEXTS = (
    ("red apple", "green apple"),
    ("red heart", "blue heart"),
    ("automobile", "taxi"),
    ("yellow circle", "purple circle"),
)
GUIDANCE = 3.0
EDIT_STEPS = 16


def worded(contest: Contest) -> tuple[Tensor, dict[str, Edited]]:
    """Return pictures that the model draws, and their edits under other words."""
    from pathline.solvers import sample

    model, sources = contest.model, [a for a, _ in TEXTS]
    grid, targets = grids.log_snr(EDIT_STEPS, start=0.98), [b for _, b in TEXTS]
    with torch.no_grad():
        x = sample(model, len(TEXTS), guide=CFG(GUIDANCE), text=sources).x.clamp(-1, 1)
        how: dict[str, Any] = {"grid": grid, "guide": CFG(GUIDANCE)}
        made = {
            "BDIA, γ = 0.96, exact": text_edit(model, x, sources, targets, **how),
            "BDIA, γ = 1, exact": text_edit(model, x, sources, targets, solver=BDIA(), **how),
            "DDIM, turned round": text_edit(model, x, sources, targets, solver="ddim", **how),
        }
    return x, made


def gallery(contest: Contest) -> str:
    """Return the page as HTML text."""
    return page("Editing emoji", _body(contest))


def _body(contest: Contest) -> Iterator[str]:
    x, made = worded(contest)
    words = "; ".join(f"{a} → {b}" for a, b in TEXTS)
    yield (
        f"<h2>By words</h2><p>{words}. Pictures that the model drew, inverted under what they "
        f"show, decoded under what they shall show with guidance {GUIDANCE:g}, {EDIT_STEPS} steps "
        "each way. Rows: the picture, and what each way makes of it.</p>"
    )
    yield _strip([x, *(e.x[:, 0] for e in made.values())], "edits by words")
    yield from table([
        {"way": name, "round trip off by": f"{float(e.error.max()):.2g}" if e.error is not None
         else "–", "evaluations": str(e.nfe)} for name, e in made.items()
    ])  # fmt: skip
    names = [
        "SDEdit 0.32",
        "SDEdit 0.64",
        "CODE L = 12, clipping alone",
        "CODE L = 8",
        "CODE L = 16",
    ]
    yield (
        "<h2>What the model has never seen</h2><p>Held-out emoji, damaged in a way that nobody "
        "tells the model of. Rows: the picture, its damage, "
        f"{', '.join(names)}. Nearest real: mean distance of features to the nearest real "
        "picture; from input: root mean square; from clean: perceptual.</p>"
    )
    for damage, y in contest.damaged.items():
        yield f"<h3>{damage}</h3>"
        parts = [contest.repaired(name, damage) for name in names]
        yield _strip([contest.shown[0], y, *parts], f"{damage}, repaired")
        yield from table([_cells(r) for r in contest.untouched if r.damage == damage]
                         + [_cells(r) for r in contest.rows if r.damage == damage])  # fmt: skip
    yield '<p class="small">python -m pathline.bench.editing writes this page.</p>'


def _cells(row: Row) -> dict[str, str]:
    told = asdict(row)
    clipped = "" if row.clipped is None else f"{100 * row.clipped:.2g} %"
    return {
        "": told["setting"], "nearest real": f"{row.unreal:.3f}", "from input": f"{row.off:.3f}",
        "from clean": f"{row.unlike:.3f}", "evaluations": str(row.calls), "clipped": clipped,
    }  # fmt: skip


def _strip(rows: list[Tensor], about: str) -> str:
    """Return rows of pictures as one image."""
    layout = Layout(len(rows[0]), SCALE, 2)
    return image(encode_png(layout.arrange(to_pixels(torch.cat(rows)))), about)


def markdown(contest: Contest) -> str:
    """Return the tables as a page in Markdown."""
    rows = [_cells(r) | {"damage": r.damage} for r in [*contest.untouched, *contest.rows]]
    verdicts = [
        {k: "–" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v)
         for k, v in told.items()} for told in contest.verdicts
    ]  # fmt: skip
    return (
        "# Editing emoji out of distribution\n\n"
        f"{contest.n} held-out emoji, damaged in four ways, repaired by the shipped model without "
        f"a word, on {STEPS} steps; CODE walks {WALK} steps of {RATE:g} σ² at its depth. `python "
        "-m pathline.bench.editing` writes this page, its numbers and the gallery beside it.\n\n"
        "Nearest real: mean distance, on the sphere of EfficientNet-Lite0 features, to the nearest "
        "real emoji; lower is more real. From input: root mean square. From clean: perceptual "
        "distance to the picture before its damage.\n\n"
        f"{_table(rows)}\n\n## At equal realism\n\nCODE's distance over that of SDEdit at the "
        "strength that is as real (linearly between strengths); below 1 CODE wins.\n\n"
        f"{_table(verdicts)}\n"
    )


def _table(rows: list[dict[str, str]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([row[n] for n in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
