"""`python -m pathline.systems [--train] [SLUG ...]`: measure systems and keep the values.

The kept values are what `pathline systems` shows; they are committed (`make systems`). With
--train only the claims that train a model are measured, with a page for each system in
`benchmarks/`; trainings are kept in the cache, and one that was cut short goes on.
"""

import json
import sys
from pathlib import Path

from pathline.core.files import write_atomically
from pathline.systems.report import markdown
from pathline.systems.run import MEASURED, run
from pathline.systems.system import systems

PAGES = Path("benchmarks")


def keep(slug: str, train: bool) -> None:
    """Measure a system, and keep its values."""
    system = systems.build(slug)
    trained = [claim.id for claim in system.claims if claim.needs == "training"]
    if train and not trained:
        return
    report = run(slug, only=trained if train else None, train=train)
    content = json.dumps(report.to_dict(), ensure_ascii=False, indent=1)
    name = f"{slug}-training" if train else slug
    write_atomically(MEASURED / f"{name}.json", content + "\n")
    if train:
        write_atomically(PAGES / f"training-{slug}.md", markdown(report))
        if system.tables is not None:
            system.tables(PAGES)
    held = sum(claim.passed for claim in report.claims)
    print(f"{name}: {held} of {len(report.claims)} claims hold; {report.seconds:.0f} s")


if __name__ == "__main__":
    asked = [word for word in sys.argv[1:] if word != "--train"]
    for slug in asked or [entry.name for entry in systems]:
        keep(slug, "--train" in sys.argv)
