"""Speed: fewer evaluations of the field for each sample."""

from pathline.speed.chain import Chain, Chains, Walk
from pathline.speed.dmcmc import DMCMC, Beginning
from pathline.speed.kernels import MALA, Kernel, Langevin
from pathline.speed.levels import ExactLevels, NoiseLevels, level_table
from pathline.speed.policy import Cadence, speeds
from pathline.speed.running import Skipped
from pathline.speed.sada import SADA, Tokens

__all__ = [
    "DMCMC",
    "MALA",
    "SADA",
    "Beginning",
    "Cadence",
    "Chain",
    "Chains",
    "ExactLevels",
    "Kernel",
    "Langevin",
    "NoiseLevels",
    "Skipped",
    "Tokens",
    "Walk",
    "level_table",
    "speeds",
]
