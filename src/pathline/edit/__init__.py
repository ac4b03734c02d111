"""Editing: what is done to data by way of their codes."""

from pathline.edit.anchored import Anchored
from pathline.edit.by_solver import BySolver
from pathline.edit.change import ChangeMap
from pathline.edit.clip import Confidence
from pathline.edit.code import THRESHOLD, CodeLog, DepthLog, Evenly, StepSizes, code
from pathline.edit.edict import EDICT
from pathline.edit.edited import Edited
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
from pathline.edit.latent_edit import Acted, EditLog, Latent, latent_edit
from pathline.edit.null_text import NullEmbeddings, NullText, null_text
from pathline.edit.reference import Reference
from pathline.edit.sdedit import sdedit
from pathline.edit.text_edit import text_edit

__all__ = [
    "EDICT",
    "THRESHOLD",
    "Acted",
    "AdamW",
    "Anchored",
    "Anderson",
    "BySolver",
    "ChangeMap",
    "Code",
    "CodeLog",
    "Confidence",
    "DepthLog",
    "EditLog",
    "Edited",
    "Evenly",
    "FixedPoint",
    "Inverter",
    "Latent",
    "NullEmbeddings",
    "NullText",
    "Picard",
    "Reference",
    "StepSizes",
    "Way",
    "code",
    "dci",
    "ddim_inversion",
    "decode",
    "encode",
    "interpolate",
    "latent_edit",
    "null_text",
    "sdedit",
    "slerp",
    "text_edit",
]
