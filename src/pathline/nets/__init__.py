"""Networks: plain torch modules that know nothing of paths, solvers or data."""

from pathline.nets.dit import DiT
from pathline.nets.mlp import MLP
from pathline.nets.potential import Potential
from pathline.nets.preconditioned import Preconditioned
from pathline.nets.subspace import SubspaceScore
from pathline.nets.unet import UNet

NETWORKS = {
    "DiT": DiT,
    "MLP": MLP,
    "Potential": Potential,
    "SubspaceScore": SubspaceScore,
    "UNet": UNet,
}
"""The networks that a model's configuration can name."""

__all__ = ["MLP", "NETWORKS", "DiT", "Potential", "Preconditioned", "SubspaceScore", "UNet"]
