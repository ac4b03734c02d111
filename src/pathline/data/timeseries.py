"""Labelled time series that aeon ships, read from its wheel; aeon itself is not needed.

Each set is a list of series of one or more channels and of one class, split into training and test
as its authors did. Series of unequal length are padded with NaN.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from pathline.core.errors import UsageError, unknown
from pathline.core.files import write_atomically
from pathline.data.fetch import Package, cache_folder, fetch

__all__ = ["FILES", "SETS", "SeriesData", "build", "describe", "load", "read_ts"]

PACKAGE = Package(
    "pip",
    "aeon",
    "1.6.0",
    "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
)
SETS = (
    "ACSF1",
    "ArrowHead",
    "BasicMotions",
    "GunPoint",
    "ItalyPowerDemand",
    "JapaneseVowels",
    "OSULeaf",
    "PickupGestureWiimoteZ",
)
"""Those that are classified."""
FILES = ("arrays.safetensors", "index.json")
LICENCES = {
    "series": "the UCR and UEA archives' (free for research, with citation), as shipped by aeon "
    "under BSD-3-Clause; JapaneseVowels is from UCI under CC-BY-4.0",
}


@dataclass(frozen=True)
class SeriesData:
    """A data set in memory.

    Args:
        train_values: (n, length, channels) float64; NaN after the end of a shorter series.
        train_lengths: (n,) int64.
        train_labels: (n,) int64, numbers in `classes`.
        test_values: likewise.
        test_lengths: likewise.
        test_labels: likewise.
        classes: their names.
    """

    train_values: np.ndarray
    train_lengths: np.ndarray
    train_labels: np.ndarray
    test_values: np.ndarray
    test_lengths: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]


def load(name: str) -> SeriesData:
    """Return a data set from the cache, built on first use.

    Raises:
        UsageError: no set has this name; the message has the nearest.
        FetchError: the package cannot be fetched.
    """
    if name not in SETS:
        raise unknown("set of time series", name, SETS)
    folder = build()
    stem = f"{name}/"
    arrays = load_file(folder / FILES[0])
    found = {key.removeprefix(stem): a for key, a in arrays.items() if key.startswith(stem)}
    classes = json.loads((folder / FILES[1]).read_text("utf-8"))["classes"][name]
    return SeriesData(**found, classes=tuple(classes))


def build() -> Path:
    """Return the folder with the arrays and the index, made from the package on first use."""
    folder = cache_folder() / "timeseries-1"
    if not (folder / FILES[1]).is_file():
        source = fetch(PACKAGE) / "aeon" / "datasets" / "data"
        arrays, classes = dict[str, np.ndarray](), dict[str, Sequence[str]]()
        for name in SETS:
            for split in ("train", "test"):
                read = read_ts(source / name / f"{name}_{split.upper()}.ts")
                classes[name] = read.classes
                arrays |= {
                    f"{name}/{split}_values": read.values,
                    f"{name}/{split}_lengths": read.lengths,
                    f"{name}/{split}_labels": read.labels,
                }
        index = {"classes": classes, "licences": LICENCES, "packages": [asdict(PACKAGE)]}
        write_atomically(folder / FILES[0], save(arrays))
        write_atomically(folder / FILES[1], json.dumps(index, indent=1) + "\n")
    return folder


def describe() -> tuple[Mapping[str, int], Mapping[str, str]]:
    """Return how many series each split of each set has, and the licences."""
    counts = dict[str, int]()
    for name in SETS:
        data = load(name)
        counts[f"{name}, train"] = len(data.train_labels)
        counts[f"{name}, test"] = len(data.test_labels)
    return counts, LICENCES


@dataclass(frozen=True)
class ReadSeries:
    """What a file in the `.ts` format says.

    Args:
        values: (n, length, channels) float64, NaN where nothing is said.
        lengths: (n,) int64.
        labels: (n,) int64.
        classes: the names that labels are numbers of.
    """

    values: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def read_ts(path: str | Path) -> ReadSeries:
    """Return the labelled series of a file in the `.ts` format of sktime and aeon.

    Channels are separated by colons, the class stands last; "?" is a missing value.

    Raises:
        UsageError: the file cannot be read, has time stamps or no classes, or a line contradicts
            its header; the message has the line's number.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}.") from error
    header, rows = _parts(lines)
    told = header.get("classlabel", "").split()
    if header.get("timestamps", "false").lower() == "true" or not told or told[0] != "true":
        raise UsageError(
            f"{path.name} has time stamps or no classes; what is read here are series at even times"
            " with a class each."
        )
    classes = tuple(told[1:])
    each = [_row(line, classes, f"{path.name}, line {number}") for number, line in rows]
    if not each:
        raise UsageError(f"{path.name} has no series after @data.")
    channels, longest = len(each[0][0]), max(len(c) for row, _ in each for c in row)
    values = np.full((len(each), longest, channels), np.nan)
    for i, (row, _) in enumerate(each):
        if len(row) != channels:
            raise UsageError(
                f"{path.name}: series {i} has {len(row)} channels, the first one {channels}."
            )
        for j, channel in enumerate(row):
            values[i, : len(channel), j] = channel
    lengths = np.array([max(len(c) for c in row) for row, _ in each], np.int64)
    labels = np.array([label for _, label in each], np.int64)
    return ReadSeries(values, lengths, labels, classes)


def _parts(lines: Sequence[str]) -> tuple[dict[str, str], Iterator[tuple[int, str]]]:
    """Return the header, by names in small letters, and the numbered lines of data."""
    header = dict[str, str]()
    for number, line in enumerate(lines):
        if line.lower().startswith("@data"):
            rest = enumerate(lines[number + 1 :], number + 2)
            return header, ((n, told) for n, told in rest if told.strip())
        if line.startswith("@"):
            name, _, value = line[1:].partition(" ")
            header[name.lower()] = value.strip()
    return header, iter(())


def _row(line: str, classes: Sequence[str], where: str) -> tuple[list[np.ndarray], int]:
    *channels, name = line.strip().split(":")
    if name not in classes:
        raise UsageError(f"{where}: the class {name!r} is none of {', '.join(classes)}.")
    try:
        read = [np.array([np.nan if v == "?" else float(v) for v in c.split(",")])
                for c in channels]  # fmt: skip
    except ValueError as error:
        raise UsageError(f"{where}: {error}.") from error
    if not read:
        raise UsageError(f"{where} has a class and no values.")
    return read, classes.index(name)
