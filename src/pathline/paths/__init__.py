"""Paths: how data becomes noise. Pure mathematics of time; no network, no solver."""

from pathline.paths.energy import energy
from pathline.paths.flow import EDM, VE, CondOT
from pathline.paths.kinetic import KineticOptimal
from pathline.paths.ou import OrnsteinUhlenbeck
from pathline.paths.path import GaussianPath, Time, as_time, bshape, paths
from pathline.paths.pfgmpp import PFGMpp
from pathline.paths.polar import Interpolated, Polar, Trigonometric
from pathline.paths.separation import Separation
from pathline.paths.student import StudentT
from pathline.paths.tabulated import Tabulated
from pathline.paths.trimmed import Trimmed
from pathline.paths.vp import SubVP, VPCosine, VPLinear

__all__ = [
    "EDM",
    "VE",
    "CondOT",
    "GaussianPath",
    "Interpolated",
    "KineticOptimal",
    "OrnsteinUhlenbeck",
    "PFGMpp",
    "Polar",
    "Separation",
    "StudentT",
    "SubVP",
    "Tabulated",
    "Time",
    "Trigonometric",
    "Trimmed",
    "VPCosine",
    "VPLinear",
    "as_time",
    "bshape",
    "energy",
    "paths",
]
