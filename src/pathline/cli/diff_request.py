"""An edit by DiffEditor that was asked for: everything that decides its picture.

`pathline diff-edit` makes one from options, the studio from what was drawn, and `pathline replay`
from a receipt; all run it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.cli.given import Given
from pathline.cli.options import chosen_condition
from pathline.cli.reading import Source, as_data, check_size, read_picture
from pathline.core.errors import ReceiptError, UsageError
from pathline.core.receipt import Receipt
from pathline.edit.diff_editor import Bank, DiffEdited, DiffEditor, StepReport, diff_edit
from pathline.edit.diff_task import Task
from pathline.edit.diff_tasks import task_of
from pathline.fields import Denoiser

MASKS = ("mask", "reference_mask", "background")


@dataclass(frozen=True)
class DiffRequest:
    """What becomes of an object, and how.

    Args:
        task: move, resize, drag, appearance or paste.
        files: names of its pictures: image, reference; and masks: mask, reference_mask, background.
        numbers: of the task: dx, dy, scale, points, fill.
        prompt: what the picture shows.
        steps: N.
        guidance, strength, noise: None for the task's own.
        bank: whether keys and values of the picture are used.
        seed: of the noise.
        given: the pictures behind the names.
    """

    task: str
    files: Mapping[str, str]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    steps: int = 50
    guidance: float | None = None
    strength: float | None = None
    noise: float | None = None
    bank: bool = True
    seed: int = 0
    given: Given = field(default_factory=Given)

    def signed(self) -> DiffRequest:
        """Return it with the checksums of its files.

        Raises:
            UsageError: one cannot be read.
        """
        return replace(self, given=Given.of_files(self.files.values()))

    def made(self) -> Task:
        """Return the task.

        Raises:
            UsageError: an argument that it does not take, or lacks; a mask with greys.
        """
        masks = {role: _mask(self._source(role)) for role in MASKS if role in self.files}
        return task_of(self.task, **self.numbers, **masks)

    def run(
        self, model: Denoiser, observe: Callable[[StepReport], None] | None = None
    ) -> DiffEdited:
        """Edit the picture.

        Raises:
            UsageError: what was asked for cannot work.
        """
        image = _picture(model, self._source("image"))
        reference = None
        if "reference" in self.files:
            reference = _picture(model, self._source("reference"))
        editor = DiffEditor(
            steps=self.steps, guidance=self.guidance, strength=self.strength, eta_sde=self.noise,
            bank=Bank() if self.bank else None,
        )  # fmt: skip
        task = self.made()
        if self.task == "drag" and "mask" not in self.files:  # points are pixels of the picture
            task = replace(task, size=tuple(image.shape[2:]))  # type: ignore[call-arg]
        told: dict[str, Any] = {**chosen_condition(self.prompt, model)}
        return diff_edit(
            model, image, task, reference=reference, editor=editor, seed=self.seed,
            observe=observe, **told,
        )  # fmt: skip

    def _source(self, role: str) -> Source:
        return self.given.source(self.files[role])

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        told = {**asdict(self), **self.given.to_dict()}
        del told["given"]
        return told

    @classmethod
    def of(cls, receipt: Receipt, near: Path) -> DiffRequest:
        """Return the request of a receipt, its files found again.

        Args:
            receipt: of a picture that `pathline diff-edit` or the studio made.
            near: a folder in which files are looked for that are not where they were.

        Raises:
            ReceiptError: it does not hold the request; a file is missing, or another one now.
        """
        told = receipt.recipe.get("request")
        if not isinstance(told, Mapping):
            raise ReceiptError("the receipt of this edit does not tell what was asked for.")
        told = dict(told)
        given, places = Given.taken(told).located(near)
        try:
            told["files"] = {role: places[name] for role, name in told["files"].items()}
            return cls(**told, given=given)
        except (KeyError, TypeError, AttributeError) as error:
            raise ReceiptError(f"the receipt is damaged: {error}.") from error


def receipt_of(request: DiffRequest, made: DiffEdited, source: str) -> Receipt:
    """Return the receipt of an edit: what remakes it, and what came of it."""
    recipe = {**made.receipt.recipe, "request": request.to_dict()}
    recipe["model"] = {**recipe["model"], "source": source}
    return replace(made.receipt, recipe=recipe)


def _picture(model: Denoiser, source: Source) -> Tensor:
    if model.shape is None or len(model.shape) != 3:
        raise UsageError(f"{model.name} is not a model of pictures.")
    pixels = read_picture(source, model.shape[0])
    check_size(source, pixels, model.shape)
    return as_data(pixels)[None].to(model.device or "cpu")


def _mask(source: Source) -> Tensor:
    """Return what a picture marks: 1 where it is white; any size, for it is brought to a grid."""
    pixels = read_picture(source, 1)[0]
    if not bool(((pixels == 0) | (pixels == 255)).all()):
        raise UsageError(
            f"the mask {source} has greys: white is what is meant, black what is not; save it as "
            "PNG, without anti-aliasing."
        )
    return (pixels == 255).to(torch.float32)
