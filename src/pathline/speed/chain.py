"""What a set of chains is between two calls, and what sampling from it returns."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pathline.core.errors import PathlineError, UsageError
from pathline.core.files import write_atomically
from pathline.core.solution import finite_status, name_samples
from pathline.speed.diagnostics import drift, effective_sample_size
from pathline.speed.settings import check_same

FORMAT = "pathline-chain-1"

RISING = 6.0
"""Standard errors by which a rising σ trace is told."""


@dataclass(frozen=True, eq=False)
class Chain:
    """The state of a set of chains: everything that decides how they go on.

    Args:
        x: where they are, x_0 + σ ε, (chains, *state).
        level: which noise level each is at, (chains,) int64.
        stuck: sweeps that each has spent at the largest level, (chains,) int64.
        seeds: one a chain.
        sweeps: that were done; the counter of their noise.
        rounds: outputs that each chain has made.
        nfe: evaluations that beginning has cost a chain on average, burn-in and restarts included.
        about: what the chains are of: level table, condition and guide, as plain values.
    """

    x: Tensor
    level: Tensor
    stuck: Tensor
    seeds: tuple[int, ...]
    sweeps: int = 0
    rounds: int = 0
    nfe: float = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path, **more: Tensor) -> Path:
        """Write the chains, and other tensors beside them, as safetensors."""
        tensors = {"chain.x": self.x, "chain.level": self.level, "chain.stuck": self.stuck, **more}
        kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        told = {
            "format": FORMAT,
            "seeds": list(self.seeds),
            "sweeps": self.sweeps,
            "rounds": self.rounds,
            "nfe": self.nfe,
            "about": dict(self.about),
        }
        metadata = {k: json.dumps(v, ensure_ascii=False) for k, v in told.items()}
        return write_atomically(path, lambda file: save_file(kept, file, metadata))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Chain:
        """Read what `save` wrote; it goes on exactly as it would have.

        Raises:
            UsageError: the file cannot be read, or holds no chains.
        """
        tensors, told = _read(path, device)
        x, level, stuck = (tensors[f"chain.{name}"] for name in ("x", "level", "stuck"))
        counts = (told[name] for name in ("sweeps", "rounds", "nfe"))
        return cls(x, level, stuck, tuple(told["seeds"]), *counts, about=told["about"])


@dataclass(frozen=True, eq=False)
class Walk:
    """Sweeps without outputs.

    Args:
        chain: where they led.
        trace: σ after every sweep, (sweeps, chains) float64.
        accepted: the share of moves that were accepted, for each chain, (chains,).
    """

    chain: Chain
    trace: Tensor
    accepted: Tensor


@dataclass(frozen=True, eq=False)
class Round:
    """One output of each chain.

    Args:
        x: samples, (chains, *state).
        sigma: the noise level that each was denoised from, (chains,) float64.
        trace: σ after every sweep, (sweeps, chains) float64.
        accepted: the share of moves that were accepted, for each chain, (chains,).
        denoising: evaluations that denoising has cost each sample, (chains,).
    """

    x: Tensor
    sigma: Tensor
    trace: Tensor
    accepted: Tensor
    denoising: Tensor

    def save(self, path: Path, chain: Chain) -> Path:
        """Write the round and the chains that it leaves, in one file."""
        return chain.save(path, **vars(self))

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Round:
        """Read what `save` wrote."""
        tensors, _ = _read(path, device)
        return cls(**{name: tensors[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Ledger:
    """Evaluations of the field for each sample, on average.

    Args:
        walking: the sweeps between two outputs.
        denoising: from the chain's noise level to data.
        closing: the last denoising of the result (Tweedie).
        starting: beginnings, burn-ins and restarts, shared by the outputs of a chain so far.
    """

    walking: float
    denoising: float
    closing: float
    starting: float

    @property
    def running(self) -> float:
        """All but the start: what one more sample costs."""
        return self.walking + self.denoising + self.closing

    @property
    def total(self) -> float:
        """Everything."""
        return self.running + self.starting


@dataclass(frozen=True, eq=False)
class Chains:
    """Samples, the chains that they came from, and what can be said of them.

    Args:
        x: samples, (n, *state); sample i comes from chain i modulo the number of chains.
        sigma: the noise level that each was denoised from, (n,) float64.
        trace: σ of every chain after every sweep, (sweeps, chains) float64.
        acceptance: the share of moves that were accepted.
        ledger: what each sample cost.
        chain: the state to go on from.
    """

    x: Tensor
    sigma: Tensor
    trace: Tensor
    acceptance: float
    ledger: Ledger
    chain: Chain

    @property
    def effective_levels(self) -> float:
        """How many independent draws the visited log σ are worth, over all chains."""
        return effective_sample_size(self.trace.log())

    def effective_samples(self, scalar: Tensor) -> float:
        """Return how many independent samples these are worth, as seen in one number of each.

        Consecutive outputs of a chain resemble each other.

        Args:
            scalar: one number a sample, (n,).
        """
        n = len(self.chain.seeds)
        whole = scalar[: len(scalar) // n * n]
        return effective_sample_size(whole.reshape(-1, n))


def joined(rounds: Sequence[Round], chain: Chain, n: int, walking: int, closing: int) -> Chains:
    """Return what n samples from these rounds amount to."""
    x, sigma, denoising = (
        torch.cat([getattr(r, name) for r in rounds])[:n] for name in ("x", "sigma", "denoising")
    )
    trace = torch.cat([r.trace for r in rounds])
    accepted = torch.cat([r.accepted for r in rounds])
    starting = chain.nfe / max(chain.rounds, 1)
    ledger = Ledger(walking, float(denoising.double().mean()), closing, starting)
    return Chains(x, sigma, trace, float(accepted.double().mean()), ledger, chain)


def _read(path: str | Path, device: torch.device | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(str(path), "pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read chains from {path}: {error}.") from error
    told = {k: json.loads(v) for k, v in metadata.items()} if "format" in metadata else {}
    if told.get("format") != FORMAT:
        raise UsageError(f"{path} holds no chains of format {FORMAT}.")
    return tensors, told


def check_finite(chain: Chain) -> None:
    """Refuse to go on with chains that have left the finite numbers.

    Raises:
        PathlineError: names the chains and the sweep.
    """
    status = finite_status(chain.x)
    if bool(status.any()):
        who = name_samples(status.nonzero()[:, 0].tolist(), chain.seeds)
        raise PathlineError(
            f"{who.replace('sample', 'chain')} not finite after sweep {chain.sweeps}: take smaller "
            "steps (eta), or look at the network at small noise."
        )


def warn_if_rising(rounds: Sequence[Round]) -> None:
    """Warn where the σ traces of the chains rise together."""
    trace = torch.cat([r.trace for r in rounds]).log()
    if len(trace) >= 40 and drift(trace) > RISING:
        warnings.warn(
            "the noise levels of the chains are rising: unadjusted Langevin steps push them up; "
            "take smaller or constant steps, the most likely level, or MALA.",
            stacklevel=3,
        )


def round_file(folder: str | Path, number: int) -> Path:
    """Return where a round lies in a folder."""
    return Path(folder) / f"round-{number:05d}.safetensors"


def resumed(
    folder: str | Path | None, chain: Chain | None, n_rounds: int, settings: Mapping[str, Any]
) -> tuple[list[Round], Chain | None]:
    """Return the rounds that lie in a folder, as many as are wanted, and their last chains.

    Raises:
        UsageError: the folder has chains of its own beside those that are given, or its rounds were
            made with other settings.
    """
    if folder is None:
        return [], chain
    if chain is not None and round_file(folder, 0).exists():
        raise UsageError(f"{folder} has chains of its own; leave chain out, or save elsewhere.")
    files: list[Path] = []
    while len(files) < n_rounds and round_file(folder, len(files)).exists():
        files.append(round_file(folder, len(files)))
    if not files:
        return [], chain
    last = Chain.load(files[-1])
    found = {"seed": last.seeds[0], **last.about}
    check_same(f"the rounds in {folder} were", found, settings, "repeat that, or save elsewhere")
    return [Round.load(file) for file in files], last
