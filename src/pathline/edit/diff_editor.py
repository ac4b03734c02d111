"""DiffEditor: objects of a picture moved, resized, dragged, restyled or pasted, without training.

    x̂_0 = (z − σ_i (ε̂ + g))/α_i                               only the clean estimate is guided
    z'  = α_{i−1} x̂_0 + √(σ_{i−1}² − s²) ε̂ + s n              the direction keeps the model's own ε̂
    g   = η κ (m ⊙ ∇_z E_inside + (1 − m) ⊙ ∇_z E_outside)

The picture is inverted, its states and features at every level are the reference, and the energies
of a task (`diff_tasks`) say how the features of the edit shall differ. A step is the row of DDIM,
with noise inside the region m alone (`steer.Regional`), then −α_{i−1} σ_i/α_i g: what g does to x̂_0
goes on with the factor of x̂_0, and the direction does not see it. Some steps are repeated with one
deterministic step back in between (time travel), some attend to the keys and values of the
reference, some hear an image prompt (`diff_schedule`).

Paper: Mou et al. 2024 (arXiv:2402.02583), Alg. 1; Mou et al. 2023 (arXiv:2307.02421).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.edit.diff_run import Run
from pathline.edit.diff_settings import Bank, DiffEdited, DiffEditor, Heard, StepReport
from pathline.edit.diff_task import Task
from pathline.edit.inverter import Way
from pathline.edit.trajectory import Trajectory, trajectory
from pathline.fields import Field
from pathline.fields.denoiser import as_told

__all__ = ["Bank", "DiffEditor", "DiffEdited", "Heard", "StepReport", "diff_edit", "invert"]


def diff_edit(  # noqa: PLR0913 - keyword-only from `reference` on
    model: Field,
    image: Tensor,
    task: Task,
    *,
    reference: Tensor | None = None,
    reference_cond: Mapping[str, Any] | None = None,
    editor: DiffEditor | None = None,
    inverted: Sequence[Trajectory] | None = None,
    seed: int = 0,
    observe: Callable[[StepReport], None] | None = None,
    **cond: Any,
) -> DiffEdited:
    """Return a picture after an edit.

    Args:
        model: a denoiser; without a network (an exact one), give `features` of another kind.
        image: (1, channels, height, width), what the model is a model of.
        task: Move, Resize, Drag, Appearance or Paste.
        reference: the other picture, of tasks with two.
        reference_cond: its condition; both are then heard. None for the same one.
        editor: how; the defaults of the task if None.
        inverted: what `invert` returned of each picture, under the same condition: one inversion
            then serves many edits. None inverts.
        seed: of the noise inside the region.
        observe: called after every step.
        cond: what the picture shows, in the user's words (text="a red apple").

    Raises:
        UsageError: a picture of another shape; one too many, or too few, for the task; what the
            task and the editor refuse.
        NonFiniteError: the edit met a NaN or an infinity; names the step.

    Cost: with the defaults N (1 + 5) evaluations of each picture for the inversion; then, of one
    of N steps, the guided field once, and the reference once where the step is guided or uses the
    bank; a guided step also a pass with two backward passes. No graph is kept: the result is no
    differentiable function of the picture.
    """
    editor = editor or DiffEditor()
    pictures = _pictures(model, image, task, reference)
    with torch.inference_mode(False), torch.no_grad():
        pictures = [picture.clone() for picture in pictures]
        told = (cond, reference_cond)
        run = Run(model, pictures, task, editor, seed, told, inverted)
        reports: list[StepReport] = []
        for report in run.steps():
            reports.append(report)
            if observe is not None:
                observe(report)
        x, back = run.z.to(image.dtype), run.reconstruction().to(image.dtype)
    return DiffEdited(x, back, run.laid.regions, tuple(reports), run.nfe, run.vjps, run.receipt(x))


def invert(
    model: Field, image: Tensor, *, editor: DiffEditor | None = None, **cond: Any
) -> Trajectory:
    """Return the states of a picture at every level, for `diff_edit(..., inverted=(…,))`.

    Args:
        model, image, cond: as for `diff_edit`.
        editor: whose grid and inverter are taken.
    """
    editor = editor or DiffEditor()
    with torch.inference_mode(False), torch.no_grad():
        x = image.clone().to(torch.promote_types(image.dtype, torch.float32))
        field, told = as_told(model, cond)
        return trajectory(editor.inverter, Way(field, editor.falling(model)[::-1], told), x)


def _pictures(model: Field, image: Tensor, task: Task, reference: Tensor | None) -> list[Tensor]:
    """Return the pictures of a task.

    Raises:
        UsageError: they are not such as the task and the model need.
    """
    name = type(task).__name__
    if task.needs_reference and reference is None:
        raise UsageError(f"{name} takes from another picture: give reference=.")
    if not task.needs_reference and reference is not None:
        raise UsageError(f"{name} has one picture alone, and a reference was given: leave it out.")
    pictures = [image] if reference is None else [image, reference]
    for each in pictures:
        if each.ndim != 4 or len(each) != 1 or not each.is_floating_point():
            raise UsageError(
                "an edit takes one picture, (1, channels, height, width) of real numbers, not "
                f"{tuple(each.shape)} of {each.dtype}."
            )
        wanted = (1, *(image.shape[1:] if model.shape is None else model.shape))
        if tuple(each.shape) != wanted:
            raise UsageError(
                f"the model takes pictures of shape {wanted}, and one of {tuple(each.shape)} was "
                "given: scale it first."
            )
    return pictures
