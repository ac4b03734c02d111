"""One edit of DiffEditor under way: states, references, energies and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core import noise
from pathline.core.errors import NonFiniteError, UsageError
from pathline.core.receipt import Receipt
from pathline.core.solution import Solution, Stats, finite_status, status_names
from pathline.edit.diff_schedule import Planned, schedule
from pathline.edit.diff_settings import DiffEditor, StepReport
from pathline.edit.diff_task import Laid, Task
from pathline.edit.inverter import Way
from pathline.edit.trajectory import Trajectory, regenerated, trajectory
from pathline.fields import Condition, Denoiser, Field, Prediction
from pathline.fields.denoiser import as_told, denoiser_in, null_of
from pathline.nets.attention import self_attentions
from pathline.nets.kv_bank import Kept, record, replay
from pathline.paths import GaussianPath
from pathline.solvers import DDIM, Solver, grids
from pathline.solvers.execute import complete
from pathline.solvers.plan import Plan
from pathline.steer import CFG
from pathline.steer.energy import separated
from pathline.steer.features import Look
from pathline.steer.regional import Regional

__all__ = ["Run"]


class Run:
    """One edit under way."""

    def __init__(  # noqa: PLR0913 - all of them are the edit
        self,
        model: Field,
        pictures: Sequence[Tensor],
        task: Task,
        editor: DiffEditor,
        seed: int,
        conds: tuple[Mapping[str, Any], Mapping[str, Any] | None],
        inverted: Sequence[Trajectory] | None = None,
    ) -> None:
        self.editor, self.task, self.seed = editor, task, seed
        self.tuning = editor.tuned(task)
        self.nfe = self.vjps = self._draws = 0
        editor.features.check(model)
        size = (pictures[0].shape[2], pictures[0].shape[3])
        self.features_size = (size[0] * editor.upscale, size[1] * editor.upscale)
        self.laid: Laid = task.laid(size, self.features_size)
        self.times = editor.falling(model)
        self.field, told = _told(model, conds, len(pictures))
        self.cond, self.told = _together(told), told[0]
        self.ways = [Way(self.field, self.times[::-1], each) for each in told]
        self.trajectories = self._inverted(pictures, inverted)
        self.z = self.laid.begin([each.at(self.times[0]) for each in self.trajectories])
        self._known: tuple[int, list[list[Tensor]] | None, dict[str, Kept]] | None = None

    def _inverted(
        self, pictures: Sequence[Tensor], given: Sequence[Trajectory] | None
    ) -> list[Trajectory]:
        """Return where the pictures were at every level; what is given is checked.

        Raises:
            UsageError: the wrong number of trajectories, or one that lacks a level.
        """
        if given is None:
            raised = [p.to(torch.promote_types(p.dtype, torch.float32)) for p in pictures]
            method = self.editor.inverter
            pairs = zip(self.ways, raised, strict=True)
            made = [trajectory(method, way, picture) for way, picture in pairs]
            self.nfe += sum(each.nfe for each in made)
            return made
        if len(given) != len(pictures):
            raise UsageError(
                f"{len(pictures)} pictures need as many trajectories, and {len(given)} were given."
            )
        for each in given:
            for t in self.times:
                each.at(t)
        return list(given)

    @cached_property
    def guided_field(self) -> Field:
        """The field under guidance."""
        asked = self.editor.guidance is not None
        conditional = bool(self.cond) and null_of(self.field) is not None
        return CFG(self.tuning.guidance)(self.field) if asked or conditional else self.field

    @cached_property
    def network(self) -> nn.Module | None:
        """The network, if keys and values of its attention are used."""
        denoiser = denoiser_in(self.field)
        found = None if denoiser is None else denoiser.network
        if self.editor.bank is None or not isinstance(found, nn.Module):
            return None
        wanted = self.editor.bank.layers is not None or self_attentions(found)
        return found if wanted else None

    def steps(self) -> Iterator[StepReport]:
        """Take the steps."""
        tuning, n = self.tuning, len(self.times) - 1
        planned = schedule(
            n, guides=tuning.strength * tuning.kappa != 0, travel=self.editor.travel,
            eta=tuning.eta_sde, last_banked=tuning.last_banked,
        )  # fmt: skip
        for step in planned:
            yield self._step(step)

    def _step(self, step: Planned) -> StepReport:
        k, n = step.q, len(self.times) - 1
        down, up = self._down(step), self._plan(DDIM(), k + 1, k)
        first: StepReport | None = None
        for visit in range(step.repeats):
            now = self._predicted(step)
            g, energies = self._pull(k) if step.guided else (None, (None, None))
            drawn, added = self._noise(down)
            z = complete(down, lambda _, __, now=now: now.x0, [self.z], draw=lambda _, d=drawn: d)
            if g is not None:
                z = z - self._share(k) * g
            self.z = self._checked(z, step)
            if first is None:
                pull = 0.0 if g is None else float(g.square().mean().sqrt())
                first = StepReport(
                    k, n, self.times[k], step.guided, step.repeats, step.eta, self._banks(step),
                    self._hears(step), *energies, pull, added, now.x0,
                )  # fmt: skip
            if visit < step.repeats - 1:
                back = self._look(self.field, self.told, k + 1)(self.z)
                self.z = complete(up, lambda _, __, back=back: back.x0, [self.z])
        assert first is not None
        return first

    def _share(self, k: int) -> float:
        """Return α_{i−1} σ_i/α_i: what a shift of ε̂ inside x̂_0 alone does to the next state."""
        t = torch.tensor([self.times[k], self.times[k + 1]], dtype=torch.float64)
        (alpha, after), (sigma, _) = (f(t).tolist() for f in (self._path.alpha, self._path.sigma))
        return after * sigma / alpha

    @property
    def _path(self) -> GaussianPath:
        return self.ways[0].path

    def _down(self, step: Planned) -> Plan:
        inside, outside = DDIM(step.eta), DDIM(self.editor.eta_kept if step.eta else 0.0)
        rule = outside if inside == outside else Regional(inside, outside, self.laid.region)
        return self._plan(rule, step.q, step.q + 1)

    def _plan(self, rule: Solver, start: int, end: int) -> Plan:
        return rule.plan(self._path, grids.times((self.times[start], self.times[end])))

    def _noise(self, plan: Plan) -> tuple[Tensor, float]:
        """Return the step's noise, and the root mean square of what is added of it inside m."""
        scale = max((float(c) for row in plan.rows for c in row.z.values()), default=0.0)
        if not scale:
            return self.z, 0.0
        shape, like = self.z.shape[1:], self.z
        drawn = noise.normal(
            [self.seed], shape, stream="step", index=self._draws, dtype=like.dtype,
            device=like.device,
        )  # fmt: skip
        self._draws += 1
        inside = drawn[..., self.laid.region.to(like.device)]
        return drawn, scale * float(inside.square().mean().sqrt())

    def _look(
        self, field: Field, cond: Condition, k: int, batch: int = 1
    ) -> Callable[[Tensor], Prediction]:
        """Return the evaluation of a field at the k-th time."""
        told = field.condition(cond, batch)
        t = torch.tensor([self.times[k]], dtype=torch.float64, device=self.z.device)

        def look(x: Tensor) -> Prediction:
            self.nfe += 1
            return Prediction(x, t[0], field.bind(t, x, told)(0, x), field.view, field.path)

        return look

    def _predicted(self, step: Planned) -> Prediction:
        """Return what the guided field says of the state, with bank and prompt in their windows."""
        with ExitStack() as around:
            if self._banks(step):
                assert self.network is not None
                kept = self._references(step.q)[1]
                around.enter_context(replay(self.network, kept, self.laid.reuse))
            if self._hears(step):
                heard, denoiser = self.editor.heard, denoiser_in(self.field)
                assert heard is not None and isinstance(denoiser, Denoiser)
                if not isinstance(denoiser.network, nn.Module):
                    raise UsageError("an image prompt is heard by a network, and there is none.")
                around.enter_context(
                    heard.prompt.heard(denoiser.network, heard.tokens, heard.share)
                )
            return self._look(self.guided_field, self.cond, step.q)(self.z)

    def _banks(self, step: Planned) -> bool:
        return step.banked and self.network is not None

    def _hears(self, step: Planned) -> bool:
        return step.prompted and self.editor.heard is not None

    def _pull(self, k: int) -> tuple[Tensor, tuple[float, float]]:
        """Return g at the state, and the energies inside and outside the region."""
        known, _ = self._references(k)
        references = [view(known) for view in self.laid.views]
        with torch.enable_grad():
            x = self.z.detach().requires_grad_()
            current = self._maps(self._look(self.field, self.cond, k), x)
            inside, outside = (
                self.laid.inside(current, references),
                self.laid.outside(current, references),
            )
            slope = separated(inside, outside, x, self.laid.region)
        self.vjps += 2
        energies = float(inside.detach()), float(outside.detach())
        return self.tuning.strength * self.tuning.kappa * slope, energies

    def _maps(self, look: Look, x: Tensor, *, to_the_end: bool = False) -> list[Tensor]:
        """Return features on their grid, in float32 at least: half precision would overflow."""
        source = self.editor.features
        maps = source.maps(self.field, look, x, to_the_end=to_the_end)
        raised = [m.to(torch.promote_types(m.dtype, torch.float32)) for m in maps]
        return source.on_grid(raised, self.features_size)

    def _references(self, k: int) -> tuple[list[list[Tensor]], dict[str, Kept]]:
        """Return maps of each picture, and the bank, at the k-th time and its own states."""
        if self._known is None or self._known[0] != k:
            states = [each.at(self.times[k]) for each in self.trajectories]
            n = len(states)
            look, x = self._look(self.field, self.cond, k, n), torch.cat(states)
            if self.network is None:
                maps, kept = self._maps(look, x), {}
            else:
                layers = None if self.editor.bank is None else self.editor.bank.layers
                with record(self.network, layers) as kept:
                    maps = self._maps(look, x, to_the_end=True)
            each = [[m[i : i + 1] for m in maps] for i in range(n)]
            self._known = (k, each, kept)
        assert self._known[1] is not None
        return self._known[1], self._known[2]

    def _checked(self, z: Tensor, step: Planned) -> Tensor:
        status = finite_status(z)
        if bool(status.any()):
            guided = ", which was guided" if step.guided else ""
            when = f"t = {self.times[step.q]:.6g}"
            raise NonFiniteError(
                f"the edit is not finite after step {step.q}{guided} ({when}): "
                "take a smaller strength, or more steps.",
                Solution(z, self.times[step.q + 1], status, Stats(self.nfe, self.nfe, step.q)),
            )
        return z

    def reconstruction(self) -> Tensor:
        """Return what DDIM makes of the inversion's end."""
        self.nfe += len(self.times) - 1
        return regenerated(self.ways[0], self.trajectories[0].states)

    def receipt(self, x: Tensor) -> Receipt:
        """Return what made the picture."""
        denoiser = denoiser_in(self.field)
        model: dict[str, Any] = {}
        if denoiser is not None:
            model = {"name": denoiser.name, "weights": denoiser.details.get("weights")}
        told = {
            "steps": self.editor.steps, "eta_kept": self.editor.eta_kept,
            "travel": self.editor.travel, "upscale": self.editor.upscale,
            "inverter": self.editor.inverter.describe(), "bank": self.network is not None,
            "features": {"name": type(self.editor.features).__name__.lower(),
                         **asdict(self.editor.features)},  # type: ignore[call-overload]
            **self.tuning._asdict(),
        }  # fmt: skip
        recipe = {"model": model, "diff_edit": {"task": self.task.describe(), **told}}
        status = status_names(finite_status(x))
        dtype = str(x.dtype).removeprefix("torch.")
        return Receipt(recipe, (self.seed,), self.times, self.nfe, status, x.device.type, dtype)


def _told(
    model: Field, conds: tuple[Mapping[str, Any], Mapping[str, Any] | None], n: int
) -> tuple[Field, list[Condition]]:
    """Return the field without its encoder, and the condition of each picture as it encodes it."""
    own, other = conds
    field, told = as_told(model, own)
    made = [told]
    if n == 2:
        made.append(told if other is None else as_told(model, other)[1])
    elif other is not None:
        raise UsageError("reference_cond is the condition of a reference, and there is none.")
    return field, made


def _together(conds: Sequence[Condition]) -> Condition:
    """Return one condition of two pictures: the tokens of both, and all else of the first."""
    if len(conds) == 1 or conds[0] is conds[1]:
        return conds[0]
    first, second = conds
    made = dict(first)
    for name, value in first.items():
        more = second.get(name)
        if isinstance(value, Tensor) and isinstance(more, Tensor) and value.ndim >= 2:
            made[name] = torch.cat((value, more), 1)
    return made
