"""Problems: what all samplers are given alike, and where a perfect one would end.

A problem is a field, conditioned and guided, and noise at t_max. A sampler ends where its library
ends: at the path's `t_min`, where the network is evaluated last, or at data, one step x = x̂_0
farther. Each is held to the converged solution there; the two are σ(t_min) ε̂ apart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as made
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pathline.core import noise
from pathline.core.errors import UsageError, unknown
from pathline.core.files import write_atomically
from pathline.data.fetch import cache_folder
from pathline.fields import Condition, Denoiser, Evaluate, Field, Halves
from pathline.fields.problems import m4
from pathline.learn.checkpoint import load_model, model_names
from pathline.paths import CondOT, GaussianPath, VPLinear
from pathline.solvers import grids, solve
from pathline.solvers.reference import reference
from pathline.steer import CFG, Guided

FIRST_SEED = 1_000_000
"""Noises from here on are held out: nothing is tuned on them."""

ORACLE_SAMPLES, MODEL_SAMPLES = 256, 4

PROMPTS = (
    "red apple", "smiling face", "blue car", "dog", "rocket", "green heart", "cup of coffee",
    "house with garden", "yellow flower", "fish", "crescent moon", "musical note", "pizza",
    "umbrella with rain drops", "tiger face", "wrapped gift",
)  # fmt: skip
"""What a model that is told a text is asked for, in turn."""

SCREENED = 4
"""So many noises are enough to tell a network's good samplers from the others."""


@dataclass(frozen=True)
class Converged:
    """Where a perfect sampler ends.

    Args:
        stop: at t_min.
        data: at data, x̂_0 there.
        difference: RMS difference between the two methods that found `stop`.
        methods: what they are.
    """

    stop: Tensor
    data: Tensor
    difference: float
    methods: tuple[str, str]

    def first(self, n: int) -> Converged:
        """Return it for the first n noises alone."""
        return replace(self, stop=self.stop[:n], data=self.data[:n])


@dataclass(frozen=True)
class Problem:
    """A field and noises.

    Args:
        name: of the problem.
        model: the field before guidance: what tuned solvers were tuned to.
        field: what is integrated; its condition is bound already.
        x: noise at t_max, (batch, *state).
        settings: what else decides the result, as plain values.
        is_cheap: whether evaluations cost next to nothing.
        starts: states of the converged flow near t_max, by time; filled as they are needed.
        few: the problem with its first noises alone, to screen on; None screens on all.
    """

    name: str
    model: Field
    field: Field
    x: Tensor
    settings: Mapping[str, Any]
    is_cheap: bool
    starts: dict[float, Tensor] = made(default_factory=dict, repr=False)
    few: Problem | None = None

    @property
    def path(self) -> GaussianPath:
        """The path of the model."""
        assert self.field.path is not None
        return self.field.path

    def converged(self) -> Converged:
        """Return where a perfect sampler ends; from the cache, where it was found before."""
        if self.is_cheap:
            return _converged_oracle(self)
        told = repr(sorted(self.settings.items())).encode()
        file = cache_folder() / "bench" / f"{hashlib.sha256(told).hexdigest()[:24]}.safetensors"
        if not file.is_file():
            found = _converged_network(self)
            tensors = {"stop": found.stop, "data": found.data}
            tensors["difference"] = torch.tensor(found.difference)
            write_atomically(file, lambda temporary: save_file(tensors, temporary))
        kept = load_file(file, device=str(self.x.device))
        return Converged(kept["stop"], kept["data"], float(kept["difference"]), _METHODS)


def _denoised(problem: Problem, x: Tensor) -> Tensor:
    return problem.field(x, problem.path.t_min).x0


def _converged_oracle(problem: Problem) -> Converged:
    """RK4 in float64 until Richardson's estimate is 1e-11; UniPC of order four beside it."""
    stop = reference(problem.field, problem.x, tolerance=1e-11)
    other = solve(problem.field, problem.x, solver="unipc_3", grid=grids.log_snr(4000)).x
    methods = "RK4, doubled until converged", "unipc_3, 4000 steps"
    return Converged(stop, _denoised(problem, stop), rms(stop - other), methods)


_STEPS, _MOST = 120, 1920
"""Steps of the first try, and at most: some noises lie where the flow forks, and need them."""

_CLOSE = 2e-3
"""A noise is done when doubling its steps moves its end no farther, in root mean square."""

_METHODS = f"rk4, log_snr, steps doubled from {_STEPS} for each noise", "half as many steps"


def _converged_network(problem: Problem) -> Converged:
    """RK4, with more steps for those noises that want them."""
    with torch.inference_mode():
        stop, steps = _rk4(problem, _STEPS), _STEPS
        left = torch.arange(len(stop))
        moved = torch.full((len(stop),), math.inf, dtype=torch.float64)
        while len(left) and steps < _MOST:
            steps *= 2
            finer = _rk4(_of_rows(problem, left), steps)
            moved[left] = each_rms(finer - stop[left]).cpu()
            stop[left] = finer
            left = left[moved[left] > _CLOSE]
        return Converged(stop, _denoised(problem, stop), rms(moved), _METHODS)


def _rk4(problem: Problem, steps: int) -> Tensor:
    return solve(problem.field, problem.x, solver="rk4", grid=grids.log_snr(steps)).x


def _of_rows(problem: Problem, rows: Tensor) -> Problem:
    """Return a network's problem with some of its noises alone."""
    asked = problem.field.inner if isinstance(problem.field, Remembering) else problem.field
    assert isinstance(asked, Asked)
    told = asked.inner.part(asked.prepared, rows)
    assert told is not None  # a guided denoiser's
    x = problem.x[rows.to(problem.x.device)]
    return replace(problem, field=replace(asked, prepared=told), x=x, starts={})


def rms(x: Tensor) -> float:
    """Return the root mean square over everything."""
    return float(x.double().square().mean().sqrt())


def each_rms(x: Tensor) -> Tensor:
    """Return the root mean square of each sample, (batch,) in float64."""
    return x.double().square().flatten(1).mean(1).sqrt()


# Fields that are asked often


@dataclass(frozen=True)
class Asked(Guided):
    """A field with its condition bound: it takes none any more."""

    prepared: Condition

    def condition(self, cond: Condition, batch: int) -> Condition:
        return self.prepared

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.inner.evaluate(x, t, self.prepared)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        return self.inner.bind(times, x, self.prepared)

    def halves(self, times: Tensor, x: Tensor, cond: Condition) -> Halves | None:
        return self.inner.halves(times, x, self.prepared)


NEAR = 1e-5
"""States nearer than this, in units of the largest element, are one for `Remembering`."""

MOST_REMEMBERED = 48


@dataclass(frozen=True)
class Remembering(Guided):
    """A field that does not work out twice what it has just said.

    All samplers begin alike: every one evaluates at the start, and all multistep methods take the
    same first step. States that differ by roundings count as one, so that those who scale theirs
    are served too. An evaluation from memory is counted like any other.
    """

    said: dict[float, list[tuple[Tensor, Tensor]]] = made(default_factory=dict, repr=False)

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        keys, inner = [round(t, 9) for t in times.tolist()], self.inner.bind(times, x, cond)

        def evaluate(k: int, state: Tensor) -> Tensor:
            known = self.said.setdefault(keys[k], [])
            for before, answer in known:
                if before.shape == state.shape and _is_near(before, state):
                    return answer
            answer = inner(k, state)
            known.append((state.clone(), answer))
            self._forget()
            return answer

        return evaluate

    def halves(self, times: Tensor, x: Tensor, cond: Condition) -> Halves | None:
        return self.inner.halves(times, x, cond)

    def _forget(self) -> None:
        """Drop what was asked longest ago; what was asked of the start is dropped last."""
        while sum(map(len, self.said.values())) > MOST_REMEMBERED:
            _, *others = self.said
            oldest = others[0] if others else next(iter(self.said))
            self.said[oldest].pop(0)
            if not self.said[oldest]:
                del self.said[oldest]


def _is_near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= NEAR * b.abs().max())


# The problems there are


def oracle(name: str, path: GaussianPath, n: int | None = None) -> Problem:
    """Return M4 on a path, with its exact denoiser, in float64."""
    n = ORACLE_SAMPLES if n is None else n
    law = m4(path)
    seeds = range(FIRST_SEED, FIRST_SEED + n)
    x = noise.normal(seeds, (3,), dtype=torch.float64) * path.sigma(path.t_max)
    settings = {"problem": name, "samples": n, "first seed": FIRST_SEED, "dtype": "float64"}
    return Problem(name, law, law, x, settings, is_cheap=True)


def learned(
    name: str | Denoiser,
    n: int | None = None,
    first: int = FIRST_SEED,
    device: torch.device | str = "cpu",
) -> Problem:
    """Return a model, shipped or in a folder, guided as it recommends, from a seed on.

    One that is loaded already stays on its device.
    """
    model = name if isinstance(name, Denoiser) else load_model(name).to(device)
    device = model.device or torch.device("cpu")
    n = MODEL_SAMPLES if n is None else n
    if model.shape is None:
        raise UsageError(f"{model.name} does not say the shape of a sample.")
    seeds = range(first, first + n)
    cond, weight = _wishes(model, seeds), float(model.defaults.get("guidance", CFG().weight))
    guided = CFG(weight)(model) if cond else model
    told = guided.condition(cond, n)
    told = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in told.items()}
    asked = Remembering(Asked(guided, told))
    x = noise.normal(seeds, model.shape, device=device)
    x = x * float(model.path.sigma(model.path.t_max))
    settings = {
        "problem": model.name,
        "weights": model.details["weights"]["sha256"],
        "samples": n,
        "first seed": first,
        "guidance": weight if cond else 1.0,
        **{kind: ", ".join(values) for kind, values in cond.items()},
        "dtype": "float32",
        "converged": ", against ".join(_METHODS),
    }
    few = learned(model, SCREENED, first) if n > SCREENED else None
    return Problem(str(model.name), model, asked, x, settings, is_cheap=False, few=few)


def _wishes(model: Denoiser, seeds: Sequence[int]) -> dict[str, list[str]]:
    told = model.details.get("condition")
    if told is None or not model.is_conditional:
        return {}
    words = PROMPTS if told == "text" else model.details["classes"]
    return {told: [words[seed % len(words)] for seed in seeds]}


ORACLES: Mapping[str, Callable[[], GaussianPath]] = {"m4-vp": VPLinear, "m4-flow": CondOT}


def problem_names() -> Sequence[str]:
    """Return the problems that need no argument: the oracles and the shipped models."""
    return [*ORACLES, *model_names()]


def problem_of(name: str, n: int | None = None, device: torch.device | str = "cpu") -> Problem:
    """Return a problem by name: an oracle, a shipped model, or a model folder.

    Args:
        name: of it.
        n: noises; 256 for an oracle, 4 for a network if None.
        device: where a network runs; oracles are on the CPU.

    Raises:
        UsageError: no such problem, or no noises.
    """
    if n is not None and n < 1:
        raise UsageError(f"at least 1 sample is needed, and {n} were asked for.")
    if name in ORACLES:
        return oracle(name, ORACLES[name](), n)
    if name not in model_names() and not Path(name).is_dir():
        raise unknown("problem", name, problem_names())
    return learned(name, n, device=device)


def rehearsal(problem: Problem) -> Problem:
    """Return a problem on the same path that costs nothing: to see how often a sampler asks."""
    law = m4(problem.path)
    return replace(
        oracle("rehearsal", problem.path, 1),
        model=law,
        field=law,
        x=torch.ones(1, 3, dtype=torch.float64),
    )
