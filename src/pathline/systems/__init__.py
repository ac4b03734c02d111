"""Systems: one thin recipe a paper, whose claims are measured by `run`."""

# A recipe registers its system when it is imported.
from pathline.systems import (
    adjoint_dpm,
    bdia,
    ctrl,
    dci,
    deis,
    diff_editor,
    diffusion_overview,
    dmcmc,
    dpm_solver,
    dpm_solver_v3,
    kinetic_optimal_paths,
    ode_sde_gap,
    pfgmpp,
    sada,
    score_sde,
    steered_diffusion,
    usf_s3,
    weighted_cfm,
)
from pathline.systems.report import Report
from pathline.systems.run import claims_of, listing, run
from pathline.systems.system import Claim, Measured, Plot, System, register, systems

__all__ = [
    "Claim",
    "Measured",
    "Plot",
    "Report",
    "System",
    "adjoint_dpm",
    "bdia",
    "claims_of",
    "ctrl",
    "dci",
    "deis",
    "diff_editor",
    "diffusion_overview",
    "dmcmc",
    "dpm_solver",
    "dpm_solver_v3",
    "kinetic_optimal_paths",
    "listing",
    "ode_sde_gap",
    "pfgmpp",
    "register",
    "run",
    "sada",
    "score_sde",
    "steered_diffusion",
    "systems",
    "usf_s3",
    "weighted_cfm",
]
