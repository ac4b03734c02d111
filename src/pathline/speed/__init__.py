"""Speed: fewer evaluations of the field for each sample."""

from pathline.speed.chain import Chain, Chains, Walk
from pathline.speed.dmcmc import DMCMC, Beginning
from pathline.speed.kernels import MALA, Kernel, Langevin
from pathline.speed.levels import ExactLevels, NoiseLevels, level_table

__all__ = [
    "DMCMC",
    "MALA",
    "Beginning",
    "Chain",
    "Chains",
    "ExactLevels",
    "Kernel",
    "Langevin",
    "NoiseLevels",
    "Walk",
    "level_table",
]
