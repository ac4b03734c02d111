"""Couplings: which noise a datum is paired with in training, and how much a pair counts."""

from pathline.learn.couplings.coupling import Coupling, Independent, Pairs, couplings
from pathline.learn.couplings.diagnose import Diagnosis, choose_eps, diagnose
from pathline.learn.couplings.gibbs import BalancedGibbs, Gibbs
from pathline.learn.couplings.sinkhorn import Potentials, Transport, sinkhorn
from pathline.learn.couplings.transport import ExactOT, Sinkhorn, assignment, wasserstein
from pathline.learn.couplings.weighing import Weighing, effective

__all__ = [
    "BalancedGibbs",
    "Coupling",
    "Diagnosis",
    "ExactOT",
    "Gibbs",
    "Independent",
    "Pairs",
    "Potentials",
    "Sinkhorn",
    "Transport",
    "Weighing",
    "assignment",
    "choose_eps",
    "couplings",
    "diagnose",
    "effective",
    "sinkhorn",
    "wasserstein",
]
