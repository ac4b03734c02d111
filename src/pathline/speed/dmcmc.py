"""Denoising MCMC: chains in (x, σ) stay near the data, so each output is a short way to denoise.

The target is π(x, σ) ∝ p_σ(x) p(σ), with p(σ) even in log σ. One sweep is

    x ← a move that leaves p_σ as it is (Langevin, MALA)           at fixed σ
    σ ← the most likely level, or one drawn from q(σ | x)          at fixed x

Whatever selects σ, x | σ ~ p_σ, so denoising a copy of x from σ gives data; the chain itself goes
on from (x, σ), never from the denoised copy. All in coordinates where noise is only added
(`fields.Unscaled`), so any model on a Gaussian path will do.

Paper: Kim & Ye 2022 (arXiv:2209.14593). The guard on the step, the restarts and MALA are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.core.warned import warn
from pathline.fields import Field, Unscaled
from pathline.paths import bshape
from pathline.solvers import Heun, grids, solve
from pathline.solvers.solve import AnyGrid, AnySolver, Guide, as_grid, as_solver
from pathline.speed.beginning import Beginning
from pathline.speed.chain import (
    Chain,
    Chains,
    Round,
    Walk,
    check_finite,
    joined,
    resumed,
    round_file,
    warn_if_rising,
)
from pathline.speed.chain_field import Conditioned
from pathline.speed.kernels import Kernel, Langevin, Target
from pathline.speed.levels import ExactLevels, NoiseLevels, check_levels, check_scale
from pathline.speed.settings import check_same, plain

Choice = Literal["most_likely", "drawn"]

PATIENCE = 50
"""Sweeps at the largest noise level after which a chain begins anew."""

MANY_OUTPUTS = 50
"""Outputs of one chain above which a set of samples says more of few chains than of the data."""


@dataclass(frozen=True, eq=False)
class DMCMC:
    """A sampler that keeps chains near the data and denoises what they visit.

    Choose it for many samples of one condition at about ten evaluations each; not for few samples,
    and not where twenty evaluations are no trouble: outputs of one chain resemble each other, and
    plain sampling is then as good and independent.

    Args:
        model: any field on a path, conditional or not.
        levels: what tells the noise level of a state.
        kernel: moves x at fixed σ; a number is the η of `Langevin`. Larger steps change the kind of
            sample more often, stay at higher noise, and cost more to denoise.
        n_chains: independent chains.
        n_skip: sweeps between two outputs; the state with the smallest σ on the way is denoised.
        choice: of σ: "most_likely" (the paper's code) or "drawn" from q(σ | x). Unadjusted Langevin
            with drawn levels and a step that grows with σ runs away; with "drawn" use MALA.
        solver: for denoising, from each chain's own level.
        grid: its grid, without a start. The default is EDM's Heun, five evaluations.
        closing: σ at which the result is denoised once more; None is the smallest level, 0 leaves
            it out.
        guide: a function from field to field.
        beginning: how a chain begins.

    Raises:
        UsageError: n_chains or n_skip below 1, a kernel that is none, levels outside the path's.
    """

    model: Field
    levels: NoiseLevels
    kernel: Kernel | float
    n_chains: int = 256
    n_skip: int = 3
    choice: Choice = "most_likely"
    solver: AnySolver = Heun(view="eps")
    grid: AnyGrid = grids.karras(3, last="denoise")
    closing: float | None = None
    guide: Guide | None = None
    beginning: Beginning = Beginning()

    def __post_init__(self) -> None:
        counts = (self.n_chains, self.n_skip)
        if not all(isinstance(n, int) and n >= 1 for n in counts):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                "n_chains and n_skip must be at least 1, whole numbers; they are "
                f"{self.n_chains} and {self.n_skip}."
            )
        if self.choice not in get_args(Choice):
            raise UsageError(f"choice={self.choice!r}: choose 'most_likely' or 'drawn'.")
        if not isinstance(self.kernel, Kernel | Real):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"kernel={self.kernel!r} is no move: give one, Langevin(0.05) or MALA(0.4, 0.5), "
                "or a number, Langevin's step size."
            )
        _ = self._kernel  # which refuses a step size that is none
        check_levels(self._field().path, self.levels)
        largest = float(self.levels.sigmas[0])
        if self.closing is not None and not 0 <= self.closing <= largest:
            raise UsageError(
                f"closing must not be negative, or above the largest level, {largest:g}; it is "
                f"{self.closing:g}."
            )

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        chain: Chain | None = None,
        save: str | Path | None = None,
        shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        **cond: Any,
    ) -> Chains:
        """Draw n samples, `n_chains` of them a round.

        Args:
            n: how many. In multiples of `n_chains`, several calls that hand on `chain` give what
                one call gives.
            seed: chain i has seed + i, and depends on nothing else.
            chain: go on from here instead of beginning.
            save: a folder for a file a round; a call that finds rounds there goes on after them,
                and returns them too. It must be the same call, but for n.
            shape: of one sample, if the model does not know it.
            dtype: of the state; the default dtype if None.
            cond: the condition, in the user's words; a chain belongs to one.

        Raises:
            UsageError: chains of other levels, condition, guide or number; another call's folder.
            PathlineError: a chain has left the finite numbers.

        Cost: `Chains.ledger`.
        """
        if n < 1:
            raise UsageError(f"at least 1 sample is needed, and {n} were asked for.")
        n_rounds = -(-n // self.n_chains)
        settings = self._settings()
        rounds, chain = resumed(save, chain, n_rounds, {"seed": seed, **settings})
        if chain is None:
            chain = self.begin(seed=seed, shape=shape, dtype=dtype, **cond)
        field = self._conditioned(chain, cond)
        outputs = chain.rounds + n_rounds - len(rounds)
        if outputs > MANY_OUTPUTS:
            warn(
                f"{outputs} outputs of each of {self.n_chains} chains resemble each other; "
                "raise n_chains, and see Chains.effective_samples."
            )
        for number in track(range(len(rounds), n_rounds), "Denoising MCMC", n_rounds - len(rounds)):
            chain, made = self._round(field, chain)
            rounds.append(made)
            if save is not None:
                told = replace(chain, about={**chain.about, **settings})
                made.save(round_file(save, number), told)
        warn_if_rising(rounds)
        closing = int(self.closing != 0)
        return joined(rounds, chain, n, self.n_skip * self._kernel.nfe, closing)

    def begin(
        self,
        *,
        seed: int = 0,
        shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        **cond: Any,
    ) -> Chain:
        """Return chains that have begun: generated, kicked, and burned in.

        Args:
            seed, shape, dtype, cond: as for `sample`.

        Raises:
            UsageError: the shape is unknown, or the data are scaled otherwise than those that the
                levels were learned from.
        """
        shape = self.model.shape if shape is None else tuple(shape)
        if shape is None:
            raise UsageError("the model does not know the shape of a sample; pass shape=(...).")
        noise.check_seeds([seed])
        seeds = tuple(range(seed, seed + self.n_chains))
        x = torch.zeros(self.n_chains, *shape, dtype=dtype, device=self.model.device or "cpu")
        zero = torch.zeros(self.n_chains, dtype=torch.int64, device=x.device)
        chain = Chain(x, zero, zero, seeds, about=self._about(cond))
        field = self._conditioned(chain, cond)
        x, calls = self.beginning.generated(field, seeds, x, self.levels.sigmas[0], 0)
        check_scale(self.levels, x)
        x = self.beginning.kicked(x, seeds, 0)
        chain, nfe = self._burned_in(field, replace(chain, x=x, level=self.levels.most_likely(x)))
        return replace(chain, nfe=calls / self.n_chains + nfe)

    def begin_at(self, x: Tensor, *, seed: int = 0, **cond: Any) -> Chain:
        """Return chains that begin at noisy states of one's own, their levels read off them.

        Args:
            x: x_0 + σ ε, (n_chains, *state).
            seed, cond: as for `sample`.

        Raises:
            UsageError: another number of states, or of another shape.
        """
        noise.check_seeds([seed])
        shape = x.shape[1:] if self.model.shape is None else self.model.shape
        if tuple(x.shape) != (self.n_chains, *shape):
            raise UsageError(
                f"chains begin at states of {(self.n_chains, *shape)}, (n_chains, *state), and "
                f"these are {tuple(x.shape)}."
            )
        level, seeds = self.levels.most_likely(x), tuple(range(seed, seed + len(x)))
        return Chain(x, level, torch.zeros_like(level), seeds, about=self._about(cond))

    def walk(self, chain: Chain, sweeps: int, **cond: Any) -> Walk:
        """Take sweeps without denoising anything: to burn in further, or to look at the chains.

        Args:
            chain: where from.
            sweeps: how many.
            cond: the condition of the chains.
        """
        walked = self._walked(self._conditioned(chain, cond), chain, sweeps, self._kernel)
        check_finite(walked.chain)
        return walked

    def _walked(self, field: Conditioned, chain: Chain, sweeps: int, kernel: Kernel) -> Walk:
        levels, accepted = [chain.level], [torch.ones_like(chain.level)]
        for _ in track(range(sweeps), "sweeps", sweeps):
            chain, moved = self._sweep(field, chain, kernel)
            levels.append(chain.level)
            accepted.append(moved)
        trace = self.levels.sigmas.to(chain.x.device)[torch.stack(levels)]
        return Walk(chain, trace[1:], torch.stack(accepted[1:] or accepted).double().mean(0))

    def _burned_in(self, field: Conditioned, chain: Chain) -> tuple[Chain, int]:
        """Take the first sweeps of chains; return them and the evaluations that each has cost."""
        nfe = 0
        for sweeps, kernel in self.beginning.burn_in:
            kernel = kernel or self._kernel
            chain = self._walked(field, chain, sweeps, kernel).chain
            nfe += sweeps * kernel.nfe
        return chain, nfe

    @property
    def _kernel(self) -> Kernel:
        return self.kernel if isinstance(self.kernel, Kernel) else Langevin(float(self.kernel))

    def _field(self) -> Unscaled:
        return Unscaled(self.model if self.guide is None else self.guide(self.model))

    def _about(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        sigmas = self.levels.sigmas
        ends = [float(sigmas[0]), float(sigmas[-1]), len(sigmas)]
        return {"levels": ends, "cond": plain(cond), "guide": self._told_guide}

    @cached_property
    def _told_guide(self) -> Any:
        return plain(self.guide)

    def _settings(self) -> dict[str, Any]:
        """Return what decides how chains go on and end, as plain values."""
        solver = as_solver(self.solver) if isinstance(self.solver, str) else self.solver
        made = {
            "kernel": self._kernel,
            "n_skip": self.n_skip,
            "choice": self.choice,
            "solver": solver,
            "grid": self.grid,
            "closing": self.closing,
            "beginning": self.beginning,
        }
        return {name: plain(value) for name, value in made.items()}

    def _conditioned(self, chain: Chain, cond: Mapping[str, Any]) -> Conditioned:
        """Return the field of these chains, having checked that they are this sampler's."""
        check_same("the chains were", chain.about, self._about(cond), "begin new ones")
        if len(chain.seeds) != self.n_chains:
            raise UsageError(f"there are {len(chain.seeds)} chains, not {self.n_chains}.")
        field = self._field()
        return Conditioned(field, field.condition(cond, self.n_chains), self.n_chains)

    def _round(self, field: Conditioned, chain: Chain) -> tuple[Chain, Round]:
        """Walk n_skip sweeps, and denoise the state with the smallest σ on the way."""
        chain = self._restarted(field, chain)
        x, level, trace, accepted = chain.x, chain.level, [], []
        for _ in range(self.n_skip):
            chain, moved = self._sweep(field, chain, self._kernel)
            lower = chain.level > level
            x = torch.where(bshape(lower, x) > 0, chain.x, x)
            level = torch.where(lower, chain.level, level)
            trace.append(chain.level)
            accepted.append(moved)
        check_finite(chain)
        sigmas = self.levels.sigmas.to(x.device)
        sigma = sigmas[level]
        seeds = noise.derived_seeds(chain.seeds, chain.sweeps)
        denoised, cost = self._denoised(field, x, sigma, seeds)
        share = torch.stack(accepted).double().mean(0)
        made = Round(denoised, sigma, sigmas[torch.stack(trace)], share, cost)
        return replace(chain, rounds=chain.rounds + 1), made

    def _sweep(self, field: Conditioned, chain: Chain, kernel: Kernel) -> tuple[Chain, Tensor]:
        """Move x at its level, then read the level anew; return who moved too."""
        x, device = chain.x, chain.x.device
        sigma = self.levels.sigmas.to(x.device)[chain.level]
        z = noise.normal(
            chain.seeds,
            x.shape[1:],
            stream="chain",
            index=chain.sweeps,
            dtype=x.dtype,
            device=device,
        )
        u = noise.uniform(chain.seeds, (2,), stream="choice", index=chain.sweeps, device=device)
        moved = kernel.move(self._target(field, sigma), x, z, u[:, 0])
        x = moved.x.detach()  # a chain is not differentiated through
        drawn = self.choice == "drawn"
        level = self.levels.drawn(x, u[:, 1]) if drawn else self.levels.most_likely(x)
        stuck = torch.where(level == 0, chain.stuck + 1, 0)
        chain = replace(chain, x=x, level=level, stuck=stuck, sweeps=chain.sweeps + 1)
        return chain, moved.accepted

    def _target(self, field: Conditioned, sigma: Tensor) -> Target:
        t = field.path.time_of_log_snr(-sigma.log())

        def score(x: Tensor) -> Tensor:
            return (field.evaluate(x, t, field.told) - x) / bshape(sigma**2, x)

        levels = self.levels
        if not isinstance(levels, ExactLevels):
            return Target(sigma, score, None)
        return Target(sigma, score, lambda x: levels.log_prob(x, sigma))

    def _denoised(
        self, field: Conditioned, x: Tensor, sigma: Tensor, seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Carry each state from its own level to data; return it and what that has cost."""
        path = field.path
        t = path.time_of_log_snr(-sigma.log())
        grid = as_grid(self.grid, None)  # pyright: ignore[reportArgumentType]
        last = grid.times(path)[-1 if grid.last == "stop" else -2]
        far = (t > last).nonzero()[:, 0]  # the others are at data already
        cost = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        if len(far):
            solution = solve(
                field.of(far),
                x[far],
                solver=self.solver,
                grid=grid,
                start=t[far],
                seeds=[seeds[i] for i in far.tolist()],
            )
            x = x.index_copy(0, far, solution.x)
            cost[far] = torch.tensor(solution.nfes, device=cost.device)
        if self.closing == 0:
            return x, cost
        smallest = self.levels.sigmas[-1] if self.closing is None else torch.tensor(self.closing)
        end = path.time_of_log_snr(-smallest.double().log().to(x.device))
        return field.evaluate(x, end, field.told), cost

    def _restarted(self, field: Conditioned, chain: Chain) -> Chain:
        """Begin those chains anew that have been at the largest level for too long.

        They begin as `begin` does, with noise of their own, and all share what that costs.
        """
        lost = (chain.stuck > PATIENCE).nonzero()[:, 0]
        if not len(lost):
            return chain
        index, field = chain.sweeps + 1, field.of(lost)  # 0 was the first beginning
        seeds = [chain.seeds[i] for i in lost.tolist()]
        largest = self.levels.sigmas[0]
        x, calls = self.beginning.generated(field, seeds, chain.x[lost], largest, index)
        x = self.beginning.kicked(x, seeds, index)
        begun = Chain(x, self.levels.most_likely(x), chain.stuck[lost] * 0,
                      tuple(noise.derived_seeds(seeds, index)))  # fmt: skip
        begun, nfe = self._burned_in(field, begun)
        return replace(
            chain,
            x=chain.x.index_copy(0, lost, begun.x),
            level=chain.level.index_copy(0, lost, begun.level),
            stuck=chain.stuck.index_copy(0, lost, begun.stuck),
            nfe=chain.nfe + (calls + nfe * len(lost)) / self.n_chains,
        )
