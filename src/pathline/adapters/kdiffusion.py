"""Our solvers under the call signature of k-diffusion, for the front ends that are built on it.

    sample_dpmpp_3m(model, x, sigmas, extra_args=None, callback=None, disable=None, **options)

The model is a denoiser in σ: model(x, σ) → x̂_0 for x = x_0 + σ ε, with σ of shape (batch,). There
is one such function for every solver with a plan, `SAMPLERS["sample_dpmpp_3m"]` or
`sample_dpmpp_3m` of this module, and for every name in `THEIRS`, those that k-diffusion has for
some of them; `sampler` makes one of a solver with settings of your own. `SAMPLERS` leaves out what
no model of this call has statistics for: `sample_dpm_v3(..., table=...)` is there by name alone.
None of them decides the gradient mode: call them under `torch.no_grad()` unless you want gradients.

Paper: Karras et al. 2022 (arXiv:2206.00364), for the coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from pathline.adapters.driven import Driven, suffix, with_plan
from pathline.core.errors import UsageError
from pathline.core.progress import progress
from pathline.paths import EDM
from pathline.solvers import Plan, Solver, Stepped, grids, solvers
from pathline.solvers.dpm_v3 import DPMv3
from pathline.solvers.execute import Draw, drawing
from pathline.solvers.plan import Functional
from pathline.solvers.sde import EDMSampler

THEIRS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "euler_ancestral": ("ddim", {"eta": 1.0}),
    "dpm_2": ("dpm", {"order": 2}),
    "lms": ("deis", {"order": 4, "variable": "rho"}),
}
"""k-diffusion's names of solvers that are ours to rounding; LMS up to its step to 0, which there
extrapolates, and here ends on x̂_0 as every step to data."""

_CHURN = {
    "s_churn": ("churn", 0.0),
    "s_tmin": ("low", 0.0),
    "s_tmax": ("high", math.inf),
    "s_noise": ("scale", 1.0),
}
"""k-diffusion's options of churn, which front ends always pass: ours of `edm`, and what is none."""

Model = Callable[..., Tensor]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]


class Sampler(Protocol):
    """A sampler of k-diffusion: integrates x from noise level sigmas[0] to sigmas[-1]."""

    def __call__(  # noqa: PLR0913 - the signature is k-diffusion's
        self,
        model: Model,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        *,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise_sampler: NoiseSampler | None = None,
        **options: Any,
    ) -> Tensor:
        """Return the state at sigmas[-1], (batch, *state), in the dtype of x.

        Args:
            model: model(x, sigma, **extra_args) → x̂_0, with sigma of shape (batch,).
            x: (batch, *state), x_0 + sigmas[0] ε. In half precision the state is kept in float32,
                and the model sees it in half.
            sigmas: noise levels, falling (rising inverts); a closing 0 ends on data, x = x̂_0.
            extra_args: passed on to the model.
            callback: called at every step with a dict of x, i, sigma, sigma_hat and denoised.
            disable: True for no progress bar; off a terminal there is none.
            seeds: one a sample, of the noise of stochastic solvers: counter-based, the same in
                every batch. If None they are drawn from torch's generator, so `torch.manual_seed`
                rules.
            generator: from which the seeds are drawn, in place of torch's own.
            noise_sampler: noise_sampler(sigma, sigma_next) → normal noise of a step, instead; of
                its parts, one after the other, where a step has several.
            options: arguments of the solver. s_churn, s_tmin, s_tmax and s_noise are of `edm`; the
                others take the values of these that change nothing.

        Raises:
            UsageError: levels that do not fall, a state that is none, an option that nobody takes.
        """
        ...


def sampler(solver: Solver | str) -> Sampler:
    """Return a solver as a sampler of k-diffusion.

    Args:
        solver: a solver, or the name of one, or of `THEIRS`. Under a name the solver's arguments
            are options of the sampler: `sampler("dpmpp")(model, x, sigmas, order=3)`.

    Raises:
        UsageError: no solver has this name, or it has no plan.

    Example: data that are one point are reached in one step.
        >>> import torch
        >>> x = torch.full((1, 2), 10.0)
        >>> sampler("ddim")(lambda x, sigma: torch.ones_like(x), x, [10.0, 1.0])
        tensor([[1.9000, 1.9000]])
    """
    if isinstance(solver, str):
        ours, settings = THEIRS.get(solver, (solver, {}))
        ours = solvers.entry(ours).name
        with_plan(solvers.build(ours))
        name = solver if settings else ours
        build = partial(_build, f"sample_{name}", ours, settings)
    elif isinstance(solver, Solver):
        name, build = type(solver).__name__.lower(), partial(_as_it_is, with_plan(solver))
    else:
        raise UsageError(
            "a sampler needs a solver that compiles to a plan, or its name, and was given a "
            f"{type(solver).__name__}."
        )

    def sample(  # noqa: PLR0913 - the signature is k-diffusion's
        model: Model,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        *,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise_sampler: NoiseSampler | None = None,
        **options: Any,
    ) -> Tensor:
        _check_state(x)
        course = _Course.compiled(build(**options), sigmas)
        state = x.to(torch.promote_types(x.dtype, torch.float32))
        noise = course.noise(state, seeds, generator, noise_sampler)
        call = partial(_called, model, x.dtype, extra_args or {})
        told = None if callback is None else partial(_told, callback, x.dtype, course)
        return _walk(course, state, call, noise, told, hides=bool(disable)).to(x.dtype)

    sample.__name__ = sample.__qualname__ = f"sample_{name}"
    entry = THEIRS[name][0] if name in THEIRS else name
    sample.__doc__ = f"{solvers.entry(entry).about}\n\nSee `Sampler`." if entry in solvers else None
    return sample


def _build(called: str, name: str, settings: Mapping[str, Any], /, **options: Any) -> Solver:
    """Return a solver with settings, and options in k-diffusion's words or in ours."""
    if name == "edm":
        options = {_CHURN[k][0] if k in _CHURN else k: v for k, v in options.items()}
        if options.get("high") == math.inf:
            options["high"] = None
    else:
        options = _without_churn(called, options)
    return solvers.build(name, **{**settings, **options})


def _without_churn(called: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without those of churn, or refuse one that would change something."""
    for key, (_, none) in _CHURN.items():
        if options.get(key, none) != none:
            raise UsageError(
                f"{called} has no {key}, and was given {key}={options[key]}; leave it at "
                f"{none:g}, or take sample_edm, which has it."
            )
    return {key: value for key, value in options.items() if key not in _CHURN}


def _as_it_is(solver: Solver, **options: Any) -> Solver:
    options = options if isinstance(solver, EDMSampler) else _without_churn("this solver", options)
    if options:
        raise UsageError(f"this solver has its settings already; leave {', '.join(options)} out.")
    return solver


def _check_state(x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        raise UsageError("x must be a floating tensor (batch, *state).")


def _called(
    model: Model, dtype: torch.dtype, extra: Mapping[str, Any], x: Tensor, sigma: Tensor
) -> Tensor:
    """Call the model in its dtype, and return x̂_0 in the state's."""
    return model(x.to(dtype), sigma.to(dtype).expand(len(x)), **extra).to(x.dtype)


def _told(
    callback: Callable[[dict[str, Any]], Any],
    dtype: torch.dtype,
    course: _Course,
    turn: int,
    x: Tensor,
    denoised: Tensor,
) -> None:
    """Call back in k-diffusion's words at the evaluations that begin a step."""
    if turn in course.begun:
        i = course.begun[turn]
        stop, level = course.stops[i].to(x.device, dtype), course.levels[turn].to(x.device, dtype)
        told = {"x": x.to(dtype), "denoised": denoised.to(dtype)}
        callback({"i": i, "sigma": stop, "sigma_hat": level, **told})


def _walk(
    course: _Course,
    x: Tensor,
    call: Callable[[Tensor, Tensor], Tensor],
    noise: Draw,
    told: Callable[[int, Tensor, Tensor], None] | None,
    *,
    hides: bool,
) -> Tensor:
    """Return the state at the end of a course, the model called at each of its levels."""
    run, levels = Driven(course.plan, x), course.levels.to(x)
    with progress() as bar:
        task = bar.add_task("sampling", total=len(levels), visible=not hides)
        for turn, sigma in enumerate(levels):
            denoised = call(x, sigma)
            if told is not None:
                told(turn, x, denoised)
            x = run.push(denoised, x, noise)
            bar.advance(task)
    return x


@dataclass(frozen=True)
class _Course:
    """A plan on noise levels.

    Args:
        plan: in x̂_0.
        levels: σ of each evaluation, float64.
        stops: σ at the grid points, float64.
        begun: number of an evaluation → the step that it begins.
    """

    plan: Plan
    levels: Tensor
    stops: Tensor
    begun: Mapping[int, int]

    @classmethod
    def compiled(cls, solver: Solver, sigmas: Tensor | Sequence[float]) -> _Course:
        """Compile a solver for these levels, on the path σ_t = σ_max t."""
        values = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
        _check_levels(values)
        highest = max(values)
        lowest = min((s for s in values if 0 < s < highest), default=highest / 2)
        path = EDM(lowest, highest)
        times = [s / highest for s in values]
        ends = not times[-1]
        grid = grids.times(times[:-1], "denoise") if ends else grids.times(times)
        plan = suffix(solver.plan(path, grid), 0).folded("x0")
        if len(plan.start) != 1:
            raise UsageError("this solver starts from several states; a sampler is given one.")
        levels = plan.instants[list(plan.evaluated)] * highest
        stops = torch.tensor(plan.grid, dtype=torch.float64) * highest
        return cls(plan, levels, stops, _beginnings(plan))

    def noise(
        self,
        x: Tensor,
        seeds: Sequence[int] | None,
        generator: torch.Generator | None,
        noise_sampler: NoiseSampler | None,
    ) -> Draw:
        """Return where the noise comes from; nothing is drawn for a solver that needs none."""
        if noise_sampler is not None:
            intervals = self._intervals()
            return lambda d: noise_sampler(*(level.to(x) for level in intervals[d])).to(x)
        if seeds is None and self.plan.is_stochastic:
            device = "cpu" if generator is None else generator.device
            drawn = torch.randint(2**63 - 1, (len(x),), generator=generator, device=device)
            seeds = drawn.tolist()
        elif seeds is not None and len(seeds) != len(x):
            raise UsageError(f"{len(seeds)} seeds were given for {len(x)} samples.")
        return drawing(self.plan, seeds, x)

    def _intervals(self) -> dict[int | Functional, tuple[Tensor, Tensor]]:
        """Return the levels between which each draw falls: of its step, or of its part of it.

        Where a step has several draws, each goes on from the level of the one before.

        Raises:
            UsageError: there is no such part of the step: a Brownian path has no noise for that.
        """
        found, spans = dict[int | Functional, tuple[Tensor, Tensor]](), list(pairwise(self.stops))
        step, inside = 0, list[tuple[int | Functional, Tensor]]()
        for row in self.plan.rows:
            level = torch.as_tensor(row.t, dtype=torch.float64) * self.stops.max()
            inside += [(d, level) for d in row.z if d not in found and d not in dict(inside)]
            if row.lands and inside:
                start, end = spans[step]
                edges = [start, *(level for _, level in inside[:-1]), end]
                if not all((b - a) * (end - start) > 0 for a, b in pairwise(edges)):
                    raise UsageError(
                        "a noise_sampler tells the noise of a way between two levels, and this "
                        f"solver draws {len(inside)} times between σ = {start:g} and {end:g} "
                        "without going on; leave noise_sampler out, and give seeds."
                    )
                found.update(
                    {d: ends for (d, _), ends in zip(inside, pairwise(edges), strict=True)}
                )
                inside = []
            step += row.lands
        return found


def _check_levels(values: object) -> None:
    if not isinstance(values, list) or len(values) < 2:
        raise UsageError(f"sigmas has at least two noise levels in a row, not {values}.")
    rises = values[-1] > values[0]
    for i, (a, b) in enumerate(zip(values, values[1:], strict=False)):
        if not (b > a if rises else 0 <= b < a):
            raise UsageError(
                f"sigmas must fall (or rise) at every step, and may end at 0; step {i + 1} goes "
                f"from {a:g} to {b:g}."
            )


def _beginnings(plan: Plan) -> dict[int, int]:
    """Return which evaluation begins which step.

    That is the one at the grid point's state; or the first in the step that is not at its end, as
    where noise is added before it; or, of a corrector (UniPC), the last one at its prediction.
    """
    found: dict[int, int] = {}
    turns = {k: turn for turn, k in enumerate(plan.evaluated)}
    for i, (landing, end) in enumerate(pairwise(plan.landings)):
        inside = [k for k in turns if landing < k < end and plan.times[k] != plan.times[end]]
        before = [k for k in turns if k < landing and plan.times[k] == plan.times[landing]]
        here = [landing] if landing in turns else []
        for k in (*here, *inside[:1], *reversed(before)):
            if turns[k] not in found:
                found[turns[k]] = i
                break
    return found


def _samplers() -> dict[str, Sampler]:
    built = {entry.name: entry.build() for entry in solvers}
    fixed = [name for name, solver in built.items() if not isinstance(solver, Stepped | DPMv3)]
    return {f"sample_{name}": sampler(name) for name in (*fixed, *THEIRS)}


def __getattr__(name: str) -> Any:
    """Return `SAMPLERS`, solvers by name, or `sample_…` of a solver's name or alias."""
    if name == "SAMPLERS":
        return _samplers()
    solver = name.removeprefix("sample_")
    if name.startswith("sample_") and (solver in THEIRS or solver in solvers):
        try:
            return sampler(solver)
        except UsageError as error:  # so that `hasattr` can ask
            raise AttributeError(str(error)) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "SAMPLERS", *_samplers()]
