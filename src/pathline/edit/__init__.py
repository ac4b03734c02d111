"""Editing: what is done to data by way of their codes."""

from pathline.edit.interpolation import interpolate, slerp

__all__ = ["interpolate", "slerp"]
