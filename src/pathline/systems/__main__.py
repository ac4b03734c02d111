"""`python -m pathline.systems [SLUG ...]`: measure every system and keep the values.

The kept values are what `pathline systems` shows; they are committed (`make systems`).
"""

import json
import sys

from pathline.core.files import write_atomically
from pathline.systems.run import MEASURED, run
from pathline.systems.system import systems

for slug in sys.argv[1:] or [entry.name for entry in systems]:
    report = run(slug)
    content = json.dumps(report.to_dict(), ensure_ascii=False, indent=1)
    write_atomically(MEASURED / f"{slug}.json", content + "\n")
    held = sum(claim.passed for claim in report.claims)
    print(f"{slug}: {held} of {len(report.claims)} claims hold; {report.seconds:.0f} s")
