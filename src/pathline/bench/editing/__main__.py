"""`python -m pathline.bench.editing [FOLDER]`: the table, its numbers and the gallery.

Each setting's pictures are kept in the cache, so it may be cut short and begun again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pathline.bench.editing.contest import Contest
from pathline.bench.editing.page import gallery, markdown
from pathline.core.files import write_atomically


def main(folder: str = "benchmarks") -> None:
    """Write editing.json, editing.md and editing.html."""
    contest, place = Contest(), Path(folder)
    text = json.dumps(contest.to_dict(), ensure_ascii=False, indent=1)
    write_atomically(place / "editing.json", text + "\n")
    write_atomically(place / "editing.md", markdown(contest))
    write_atomically(place / "editing.html", gallery(contest))


if __name__ == "__main__":
    main(*sys.argv[1:])
