"""Networks: plain torch modules that know nothing of paths, solvers or data."""

from pathline.nets.dit import DiT
from pathline.nets.unet import UNet

NETWORKS = {"DiT": DiT, "UNet": UNet}
"""The networks that a model's configuration can name."""

__all__ = ["NETWORKS", "DiT", "UNet"]
