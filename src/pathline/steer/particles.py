"""Particles: guided samples that are weighed, so that they are the posterior's (twisted SMC).

Any guide with a likelihood is a proposal that is a little wrong. A run carries K particles; beside
the step that a particle takes, x' ~ N(m + Δ, c²), the model's own step N(m, c²) is known, so what
the guide distorts can be counted:

    Δ = c² ∇_x log p̃(y | x)
    w ← w · N(x'; m, c²)/N(x'; m + Δ, c²) · p̃(y | x')/p̃(y | x),   p̃ = p(y | x_0) at the end

and where weights become uneven the run is resampled. Whatever p̃ is, weighted particles are those
of p(y | x) times the law of the unguided solver as K grows, and the mean of the weights is an
unbiased estimate of p(y). A better guide needs fewer particles; none makes the result wrong.

It works on the rows of any stochastic plan, multistep ones too: a row of a plan says mean and
deviation of a step. Everything random is counter-based: a run depends on its own seed alone.

Papers: Wu et al. 2023 (arXiv:2306.17775); adaptive resampling: Del Moral, Doucet & Jasra 2012.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import NonFiniteError, UsageError, unknown
from pathline.core.receipt import Receipt
from pathline.core.solution import Solution, Stats, finite_status, name_samples, status_names
from pathline.fields import Field, change
from pathline.paths import GaussianPath
from pathline.solvers import Grid, Plan, Solver, Stepped
from pathline.solvers.plan import Coefficient, Row, plain
from pathline.solvers.solve import as_grid, as_solver, start
from pathline.steer.estimate import Estimate, Look, Steered
from pathline.steer.guide import Chain, Guide, named
from pathline.steer.loss import Loss
from pathline.steer.population import Population

Resampling = Literal["systematic", "multinomial"]


@runtime_checkable
class Twist(Protocol):
    """A guide that says how likely what it guides to is: DPS, PiGDM, MMPS, Loss, Classifier."""

    def log_twist(self, now: Estimate) -> Tensor:
        """Return log p̃(y | x_t), (batch,), but for what depends on t alone."""
        ...

    def log_likelihood(self, x0: Tensor, path: GaussianPath) -> Tensor:
        """Return log p(y | x_0), (batch,)."""
        ...


@dataclass(frozen=True)
class Particles:
    """Sequential Monte Carlo with twisted proposals (TDS).

    Choose it where a guide's bias matters: classes, several modes, evidence. With K particles a
    sample costs K guided ones. A guide with its own idea of uncertainty (PiGDM, MMPS) needs few.

    Args:
        n: K, particles a run.
        threshold: a run is resampled where its effective share of particles is below; 0 never,
            above 1 always.
        resampling: "systematic" (one uniform number, least variance) or "multinomial".

    Raises:
        UsageError: no particles; an unknown way of resampling.

    Example: one coordinate of two is measured.
        >>> import torch, pathline as pl
        >>> from pathline.steer import PiGDM, operators
        >>> law = pl.Gaussian(pl.VPLinear(), torch.zeros(2), torch.eye(2))
        >>> guide = PiGDM(operators.Dense(torch.tensor([[1.0, 0.0]])), torch.ones(1, 1), 0.5)
        >>> found = Particles(32).sample(law, 3, guide=guide, solver="ddpm", steps=20)
        >>> found.x.shape, found.log_evidence.shape
        (torch.Size([3, 2]), torch.Size([3]))

    Cost: of each particle, that of the guided model; resampling moves states.
    """

    n: int = 16
    threshold: float = 0.5
    resampling: Resampling = "systematic"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"n={self.n}: a run has one particle or more.")
        if self.threshold < 0:
            raise UsageError(f"threshold={self.threshold}: a share of particles, 0 or more.")
        if self.resampling not in get_args(Resampling):
            raise unknown("way of resampling", self.resampling, get_args(Resampling))

    def describe(self) -> dict[str, Any]:
        """Return what a receipt says of it."""
        return {"n": self.n, "threshold": self.threshold, "resampling": self.resampling}

    def sample(  # noqa: PLR0913 - keyword-only, as `pathline.sample`
        self,
        model: Field,
        runs: int | None = None,
        *,
        guide: Guide,
        solver: Solver | str = "ddpm",
        grid: Grid | str | Sequence[float] | None = None,
        steps: int | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        watch: Callable[[int], None] | None = None,
        **cond: Any,
    ) -> Population:
        """Sample the posterior in several runs, each of which depends on its own seed alone.

        Args:
            model: a denoiser.
            runs: how many (1, or as many as there are seeds).
            guide: guides with a likelihood (`Twist`), joined by &; those that choose evaluations
                (CFG, Regions …) may stand before them, and belong to the prior. What they know of
                each sample is one's, or (runs · n, …), run by run.
            solver: one that draws noise in every step that calls the model.
            grid, steps, shape, dtype, device, cond: as `pathline.sample`; a list in a condition has
                one entry a run.
            seed, seeds: of the runs.
            watch: called with the number of each grid point that is reached.

        Raises:
            UsageError: a guide without a likelihood; a solver without noise; as `pathline.sample`.
            NonFiniteError: a run met a NaN or an infinity, or all its weights vanished.
        """
        prior, twists = _parted(model, guide)
        drawn = _seeds(runs, seed, seeds)
        rule = as_solver(solver)
        if isinstance(rule, Stepped):
            raise UsageError(
                f"{solver} has no plan, whose rows particles are weighed by; take ddpm."
            )
        shape = model.shape if shape is None else tuple(shape)
        if shape is None:
            raise UsageError("the model does not know the shape of a sample; pass shape=(...).")
        plan = rule.tuned(model, shape).plan(prior.path, as_grid(grid, steps)).folded(prior.view)
        _check(plan)
        slots = self._slots(drawn)
        place = device or model.device or "cpu"
        assert prior.path is not None
        x = start(prior.path, plan.start[-1], slots, shape, dtype, place)
        told = {name: _repeated(value, len(drawn), self.n) for name, value in cond.items()}
        run = _Run(self, plan, twists, drawn, slots, x)
        run.carry(_looking(prior, twists, plan, x, told), watch)
        recipe = {"guide": guide.describe(), "particles": self.describe(), **plan.recipe}
        return run.population(recipe, prior.calls, _steered(prior, twists).vjps)

    def _slots(self, seeds: Sequence[int]) -> list[int]:
        """Return a seed for every particle, run by run."""
        columns = [noise.derived_seeds(seeds, j) for j in range(self.n)]
        return [seed for row in zip(*columns, strict=True) for seed in row]


def _parted(model: Field, guide: Guide) -> tuple[Field, tuple[Twist, ...]]:
    """Return the prior, guided by what belongs to it, and the guides to be weighed.

    Raises:
        UsageError: there is none of these, or one without a likelihood among them.
    """
    members = guide.members if isinstance(guide, Chain) else (guide,)
    first = next((i for i, each in enumerate(members) if isinstance(each, Twist)), None)
    if first is None:
        raise UsageError(
            f"particles are weighed by a likelihood, and {named(guide)} has none; take PiGDM, MMPS "
            "or DPS with std above 0, Loss or Classifier."
        )
    if model.path is None:
        raise UsageError("particles need a model on a path; give a Denoiser.")
    for each in members[:first]:
        if not each.chooses_evaluations and not each.is_none:
            raise UsageError(f"{named(each)} has no likelihood; leave it out, or put it into data.")
        model = each(model)
    rest = [each for each in members[first:] if not each.is_none]
    wrong = [named(each) for each in rest if not isinstance(each, Twist)]
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)} changes samples by what is no likelihood, which weights cannot "
            "make up for; leave it out."
        )
    return model, tuple(each for each in rest if isinstance(each, Twist))


def _steered(prior: Field, twists: Sequence[Twist]) -> Field:
    """Return the prior under the guides, each of which adds its score."""
    for twist in twists:
        assert isinstance(twist, Guide)
        if isinstance(twist, Loss):
            twist = replace(twist, scale="score", normalise="none")
        prior = twist(prior)
    return prior


def _looking(
    prior: Field, twists: Sequence[Twist], plan: Plan, x: Tensor, cond: Mapping[str, Any]
) -> Callable[[int, Tensor], Look]:
    """Return what evaluates the model once, and says its step, the guided one and log p̃."""
    steered = _steered(prior, twists)
    prepared = steered.condition(cond, len(x))
    assert isinstance(steered, Steered)

    def told(now: Estimate) -> Tensor:
        return torch.stack([twist.log_twist(now).double() for twist in twists]).sum(0)

    return steered.looking(plan.instants.to(x.device), x, prepared, told)


def _check(plan: Plan) -> None:
    """Refuse a plan whose steps are not Gaussian with noise of their own.

    Raises:
        UsageError: it draws no noise; a step that calls the model draws none; draws are shared.
    """
    if not plan.is_stochastic:
        raise UsageError(
            "particles need a solver that draws noise: ddpm, euler_maruyama, dpmpp_2m_sde …"
        )
    closing = plan.rows[-1] if plan.times[-1] == 0.0 else None
    still = [row for row in plan.rows if row.f and not row.z and row is not closing]
    shared = [d for d, n in Counter(d for row in plan.rows for d in row.z).items() if n > 1]
    if still or shared:
        raise UsageError(
            "every step of this solver that calls the model must draw noise of its own, or a guide "
            "could not be weighed; take ddpm, euler_maruyama or dpmpp_2m_sde."
        )


class _Run:
    """Runs under way, all at once: states, the model's evaluations, weights, and who came of whom.

    The batch is run by run: particle j of run r has the number r n + j.
    """

    def __init__(
        self,
        how: Particles,
        plan: Plan,
        twists: Sequence[Twist],
        seeds: Sequence[int],
        slots: Sequence[int],
        x: Tensor,
    ) -> None:
        self.how, self.plan, self.twists, self.seeds = how, plan, twists, tuple(seeds)
        self.keys = noise.keys(slots, x.device)
        self.x: dict[int, Tensor] = {0: x}
        self.f: dict[int, Tensor] = {}
        self.score: dict[int, Tensor] = {}
        at = plan.instants.to(x.device)
        assert plan.path is not None
        self._to_score = change(plan.path, plan.view, "score", at)[1].nan_to_num(0, 0, 0).tolist()
        self.twist = x.new_zeros(len(x), dtype=torch.float64)
        self.log_w = self.twist.view(len(seeds), how.n)
        self.log_z = self.log_w.new_zeros(len(seeds))
        self.ess: list[Tensor] = []
        self.ancestors: list[Tensor] = []

    def carry(
        self, look: Callable[[int, Tensor], Look], watch: Callable[[int], None] | None = None
    ) -> None:
        """Take every row of the plan."""
        landed = 0
        last_use = {k: i for i, row in enumerate(self.plan.rows) for k in (*row.x, *row.f)}
        for i, row in enumerate(self.plan.rows):
            for k in sorted(set(row.f) - set(self.f)):
                self._see(k, look(k, self.x[k]))
            self.x[i + 1] = self._moved(row)
            for k in [k for k, end in last_use.items() if end == i]:
                for known in (self.x, self.f, self.score):
                    known.pop(k, None)
            landed += row.lands
            if row.lands and watch is not None:
                watch(landed)
        assert self.plan.path is not None
        x, path = self.x[len(self.plan.rows)], self.plan.path
        self._weigh(sum((t.log_likelihood(x, path).double() for t in self.twists), self.twist * 0))

    def _see(self, k: int, look: Look) -> None:
        assert look.told is not None
        self.f[k] = look.raw
        self.score[k] = (look.guided - look.raw) * self._to_score[k]
        self._weigh(look.told)
        self._resample()

    def _weigh(self, twist: Tensor) -> None:
        self.log_w = self.log_w + (twist - self.twist).view_as(self.log_w)
        self.twist = twist

    def _moved(self, row: Row) -> Tensor:
        """Return the new states, and weigh them by what the guide has added to their mean."""
        x = _sum(row.x, self.x) + _sum(row.f, self.f) + _as(row.constant, self.twist)
        if not row.z or all(not isinstance(c, Tensor) and c == 0 for c in row.z.values()):
            return x
        like = self.x[min(self.x)]
        drawn = sum(_as(c, like) * self._drawn(d, like) for d, c in row.z.items())
        spread = sum(_as(c, like) ** 2 for c in row.z.values())
        shift = spread * self.score[max(row.f)] if row.f else torch.zeros_like(x)
        ratio = -(shift * drawn + shift.square() / 2) / spread
        self.log_w = self.log_w + ratio.double().flatten(1).sum(1).view_as(self.log_w)
        return x + shift + drawn

    def _drawn(self, d: int, like: Tensor) -> Tensor:
        shape, dtype, device = tuple(like.shape[1:]), like.dtype, like.device
        return noise.normal(self.keys, shape, stream="step", index=d, dtype=dtype, device=device)

    def _resample(self) -> None:
        """Draw the particles anew where their weights are uneven; nothing waits for the device."""
        runs, n = self.log_w.shape
        share = self.log_w.softmax(1)
        ess = 1 / share.square().sum(1) / n
        self.ess.append(ess)
        uneven = ess < self.how.threshold
        own = torch.arange(n, device=share.device).expand(runs, n)
        parents = torch.where(uneven[:, None], self._chosen(share, len(self.ess)), own)
        self.ancestors.append(parents)
        mean = self.log_w.logsumexp(1) - math.log(n)
        self.log_z = self.log_z + torch.where(uneven, mean, 0.0)
        self.log_w = torch.where(uneven[:, None], 0.0, self.log_w)
        rows = (parents + n * torch.arange(runs, device=share.device)[:, None]).flatten()
        for known in (self.x, self.f, self.score):
            for k, value in known.items():
                known[k] = value[rows]
        self.twist = self.twist[rows]

    def _chosen(self, share: Tensor, event: int, n: int | None = None) -> Tensor:
        """Return the numbers of n particles, drawn by their weights, (runs, n)."""
        n = share.shape[1] if n is None else n
        many = n if self.how.resampling == "multinomial" else 1
        u = noise.uniform(
            self.seeds, (many,), stream="choice", index=event, dtype=torch.float64,
            device=share.device,
        )  # fmt: skip
        if self.how.resampling == "systematic":
            u = (torch.arange(n, device=share.device) + u) / n
        edges = share.cumsum(1)
        return torch.searchsorted(edges / edges[:, -1:], u).clamp(max=share.shape[1] - 1)

    def population(self, recipe: Mapping[str, Any], calls: int, vjps: int) -> Population:
        """Return the result, and refuse one that is no number."""
        runs, n = self.log_w.shape
        x = self.x[len(self.plan.rows)].unflatten(0, (runs, n))
        share = self.log_w.softmax(1)
        evidence = self.log_z + self.log_w.logsumexp(1) - math.log(n)
        picked = self._chosen(share, 0, 1)[:, 0]
        one = x[torch.arange(runs, device=x.device), picked]
        nfe = self.plan.nfe
        stats = Stats(nfe, nfe * calls, self.plan.steps, vjps=nfe * vjps)
        status = torch.maximum(finite_status(x.detach()), finite_status(evidence[:, None]))
        self._refuse(one, status, stats)
        grid = tuple(plain(t) for t in self.plan.grid)
        dtype = str(x.dtype).removeprefix("torch.")
        receipt = Receipt(recipe, self.seeds, grid, nfe, status_names(status), x.device.type, dtype)
        events = (torch.stack(self.ess), torch.stack(self.ancestors))
        return Population(one, x, share, evidence, *events, stats, receipt)

    def _refuse(self, x: Tensor, status: Tensor, stats: Stats) -> None:
        if not bool(status.any()):
            return
        failed = [i for i, code in enumerate(status.tolist()) if code]
        end = self.plan.times[-1]
        raise NonFiniteError(
            f"{name_samples(failed, self.seeds)}: a state is not finite, or no particle has any "
            "weight; take more particles or steps, a larger std, or a smaller weight.",
            Solution(x, end, status, stats),
        )


def _sum(terms: Mapping[int, Coefficient], known: Mapping[int, Tensor]) -> Tensor | float:
    made: Tensor | float = 0.0
    for k, c in terms.items():
        made = made + _as(c, known[k]) * known[k]
    return made


def _as(c: Coefficient, like: Tensor) -> Any:
    return c.to(like) if isinstance(c, Tensor) else c


def _seeds(runs: int | None, seed: int, seeds: Sequence[int] | None) -> tuple[int, ...]:
    drawn = tuple(range(seed, seed + (1 if runs is None else runs))) if seeds is None else seeds
    if not drawn or (runs is not None and len(drawn) != runs):
        raise UsageError(f"{len(drawn)} seeds were given for {runs} runs; one run or more.")
    noise.check_seeds(drawn)
    return tuple(drawn)


def _repeated(value: Any, runs: int, n: int) -> Any:
    """Return a condition of each run for each of its particles."""
    if isinstance(value, list | tuple) and len(value) == runs:
        return [each for each in value for _ in range(n)]
    if isinstance(value, Tensor) and value.ndim and len(value) == runs:
        return value.repeat_interleave(n, 0)
    return value
