"""The data sets by name: what `pathline data NAME` makes and shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pathline.core.errors import unknown
from pathline.data import emoji, fashion, liver, timeseries
from pathline.data.fetch import sha256_of

__all__ = ["DATASETS", "Dataset", "DatasetInfo", "prepare"]


@dataclass(frozen=True)
class Dataset:
    """A data set that can be prepared.

    Args:
        name: what it is called.
        about: one line on what it is.
        build: makes it in the cache and returns its folder.
        files: what lies there, all of it.
        describe: counts and licences of what was built.
    """

    name: str
    about: str
    build: Callable[[], Path]
    files: tuple[str, ...]
    describe: Callable[[], tuple[Mapping[str, int], Mapping[str, str]]]


@dataclass(frozen=True)
class DatasetInfo:
    """What `prepare` made.

    Args:
        name: of the data set.
        about: one line on what it is.
        path: its folder in the cache.
        counts: images or series by split, and by whatever else tells them apart.
        checksum: sha256 of its files; the same whenever it is made from the same packages.
        licences: of what it is made of.
    """

    name: str
    about: str
    path: Path
    counts: Mapping[str, int]
    checksum: str
    licences: Mapping[str, str]


DATASETS: Mapping[str, Dataset] = {
    "emoji": Dataset(
        "emoji",
        "captioned emoji of three vendors, 32 × 32 RGB",
        emoji.build,
        emoji.FILES,
        emoji.describe,
    ),
    "fashion": Dataset(
        "fashion",
        "Fashion-MNIST, 28 × 28 grey, ten classes",
        fashion.build,
        fashion.FILES,
        fashion.describe,
    ),
    "liver": Dataset(
        "liver",
        "visits of 312 patients with a liver disease, irregular and with gaps",
        liver.build,
        liver.FILES,
        liver.describe,
    ),
    "timeseries": Dataset(
        "timeseries",
        "eight labelled sets of time series of the UCR and UEA archives",
        timeseries.build,
        timeseries.FILES,
        timeseries.describe,
    ),
}


def prepare(name: str) -> DatasetInfo:
    """Make a data set, or find it in the cache, and say what it is.

    Raises:
        UsageError: no data set has this name; the message has the nearest.
        FetchError: one of its packages cannot be fetched.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    dataset = DATASETS[name]
    folder = dataset.build()
    counts, licences = dataset.describe()
    checksum = sha256_of(*(folder / file for file in dataset.files))
    return DatasetInfo(name, dataset.about, folder, counts, checksum, licences)
