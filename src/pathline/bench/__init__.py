"""Benchmarks: measured beside other libraries, with the bars that the project keeps."""

from collections.abc import Callable
from typing import Any

from pathline.bench.overhead import overhead
from pathline.bench.precision import Comparison, solvers
from pathline.bench.report import Bar, Report, Row

BENCHES: dict[str, Callable[..., Any]] = {"overhead": overhead, "solvers": solvers}
"""Every benchmark, by the name that `pathline bench` knows it by."""

__all__ = ["BENCHES", "Bar", "Comparison", "Report", "Row", "overhead", "solvers"]
