"""Networks: plain torch modules that know nothing of paths, solvers or data."""

from pathline.nets.dit import DiT

NETWORKS = {"DiT": DiT}
"""The networks that a model's configuration can name."""

__all__ = ["NETWORKS", "DiT"]
