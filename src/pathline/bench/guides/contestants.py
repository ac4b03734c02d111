"""Who takes part: our guides, and those of azula and deepinv, each as its own library runs it.

A pass is an evaluation of the network; a vector-Jacobian product is counted as another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.bench.guides.problems import Problem
from pathline.bench.peers import Absent, deepinv, installed
from pathline.solvers import Solver, grids, sample, solvers
from pathline.steer import (
    DPS,
    MMPS,
    Clip,
    DiffPIR,
    Guide,
    Inpaint,
    Loss,
    Particles,
    PiGDM,
    Projection,
    Repeat,
    operators,
)

OURS = "pathline"
FEWEST = 4
"""Steps."""


@dataclass(frozen=True)
class Contestant:
    """A guide under a sampler.

    Args:
        by: the library.
        name: of the guide.
        run: (problem, steps) → samples, (pictures · draws, *shape).
        passes: through the network a step.
        networks: whether it is also run on networks.
    """

    by: str
    name: str
    run: Callable[[Problem, int], Tensor]
    passes: int = 1
    networks: bool = True

    @property
    def label(self) -> str:
        """Who it is."""
        return f"{self.by}: {self.name}"

    def drawn(self, problem: Problem, passes: int) -> Tensor | None:
        """Return samples for so many passes; None where these are too few.

        Raises:
            Absent: it cannot take part.
        """
        steps = passes // self.passes
        return None if steps < FEWEST else self.run(problem, steps)


Make = Callable[[Problem, Tensor], Guide]


def _ours(make: Make, solver: Solver, problem: Problem, steps: int) -> Tensor:
    """Run a guide of ours; on a network x̂_0 is kept in the range of pictures."""
    grid = grids.log_snr(steps, last="denoise")
    guide = make(problem, problem.each)
    guide = guide if problem.dtype == torch.float64 else guide & Clip()
    with torch.no_grad():
        return sample(
            problem.field, len(problem.each), solver=solver, grid=grid, guide=guide,
            dtype=problem.dtype,
        ).x  # fmt: skip


def _particles(problem: Problem, steps: int) -> Tensor:
    """Return one run of particles for each picture, each with as many as there are draws."""
    guide = PiGDM(problem.operator, problem.each, problem.std, variance=problem.variance)
    grid = grids.log_snr(steps, last="denoise")
    with torch.no_grad():
        found = Particles(problem.draws).sample(
            problem.field, len(problem.y), guide=guide, grid=grid, dtype=problem.dtype
        )
    return found.even.flatten(0, 1)


def _put(p: Problem, y: Tensor) -> Guide:
    if isinstance(p.operator, operators.Mask):
        return Inpaint(p.operator.mask, y)
    return Projection(p.operator, y)


def _squared(p: Problem, y: Tensor, weight: float) -> Guide:
    def loss(x: Tensor) -> Tensor:
        return (p.operator.forward(x) - y).square().flatten(1).sum(1) / 2

    return Loss(loss, weight)


GUIDES: dict[str, tuple[Make, int, bool]] = {
    "projection": (_put, 1, True),
    "DiffPIR": (lambda p, y: DiffPIR(p.operator, y, p.std), 1, True),
    "loss, λ = 30": (lambda p, y: _squared(p, y, 30.0), 2, False),
    "DPS": (lambda p, y: DPS(p.operator, y, p.std), 2, False),
    "ΠGDM": (lambda p, y: PiGDM(p.operator, y, p.std, variance=p.variance), 2, True),
    "MMPS, 2 iterations": (lambda p, y: MMPS(p.operator, y, p.std, iterations=2), 4, False),
}
"""Name → guide, passes a step, and whether it is run on networks too."""


def ours() -> Iterator[Contestant]:
    """Yield our guides under ancestral steps, some with repeats or ++2M, and particles."""
    ancestral = solvers.build("ddpm")
    for name, (make, passes, networks) in GUIDES.items():
        yield Contestant(OURS, name, _under(make, ancestral), passes, networks)
    for name in ("projection", "DiffPIR"):
        make, passes, _ = GUIDES[name]
        visits = Repeat("ddpm", 4)
        yield Contestant(OURS, f"{name}, four visits", _under(make, visits), 4 * passes, True)
    make, passes, _ = GUIDES["ΠGDM"]
    yield Contestant(OURS, "ΠGDM, ++2M", _under(make, solvers.build("dpmpp_2m")), passes, False)
    yield Contestant(OURS, "particles of ΠGDM", _particles, 2, False)


def _under(make: Make, solver: Solver) -> Callable[[Problem, int], Tensor]:
    return lambda problem, steps: _ours(make, solver, problem, steps)


# azula


def azula() -> Iterator[Contestant]:
    """Yield azula's guides, on its variance-preserving schedule, with ancestral steps."""

    def run(make: Callable[[Problem, Any], Callable[..., Any]]) -> Callable[[Problem, int], Tensor]:
        return lambda problem, steps: _azula(problem, make(problem, _denoiser(problem)), steps)

    yield Contestant("azula", "DPS", run(_azula_dps), 2, False)
    yield Contestant("azula", "ΠGDM", run(_azula_pgdm), 2, True)
    yield Contestant("azula", "DiffPIR", run(_azula_diffpir), 1, True)
    yield Contestant("azula", "MMPS, 2 iterations", run(_azula_mmps), 4, False)


def _denoiser(problem: Problem) -> Any:
    """Return the model of flat states, for azula's solvers know vectors of one axis."""
    denoise, noise = installed("azula.denoise"), installed("azula.noise")

    class Denoiser(denoise.Denoiser):
        schedule = noise.VPSchedule()

        def forward(self, x: Tensor, t: Tensor) -> Any:
            mean = problem.denoised(x.unflatten(1, problem.shape), *self.schedule(t))
            return denoise.DiracPosterior(mean=mean.flatten(1))

    return Denoiser()


def _flat(problem: Problem) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return A of flat states, and the flat measurements of each sample."""

    def forward(x: Tensor) -> Tensor:
        return problem.operator.forward(x.unflatten(-1, problem.shape)).flatten(1)

    return forward, problem.each.flatten(1)


def _azula(problem: Problem, sampler: Callable[..., Any], steps: int) -> Tensor:
    made = sampler(steps=steps, silent=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(len(problem.each), math.prod(problem.shape), dtype=problem.dtype)
        return made(x).unflatten(1, problem.shape)


def _azula_dps(problem: Problem, denoiser: Any) -> Callable[..., Any]:
    """Its norm is that of the whole batch; ζ = √n gives every sample the paper's step."""
    (forward, y), make = _flat(problem), installed("azula.guidance").DPSSampler
    return lambda **how: make(denoiser, y=y, A=forward, zeta=math.sqrt(len(y)), **how)


def _azula_pgdm(problem: Problem, denoiser: Any) -> Callable[..., Any]:
    (forward, y), make = _flat(problem), installed("azula.guidance").PGDMSampler
    measured = problem.y.shape[1:]

    def back(y: Tensor) -> Tensor:
        return problem.operator.pinv(y.unflatten(1, measured)).flatten(1)

    return lambda **how: make(denoiser, y=y, A=forward, A_inv=back, eta=1.0, **how)


def _azula_diffpir(problem: Problem, denoiser: Any) -> Callable[..., Any]:
    forward, y = _flat(problem)
    guide = installed("azula.guidance").DiffPIRDenoiser(
        denoiser, y=y, A=forward, var_y=problem.std**2, lmbda=1.0, iterations=4
    )
    return lambda **how: installed("azula.sample").DDPMSampler(guide, **how)


def _azula_mmps(problem: Problem, denoiser: Any) -> Callable[..., Any]:
    return lambda **how: installed("azula.sample").DDPMSampler(
        azula_mmps(problem, denoiser, iterations=2), **how
    )


def azula_mmps(problem: Problem, denoiser: Any, **how: Any) -> Any:
    """Return azula's moment matching around a denoiser of flat states."""
    noise = installed("azula.linalg.covariance").IsotropicCovariance(problem.std**2)
    forward, y = _flat(problem)
    return installed("azula.guidance").MMPSDenoiser(denoiser, y=y, A=forward, cov_y=noise, **how)


# deepinv


def of_deepinv() -> Iterator[Contestant]:
    """Yield deepinv's DiffPIR and DPS, as it runs them."""
    yield Contestant("deepinv", "DiffPIR", _deepinv_diffpir, 1, True)
    yield Contestant("deepinv", "DPS", _deepinv_dps, 2, False)


def _physics(problem: Problem) -> tuple[Any, Any, Tensor]:
    """Return the package, the operator as it knows it, and measurements of pictures in [0, 1]."""
    package, a = deepinv(), problem.operator
    physics = package.physics.LinearPhysics(
        A=lambda x, **_: a.forward(x), A_adjoint=lambda y, **_: a.adjoint(y),
        noise_model=package.physics.GaussianNoise(problem.std / 2),
    )  # fmt: skip
    ones = torch.ones(1, *problem.shape, dtype=problem.dtype)
    return package, physics, (problem.each + a.forward(ones)) / 2


def _network(package: Any, problem: Problem) -> Any:
    """Return the model as its denoiser of pictures in [0, 1]."""

    class Denoiser(package.models.Denoiser):
        def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
            z = (2 * x - 1).to(problem.dtype)
            level = 2 * torch.as_tensor(sigma, dtype=torch.float64).reshape(-1)[:1]
            made = problem.denoised(z, torch.ones(1, dtype=torch.float64), level)
            return ((made + 1) / 2).to(x)

    return Denoiser()


def _deepinv_diffpir(problem: Problem, steps: int) -> Tensor:
    package, physics, y = _physics(problem)
    made = package.sampling.DiffPIR(
        _network(package, problem), package.optim.data_fidelity.L2(), sigma=problem.std / 2,
        max_iter=steps,
    )  # fmt: skip
    ones = torch.ones(len(y), *problem.shape, dtype=problem.dtype)
    start = physics.A_adjoint(y) if y.shape[1:] == ones.shape[1:] else problem.operator.pinv(y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return 2 * made(y, physics, x_init=start).to(problem.dtype) - 1


def _deepinv_dps(problem: Problem, steps: int) -> Tensor:
    package, physics, y = _physics(problem)
    made = package.sampling.DPS(
        _network(package, problem), num_steps=steps + 1, dtype=torch.float64
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = made(y, physics, x_init=(len(y), *problem.shape))
    return 2 * x.to(problem.dtype) - 1


def everybody() -> tuple[list[Contestant], dict[str, str]]:
    """Return who takes part, and why others do not."""
    found, absent = list(ours()), {}
    peers: dict[str, tuple[Callable[[], object], Callable[[], Iterator[Contestant]]]] = {
        "azula": (lambda: installed("azula.guidance"), azula),
        "deepinv": (deepinv, of_deepinv),
    }
    for name, (load, contestants) in peers.items():
        try:
            load()
        except Absent as reason:
            absent[name] = f"{reason}; `make bench` brings it"
        else:
            found += contestants()
    return found, absent
