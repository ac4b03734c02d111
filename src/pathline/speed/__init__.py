"""Speed: fewer evaluations of the field for each sample."""

from pathline.speed.chain import Chain, Chains, Walk
from pathline.speed.dmcmc import DMCMC, Beginning
from pathline.speed.kernels import MALA, Kernel, Langevin
from pathline.speed.levels import ExactLevels, NoiseLevels, level_table
from pathline.speed.metrics import (
    Endpoint,
    frechet,
    normalised_path_energy,
    path_energy,
    sliced_wasserstein,
)
from pathline.speed.mutations import mutations
from pathline.speed.policy import Cadence, speeds
from pathline.speed.running import Skipped
from pathline.speed.sada import SADA, Tokens
from pathline.speed.schedules import ScheduleSpace, zoo
from pathline.speed.search import Scored, Search, Settings, evolve

__all__ = [
    "DMCMC",
    "MALA",
    "SADA",
    "Beginning",
    "Cadence",
    "Chain",
    "Chains",
    "Endpoint",
    "ExactLevels",
    "Kernel",
    "Langevin",
    "NoiseLevels",
    "Skipped",
    "Tokens",
    "ScheduleSpace",
    "Scored",
    "Search",
    "Settings",
    "Walk",
    "evolve",
    "frechet",
    "level_table",
    "speeds",
    "mutations",
    "normalised_path_energy",
    "path_energy",
    "sliced_wasserstein",
    "zoo",
]
