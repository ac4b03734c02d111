"""Solvers: rules that write plans, the grids they run on, and the driver that runs them."""

from pathline.solvers import adjoints, grids
from pathline.solvers.adams import Adams
from pathline.solvers.adaptive_rk import AdaptiveRK
from pathline.solvers.adaptive_sde import AdaptiveSDE
from pathline.solvers.bidirectional import BDIA, Reversible
from pathline.solvers.calibrate import calibrate
from pathline.solvers.corrector import PredictorCorrector
from pathline.solvers.deis import DEIS, IPNDM
from pathline.solvers.dpm_adaptive import AdaptiveDPM
from pathline.solvers.dpm_v3 import DPMv3
from pathline.solvers.ems import EMSTable
from pathline.solvers.execute import Step
from pathline.solvers.explain import Explanation, explain
from pathline.solvers.exponential import DDIM, DPMpp
from pathline.solvers.gradients import Gradients, differentiate
from pathline.solvers.grids import Grid
from pathline.solvers.lattice import LatticeChain
from pathline.solvers.plan import Plan, Row
from pathline.solvers.probe import NoiseInjection
from pathline.solvers.reversible_heun import ReversibleHeun
from pathline.solvers.runge_kutta import RK, RK4, Euler, Heun
from pathline.solvers.sa import SA
from pathline.solvers.schedule import SolverSchedule
from pathline.solvers.sde import EDMSampler, EulerMaruyama, ReverseDiffusion
from pathline.solvers.singlestep import DPM
from pathline.solvers.soft_value import SoftValues
from pathline.solvers.solve import sample, solve, steps
from pathline.solvers.solver import Solver, solvers
from pathline.solvers.stepped import Stepped
from pathline.solvers.stiff import Rodas
from pathline.solvers.stochastic import (
    SRK,
    EulerHeun,
    ItoEuler,
    Milstein,
    SlowRK,
    StratonovichRK,
)
from pathline.solvers.thinned import ThinnedGuidance
from pathline.solvers.unified import StepChoice, Unified
from pathline.solvers.unipc import UniPC

__all__ = [
    "BDIA",
    "SRK",
    "SlowRK",
    "EulerHeun",
    "ItoEuler",
    "Milstein",
    "ReversibleHeun",
    "StratonovichRK",
    "RK",
    "SA",
    "AdaptiveDPM",
    "AdaptiveRK",
    "AdaptiveSDE",
    "PredictorCorrector",
    "ReverseDiffusion",
    "Reversible",
    "Rodas",
    "Stepped",
    "ThinnedGuidance",
    "Adams",
    "DDIM",
    "DEIS",
    "DPM",
    "DPMv3",
    "EMSTable",
    "EDMSampler",
    "EulerMaruyama",
    "IPNDM",
    "LatticeChain",
    "NoiseInjection",
    "SoftValues",
    "UniPC",
    "RK4",
    "DPMpp",
    "Euler",
    "Grid",
    "Heun",
    "Plan",
    "Row",
    "Solver",
    "SolverSchedule",
    "Step",
    "adjoints",
    "Explanation",
    "Gradients",
    "calibrate",
    "differentiate",
    "explain",
    "StepChoice",
    "Unified",
    "grids",
    "sample",
    "solve",
    "solvers",
    "steps",
]
