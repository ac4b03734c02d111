"""The shelf: the models of a studio. Visitors choose by name; only its owner names folders."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathline.core.errors import UsageError, unknown
from pathline.fields import Denoiser
from pathline.learn.checkpoint import load_model
from pathline.studio.jobs import tick


@dataclass
class Shelf:
    """Models by name, each loaded when it is first asked for.

    Args:
        sources: names of shipped models, and folders; a folder is shown by its last part.
        device: where they run.

    Raises:
        UsageError: two have one name.
    """

    sources: Sequence[str]
    device: str = "cpu"
    _loaded: dict[str, Denoiser] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.sources) or not self.sources:
            raise UsageError(f"a studio needs models of different names, not {self.names}.")

    @property
    def names(self) -> list[str]:
        """What visitors choose from."""
        return [Path(source).name for source in self.sources]

    def source(self, name: Any) -> str:
        """Return what receipts call a model.

        Raises:
            UsageError: it is not on the shelf.
        """
        if name not in self.names:
            raise unknown("model", str(name)[:80], self.names)
        return self.sources[self.names.index(name)]

    def model(self, name: Any) -> Denoiser:
        """Return a model that makes pictures.

        Raises:
            UsageError: it is not on the shelf, or makes no pictures.
            CheckpointError: its folder cannot be read.
        """
        source = self.source(name)
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = _watched(load_model(source).to(self.device))
            return self._loaded[name]

    def shape(self, name: Any) -> tuple[int, int, int]:
        """Return (channels, height, width) of a model's pictures."""
        shape = self.model(name).shape
        assert shape is not None  # or it would not be on the shelf
        return shape[0], shape[1], shape[2]

    def prompts(self, name: Any) -> list[str]:
        """Return classes to choose from, or prompts to begin with."""
        model = self.model(name)
        classes = model.details.get("classes")
        if isinstance(classes, list):
            return [str(each) for each in classes]
        return EXAMPLES if model.details.get("condition") == "text" else []


EXAMPLES = ["a red apple", "a green apple", "a cat face", "a blue heart", "a yellow star"]


def _watched(model: Denoiser) -> Denoiser:
    """Have every evaluation of the network tick the job that asks for it, and stop it there."""
    if model.shape is None or len(model.shape) != 3 or model.shape[0] not in (1, 3):
        raise UsageError(f"{model.name} makes no pictures, and the studio shows nothing else.")
    if isinstance(model.network, nn.Module):
        model.network.requires_grad_(False).eval()
        model.network.register_forward_pre_hook(lambda *_: tick())
    return model


def device_of(model: Denoiser) -> torch.device:
    """Return where a model runs."""
    return model.device or torch.device("cpu")
