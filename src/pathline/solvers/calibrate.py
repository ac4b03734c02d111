"""Calibration: measuring the statistics (`ems`) of a model on data.

Every node λ_j sees the same data and noise, x = α x_0 + σ ε. Averages over them, by element:

    l = E diag(σ ∂ε̂/∂x)                                       pass 1
    f = (σ ε̂ − l x)/α,   f' = (σ/α) ((l − 1) ε̂ + ε̂') − (dl/dλ) x/α
    s = Cov(f, f')/Var f,   b = E f' − s E f                   pass 2

where ε̂' is the derivative of ε̂ along the probability flow. Where f does not vary, as on Gaussian
data, s is 0.

Paper: Zheng et al. 2023 (arXiv:2310.13268), Eq. 7 and 11, App. C.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pathline.core.errors import PathlineError, UsageError
from pathline.core.progress import track
from pathline.core.tensors import digest_of, read_tensors, write_tensors
from pathline.fields import Condition, Denoiser, Field, change
from pathline.fields.jvp import Method, diagonal, exact_diagonal, jvp, time_per_log_snr
from pathline.paths import GaussianPath, paths
from pathline.solvers.ems import EMSTable, node_levels

Diagonal = Literal["hutchinson", "exact"]
Numbers = Literal["each", "shared"]

BATCH_ELEMENTS = 2**17
"""Elements of a batch, where nobody says how many samples it has."""

CONSTANT_BELOW = 1e-10
"""Var f / E f² up to which f counts as constant."""

CHECKED, BETWEEN = 2, (0.2361, 0.4721, 0.7639)
"""Samples, and shares of the way, where it is seen if the network has a derivative in time."""

_IN_JUMPS = (
    "the network is told times in jumps (whole labels, say), so it has no derivative in time, and "
    "the statistics need one. Tell it what lies between: label=path.label, without rounding, does "
    "for a network that turns its label into waves."
)

SAVE_EVERY = 30.0
"""Seconds between two saves of what is done so far."""


def calibrate(  # noqa: PLR0913 - keyword-only: each is a choice of the paper
    model: Field,
    x0: Tensor,
    n: int = 240,
    *,
    numbers: Numbers = "each",
    diagonal: Diagonal = "hutchinson",
    n_probes: int = 1,
    method: Method = "forward",
    seed: int = 0,
    ends: tuple[float, float] | None = None,
    batch: int | None = None,
    resume: str | Path | None = None,
    **cond: Any,
) -> EMSTable:
    """Measure the statistics of a model on data.

    Args:
        model: a denoiser, unguided; statistics without guidance serve with it too, but for extreme
            weights.
        x0: (K, *state), data, or samples of many steps; the paper has 1024 to 4096. More data is
            worth more than more nodes.
        n: intervals between the nodes; each is a place where a step may stop over.
        numbers: "each" element has its own (the paper's), or one is "shared" by all: averaged over
            elements too, so a few dozen data do, and states of any shape are served.
        diagonal: "hutchinson" estimates the Jacobian's diagonal with random signs, "exact" takes a
            derivative for every element (oracles).
        n_probes: random signs a sample.
        method: how the network is differentiated, "forward" or "difference".
        seed: of the noise and the probes; sample k has seed + k.
        ends: (λ at the start, λ at the end); those of generation on the model's path if None.
        batch: samples that go through the network together.
        resume: a file that keeps what is done; the same call goes on from it, to the same bits. It
            is for models whose weights can be told apart: from a folder, or an `nn.Module`.
        cond: the condition of the data, in the user's words, one for all or one a sample.

    Raises:
        UsageError: fewer than two data, data that do not fit the model, a network that cannot be
            differentiated, a file of another calibration.
        PathlineError: numbers that are not finite; the message names the node.

    Cost: (2 n_probes + 3) K (n + 1) evaluations, about; progress is shown.

    Example:
        >>> from pathline.core import noise
        >>> from pathline.fields import Gaussian
        >>> from pathline.paths import VPLinear
        >>> law = Gaussian(VPLinear(), torch.zeros(2), torch.tensor([0.25, 4.0]))
        >>> x0 = noise.normal(range(8), (2,)) * torch.tensor([0.5, 2.0])
        >>> table, closed = calibrate(law, x0, 8), EMSTable.gaussian(law.path, 0.0, 1.0, 8)
        >>> table.shape, bool((table.log_snr == closed.log_snr).all())
        ((2,), True)
    """
    path = _checked(model, x0)
    levels = node_levels(path, n, ends)
    if diagonal not in ("hutchinson", "exact"):
        raise UsageError(f"diagonal={diagonal!r}: choose 'hutchinson' or 'exact'.")
    if numbers not in ("each", "shared"):
        raise UsageError(f"numbers={numbers!r}: choose 'each' or 'shared'.")
    if n_probes < 1:
        raise UsageError(f"at least 1 probe is needed, and {n_probes} were asked for.")
    if batch is not None and batch < 1:
        raise UsageError(f"a batch has at least 1 sample, and {batch} were asked for.")
    probes = n_probes if diagonal == "hutchinson" else 0
    with torch.no_grad():
        run = _Run(model, path, x0, levels, seed, probes, method, batch, cond, numbers)
        state = _State.of(run, None if resume is None else Path(resume))
        if not state.done["l"]:
            run.check_time()
        state.fill("l", run.linear)
        slope = torch.gradient(state.l, spacing=run.spacing, dim=0, edge_order=2)[0]
        state.fill("moments", lambda j: run.moments(j, state.l, slope))
    weights = model.details.get("weights", {}) if isinstance(model, Denoiser) else {}
    s, b = scale_and_bias(state.moments)
    return EMSTable(path, levels, state.l, s, b, len(x0), str(weights.get("sha256", "")))


def checksum_of(model: Field) -> str | None:
    """Return a checksum of a model's weights; None where they cannot be told.

    That of its file; or of an `nn.Module`'s layers, parameters and buffers, and of what it is told
    and returns. A function may hold any weights.
    """
    if not isinstance(model, Denoiser):
        return None
    known = model.details.get("weights", {}).get("sha256")
    if known is not None or not isinstance(model.network, nn.Module):
        return known
    how = [getattr(f, "__qualname__", repr(f)) for f in (model.label, model.scale)]
    tensors = chain(model.network.named_parameters(), model.network.named_buffers())
    return digest_of(tensors, repr([model.network, model.view, *how]))


UNKNOWN_WEIGHTS = (
    "what is kept is for one network, and this one's weights cannot be told from another's: it is "
    "neither from a folder nor an nn.Module. Make it an nn.Module, or"
)


def scale_and_bias(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the s and b for which E (f' − s f − b)² is least.

    Args:
        moments: (..., 4, *state) along the second axis: E f, E f', E f², E f f'.
    """
    f, d, ff, fd = moments.unbind(1)
    variance = ff - f * f
    is_constant = variance <= CONSTANT_BELOW * ff
    s = torch.where(is_constant, 0.0, (fd - f * d) / variance.masked_fill(is_constant, 1.0))
    return s, d - s * f


def _checked(model: Field, x0: Tensor) -> GaussianPath:
    """Return the model's path, if the data fit it."""
    if model.path is None:
        raise UsageError("statistics are measured on a path; this field has none.")
    if x0.ndim < 2 or len(x0) < 2 or not x0.is_floating_point():
        raise UsageError(
            "at least 2 data are needed, floating (K, *state); "
            f"these are {tuple(x0.shape)} {x0.dtype}."
        )
    if model.shape is not None and tuple(x0.shape[1:]) != tuple(model.shape):
        raise UsageError(f"the model takes samples of {model.shape}, not {tuple(x0.shape[1:])}.")
    if not bool(torch.isfinite(x0).all()):
        raise UsageError("the data are not finite everywhere.")
    return model.path


@dataclass(frozen=True)
class _Run:
    """What a calibration averages over."""

    model: Field
    path: GaussianPath
    x0: Tensor
    levels: Tensor
    seed: int
    n_probes: int
    method: Method
    batch: int | None
    cond: Mapping[str, Any]
    numbers: Numbers = "each"

    @property
    def spacing(self) -> float:
        return float(self.levels[1] - self.levels[0])

    @property
    def device(self) -> torch.device:
        return self.model.device or self.x0.device

    @cached_property
    def told(self) -> Condition:
        """The condition of all data, as the network takes it."""
        return self.model.condition(self.cond, len(self.x0))

    @cached_property
    def eps(self) -> Tensor:
        """The noise, the same at every node."""
        seeds = range(self.seed, self.seed + len(self.x0))
        shape = self.x0.shape[1:]
        return self.path.kernel.draw(seeds, shape, stream="forward", dtype=torch.float64)

    def batches(self, t: Tensor) -> Iterator[tuple[Tensor, Condition, range]]:
        """Yield the states at time t, their condition and their seeds, a batch at a time."""
        k = len(self.x0)
        size = self.batch or max(1, BATCH_ELEMENTS // self.x0[0].numel())
        for first in range(0, k, size):
            part = slice(first, min(first + size, k))
            x0, eps = (v[part].to(self.device, torch.float64) for v in (self.x0, self.eps))
            told = {name: _part(value, part, k) for name, value in self.told.items()}
            yield self.path.noised(x0, eps, t), told, range(k)[part]

    def check_time(self) -> None:
        """Refuse a network that time moves in jumps only, where it has no derivative in time.

        Raises:
            UsageError: what it says at three times differs, and its labels rest there, or its
                derivatives vanish (at two of them: a difference may cross a jump).
        """
        first, last = self.path.time_of_log_snr(self.levels[[0, -1]])
        times = torch.lerp(first, last, torch.tensor(BETWEEN, dtype=torch.float64))
        x, told, rows = next(self.batches(times[1]))
        told = {name: _part(value, slice(CHECKED), len(rows)) for name, value in told.items()}
        x = x[:CHECKED]
        still, how = torch.zeros_like(x), self.method
        found = [jvp(self.model, x, t, still, 1.0, told, method=how) for t in times]
        if all(torch.equal(found[0][0], value) for value, _ in found[1:]):
            return
        rests = isinstance(self.model, Denoiser) and _rests(self.model.labels, times)
        if rests or sum(bool(slope.any()) for _, slope in found) < 2:
            raise UsageError(_IN_JUMPS)

    def diagonal(self, x: Tensor, t: Tensor, told: Condition, rows: range) -> Tensor:
        """Return diag ∂ε̂/∂x, exact or estimated, (batch, *state)."""
        if not self.n_probes:
            return exact_diagonal(self.model, x, t, told, view="eps", method=self.method)
        seeds, n, how = [self.seed + k for k in rows], self.n_probes, self.method
        return diagonal(self.model, x, t, told, seeds=seeds, n_probes=n, view="eps", method=how)

    def linear(self, j: int) -> Tensor:
        """Return l at node j, (*state)."""
        t = self.path.time_of_log_snr(self.levels[j])
        total = torch.zeros(self.x0.shape[1:], dtype=torch.float64, device=self.device)
        for x, told, rows in self.batches(t):
            total += self.diagonal(x, t, told, rows).sum(0)
        return self.averaged(float(self.path.sigma(t)) * total / len(self.x0), 0)

    def moments(self, j: int, linear: Tensor, slope: Tensor) -> Tensor:
        """Return E f, E f', E f² and E f f' at node j, (4, *state)."""
        path, t = self.path, self.path.time_of_log_snr(self.levels[j])
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        dt = time_per_log_snr(path, t)
        drift = float(path.d_alpha(t) * dt) / alpha
        p, q = (float(c) for c in change(path, self.model.view, "eps", t))
        l_j, dl_j = linear[j].to(self.device), slope[j].to(self.device)
        total = torch.zeros(4, *self.x0.shape[1:], dtype=torch.float64, device=self.device)
        for x, told, _ in self.batches(t):
            eps = p * x + q * self.model.evaluate(x, t, told)
            dx = drift * x - sigma * eps
            d_eps = jvp(self.model, x, t, dx, dt, told, view="eps", method=self.method)[1]
            f = (sigma * eps - l_j * x) / alpha
            d = (sigma * ((l_j - 1) * eps + d_eps) - dl_j * x) / alpha
            total += torch.stack((f, d, f * f, f * d)).sum(1)
        return self.averaged(total / len(self.x0), 1)

    def averaged(self, means: Tensor, first: int) -> Tensor:
        """Return means over the data as they are, or over the elements too.

        Args:
            means: their elements are the axes from `first` on.
        """
        return means if self.numbers == "each" else means.flatten(first).mean(-1)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one set of numbers."""
        return tuple(self.x0.shape[1:]) if self.numbers == "each" else ()

    def identity(self) -> str:
        """Return a checksum of all that decides the result."""
        weights = checksum_of(self.model)
        if weights is None:
            raise UsageError(f"{UNKNOWN_WEIGHTS} leave resume out.")
        about = [paths.describe(self.path), weights, self.model.view, self.seed, self.n_probes]
        digest = hashlib.sha256(json.dumps([*about, self.method, self.numbers]).encode())
        told = [v for v in self.told.values() if isinstance(v, Tensor)]
        for value in (self.x0, self.levels, *told):
            digest.update(value.detach().cpu().double().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _rests(labels: Callable[[Tensor], Tensor], times: Tensor) -> bool:
    """Whether labels that change stay where times move a little, at two of three at least."""
    told = labels(times)
    return len(told.unique()) > 1 and int((told == labels(times + 1e-7)).sum()) > 1


def _part(value: Any, part: slice, k: int) -> Any:
    """Return a batch's part of a condition that has one entry a sample."""
    return value[part] if isinstance(value, Tensor) and value.ndim and len(value) == k else value


@dataclass
class _State:
    """What is done: nodes of pass 1, then nodes of pass 2."""

    run: _Run
    l: Tensor  # noqa: E741 - the paper's letter
    moments: Tensor
    done: dict[str, int]
    file: Path | None
    identity: str
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, run: _Run, file: Path | None) -> _State:
        """Return a state with nothing done, or what a file has of the same calibration."""
        n, shape = len(run.levels), run.shape
        identity = "" if file is None else run.identity()
        if file is None or not file.exists():
            empty = torch.zeros(n, 5, *shape, dtype=torch.float64)
            done = {"l": 0, "moments": 0}
            return cls(run, empty[:, 0].clone(), empty[:, 1:].clone(), done, file, identity)
        header, tensors = read_tensors(file)
        if header.get("calibration") != identity:
            raise UsageError(
                f"{file} is of another calibration (other data, model, nodes or seed); "
                "remove it, or name another file."
            )
        return cls(run, tensors["l"], tensors["moments"], header["done"], file, identity)

    def fill(self, name: str, measure: Callable[[int], Tensor]) -> None:
        """Measure at every node that is not done, and keep what is done whatever happens."""
        goal: Tensor = getattr(self, name)
        what = {"l": "calibrating, first pass", "moments": "calibrating, second pass"}[name]
        try:
            for j in track(range(self.done[name], len(goal)), what):
                goal[j] = self._finite(measure(j).cpu(), j, what)
                self.done[name] = j + 1
                if time.monotonic() - self.saved > SAVE_EVERY:
                    self.save()
        finally:
            self.save()

    def _finite(self, found: Tensor, j: int, what: str) -> Tensor:
        """Return what was found at a node, if it is finite everywhere."""
        if bool(torch.isfinite(found).all()):
            return found
        levels = self.run.levels
        t = float(self.run.path.time_of_log_snr(levels[j]))
        raise PathlineError(
            f"{what}: the network or its derivative is not finite at node {j + 1} of "
            f"{len(levels)}, λ = {float(levels[j]):.6g}, t = {t:.6g}."
        )

    def save(self) -> None:
        """Write what is done."""
        self.saved = time.monotonic()
        if self.file is not None:
            header = {"calibration": self.identity, "done": self.done}
            write_tensors(self.file, {"l": self.l, "moments": self.moments}, header)
