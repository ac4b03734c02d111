"""Editing: what is done to data by way of their codes."""

from pathline.edit.anchored import Anchored
from pathline.edit.by_solver import BySolver
from pathline.edit.edict import EDICT
from pathline.edit.encode import Code, decode, encode
from pathline.edit.fixed_point import (
    AdamW,
    Anderson,
    FixedPoint,
    Picard,
    dci,
    ddim_inversion,
)
from pathline.edit.interpolation import interpolate, slerp
from pathline.edit.inverter import Inverter, Way
from pathline.edit.reference import Reference

__all__ = [
    "EDICT",
    "AdamW",
    "Anchored",
    "Anderson",
    "BySolver",
    "Code",
    "FixedPoint",
    "Inverter",
    "Picard",
    "Reference",
    "Way",
    "dci",
    "ddim_inversion",
    "decode",
    "encode",
    "interpolate",
    "slerp",
]
