"""Paths: how data becomes noise. Pure mathematics of time; no network, no solver."""

from pathline.paths.flow import EDM, VE, CondOT
from pathline.paths.path import GaussianPath, Time, as_time, bshape, paths
from pathline.paths.pfgmpp import PFGMpp
from pathline.paths.student import StudentT
from pathline.paths.tabulated import Tabulated
from pathline.paths.vp import SubVP, VPCosine, VPLinear

__all__ = [
    "EDM",
    "VE",
    "CondOT",
    "GaussianPath",
    "PFGMpp",
    "StudentT",
    "SubVP",
    "Tabulated",
    "Time",
    "VPCosine",
    "VPLinear",
    "as_time",
    "bshape",
    "paths",
]
