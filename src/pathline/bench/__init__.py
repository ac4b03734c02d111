"""Benchmarks: measured beside other libraries, with the bars that the project keeps."""

from collections.abc import Callable

from pathline.bench.overhead import overhead
from pathline.bench.report import Bar, Report, Row

BENCHES: dict[str, Callable[..., Report]] = {"overhead": overhead}
"""Every benchmark, by the name that `pathline bench` knows it by."""

__all__ = ["BENCHES", "Bar", "Report", "Row", "overhead"]
