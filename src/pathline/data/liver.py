"""Visits of patients with a liver disease: real, irregular in time, and with gaps.

312 patients of the Mayo Clinic's trial in primary biliary cholangitis came back up to 15 times in
14 years; at each visit twelve things were measured, or not. From Debian's package of R's
`survival`.

Paper: Murtaugh et al. 1994, Hepatology 20(1), 126-134.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from pathline.core.files import write_atomically
from pathline.data.fetch import Package, cache_folder, fetch
from pathline.data.rdata import read_table

__all__ = ["FILES", "VARIABLES", "LiverData", "build", "describe", "load"]

VARIABLES = ("ascites", "hepato", "spiders", "edema", "bili", "chol", "albumin", "alk.phos", "ast",
             "platelet", "protime", "stage")  # fmt: skip
OUTCOMES = ("alive", "transplanted", "dead")
FILES = ("arrays.safetensors", "index.json")
LICENCES = {"visits": "GPL-2, with R's survival (data of the Mayo Clinic)"}
PACKAGE = Package(
    "apt",
    "r-cran-survival",
    "3.5-3-1",
    "f7b474e37620b54bd0112b3847bbad0a6b75b9c2121d6936548dd74ebd4003d5",
)


@dataclass(frozen=True)
class LiverData:
    """The data set in memory.

    Args:
        values: (312, 16, 12) float64, `VARIABLES` in their own units; NaN where nothing was
            measured, and after the last visit.
        days: (312, 16) float64 since the first visit; NaN after the last.
        outcomes: (312,) int64, numbers in `OUTCOMES`, at the end of the study.
    """

    values: np.ndarray
    days: np.ndarray
    outcomes: np.ndarray


def load() -> LiverData:
    """Return the data set from the cache, built on first use.

    Raises:
        FetchError: the package cannot be fetched.
    """
    return LiverData(**load_file(build() / FILES[0]))


def build() -> Path:
    """Return the folder with the arrays and the index, made from the package on first use."""
    folder = cache_folder() / "liver-1"
    if not (folder / FILES[1]).is_file():
        table = read_table(fetch(PACKAGE) / "usr/lib/R/library/survival/data", "pbcseq")
        index = {"variables": VARIABLES, "outcomes": OUTCOMES, "licences": LICENCES,
                 "packages": [asdict(PACKAGE)]}  # fmt: skip
        write_atomically(folder / FILES[0], save(by_patient(table)))
        write_atomically(folder / FILES[1], json.dumps(index, indent=1) + "\n")
    return folder


def by_patient(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a table of visits as arrays with a row for each patient, as of `LiverData`."""
    patients, rows = np.unique(table["id"], return_inverse=True)
    visits = [np.flatnonzero(rows == i) for i in range(len(patients))]
    measured = np.stack([table[name] for name in VARIABLES], 1).astype(np.float64)
    longest = max(map(len, visits))
    values = np.full((len(patients), longest, len(VARIABLES)), np.nan)
    days = np.full((len(patients), longest), np.nan)
    for i, which in enumerate(visits):
        which = which[np.argsort(table["day"][which], kind="stable")]
        values[i, : len(which)], days[i, : len(which)] = measured[which], table["day"][which]
    outcomes = np.array([table["status"][which[0]] for which in visits], np.int64)
    return {"values": values, "days": days, "outcomes": outcomes}


def describe() -> tuple[Mapping[str, int], Mapping[str, str]]:
    """Return how many patients and visits there are, and the licences."""
    data = load()
    counts = {"patients": len(data.days), "visits": int(np.isfinite(data.days).sum())}
    for k, name in enumerate(OUTCOMES):
        counts[name] = int((data.outcomes == k).sum())
    return counts, LICENCES
