"""`python -m pathline.bench.diff_editing [FOLDER]`: every task of DiffEditor once, on one page.

Emoji on photographs, edited by the shipped model, which never saw a photograph: the picture, what a
perfect edit would be where that is known, noise that is only copied, and the edit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pathline.core.files import write_atomically
from pathline.core.images import Layout, encode_png, to_pixels
from pathline.core.page import image, table
from pathline.core.page import page as html_page
from pathline.core.progress import track
from pathline.edit.diff_editor import DiffEdited
from pathline.edit.diff_tasks import Appearance, Drag, Move, Resize
from pathline.systems.diff_editor_emoji import SIDE, Case, OnPhotos, case_of, composed, psnr

FIRST = 100
"""Pictures that the claims do not use begin here."""
NAME = "diff-editing"
ROWS = (
    "Rows: the picture; what a perfect edit is (move), the other picture (appearance, paste) or "
    "the picture again; noise that is copied and left alone; the edit. PSNR in dB."
)


@dataclass(frozen=True)
class Shown:
    """A task, its case, and what came of it."""

    name: str
    case: Case
    copied: DiffEdited
    edited: DiffEdited

    @property
    def row(self) -> dict[str, str]:
        """The numbers of the edit."""
        guided = [s for s in self.edited.steps if s.guided]
        fell = [(s.edit or 0.0) + (s.content or 0.0) for s in (guided[0], guided[-1])]
        pictures = (self.edited.x, self.copied.x, self.edited.reconstruction)
        stays = [f"{psnr(x[0], self.case.picture, self.case.kept):.1f}" for x in pictures]
        return {
            "task": self.name,
            "shows": self.case.text,
            "evaluations": str(self.edited.nfe),
            "backward passes": str(self.edited.vjps),
            "energy, first guided step": f"{fell[0]:.2f}",
            "last": f"{fell[1]:.2f}",
            "what stays, PSNR": stays[0],
            "copied noise alone": stays[1],
            "inversion alone": stays[2],
        }


def cases() -> list[tuple[str, Case]]:
    """Return one case of every task."""
    move, paste = case_of(FIRST), case_of(FIRST + 1)
    assert isinstance(move.task, Move)
    place = (SIDE // 2 - 6, SIDE // 2 - 6)
    middle, mask = composed(move.ground, FIRST, place)
    other, other_mask = composed(paste.ground, FIRST + 3, place)
    around = torch.zeros(SIDE, SIDE)
    around[place[0] - 4 : place[0] + 16, place[1] - 4 : place[1] + 16] = 1
    points = (((15.5, 15.5), (19.5, 15.5)),)
    centred = replace(move, picture=middle, wanted=middle, kept=~mask)
    return [
        ("move", move),
        ("resize", replace(centred, task=Resize(mask, 1.5), kept=around == 0)),
        ("drag", replace(centred, task=Drag(points, around), kept=around == 0)),
        ("appearance", replace(centred, task=Appearance(mask, other_mask), reference=other)),
        ("paste", paste),
    ]


def shown(photos: OnPhotos) -> list[Shown]:
    """Return what comes of every task."""
    return [
        Shown(name, case, *(photos.edited(case, how, FIRST) for how in ("copied", "guided")))
        for name, case in track(cases(), "tasks of DiffEditor")
    ]


def sheet(found: Sequence[Shown]) -> bytes:
    """Return a column a task: the picture, the other one or the perfect edit, copied, edited."""
    rows: list[Tensor] = []
    for part in range(4):
        for each in found:
            case = each.case
            given = case.wanted if case.reference is None else case.reference
            rows.append([case.picture, given, each.copied.x[0], each.edited.x[0]][part])
    layout = Layout(len(found), 4, 4)
    return encode_png(layout.arrange(to_pixels(torch.stack(rows))))


def page(found: Sequence[Shown], photos: OnPhotos) -> str:
    """Return the page."""
    names = list(found[0].row)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(each.row.values()) + " |" for each in found]
    editor, text = photos.editor, "\n".join(lines)
    return f"""# Every task of DiffEditor, once

`python -m pathline.bench.diff_editing`. Emoji on photographs, 32 × 32, by the shipped `emoji`, that
was shown no photograph: {editor.steps} steps, η κ = {editor.strength:g}, DDIM inversion, w = 1.

![every task]({NAME}.png)

Columns: {", ".join(each.name for each in found)}. {ROWS}

{text}
"""


def gallery(found: Sequence[Shown], photos: OnPhotos) -> str:
    """Return the page as HTML, with the picture inside."""
    steps, strength = photos.editor.steps, photos.editor.strength
    names = ", ".join(each.name for each in found)
    about = (
        "<p>Emoji on photographs, 32 × 32, by a model that was shown no photograph: "
        f"{steps} steps, η κ = {strength:g}. Columns: {names}. {ROWS}</p>"
    )
    rows = table([each.row for each in found])
    return html_page("Every task of DiffEditor", [about, image(sheet(found), "every task"), *rows])


def main(folder: Path = Path("benchmarks")) -> None:
    """Write the page, its picture, and both as HTML."""
    photos = OnPhotos()
    found = shown(photos)
    write_atomically(folder / f"{NAME}.png", sheet(found))
    write_atomically(folder / f"{NAME}.md", page(found, photos))
    write_atomically(folder / f"{NAME}.html", gallery(found, photos))


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:2]))
