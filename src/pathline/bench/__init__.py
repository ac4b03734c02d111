"""Benchmarks: beside other libraries, or of paths beside each other, with the bars we keep."""

from collections.abc import Callable
from typing import Any

from pathline.bench.adjoint import adjoint
from pathline.bench.guides import guides
from pathline.bench.memory import memory
from pathline.bench.ode import ode
from pathline.bench.overhead import overhead
from pathline.bench.paths import compare as compare_paths
from pathline.bench.precision import Comparison, solvers
from pathline.bench.report import Bar, Report, Row
from pathline.bench.sde import sde

BENCHES: dict[str, Callable[..., Any]] = {
    "overhead": overhead,
    "solvers": solvers,
    "paths": compare_paths,
    "guides": guides,
    "adjoint": adjoint,
    "ode": ode,
    "sde": sde,
    "memory": memory,
}
"""Every benchmark, by the name that `pathline bench` knows it by."""

__all__ = ["BENCHES", "Bar", "Comparison", "Report", "Row", "adjoint", "overhead", "sde", "solvers"]
