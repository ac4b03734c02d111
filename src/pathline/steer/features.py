"""Where features of a noisy state come from: layers of a network, or patches of the estimate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.fields import Field, Prediction
from pathline.fields.denoiser import denoiser_in
from pathline.nets.features import as_map, checked_layers, features

__all__ = ["FeatureSource", "Layers", "Patches"]

Look = Callable[[Tensor], Prediction]
"""One evaluation of a field at a time and under a condition that are settled."""


class FeatureSource(ABC):
    """What says features of a state; a frozen value."""

    def check(self, field: Field) -> None:
        """Refuse a field that has no such features.

        Raises:
            UsageError: what is missing, and how to mend it.
        """
        del field

    @abstractmethod
    def maps(
        self, field: Field, look: Look, x: Tensor, *, to_the_end: bool = False
    ) -> list[Tensor]:
        """Return maps of a state, (batch, features, height, width) each, a level each.

        Args:
            field: what is evaluated.
            look: evaluates it, at the state that it is given.
            x: (batch, *state); the maps are functions of it for autograd, where that is on.
            to_the_end: whether the evaluation is finished though the maps are known already, for
                others that watch it.
        """

    @staticmethod
    def on_grid(maps: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Return maps on one grid, resized bilinearly."""
        return [
            each
            if tuple(each.shape[2:]) == size
            else F.interpolate(each, size, mode="bilinear", align_corners=False)
            for each in maps
        ]


@dataclass(frozen=True)
class Layers(FeatureSource):
    """What layers of the network say.

    Args:
        names: as `network.named_modules()` has them; None for the end of the middle and the way up
            of a U-Net, or the blocks of a transformer (`nets.features.feature_layers`).
    """

    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.names is not None:
            object.__setattr__(self, "names", tuple(self.names))

    def check(self, field: Field) -> None:
        self.known(field)

    def known(self, field: Field) -> tuple[nn.Module, tuple[str, ...]]:
        """Return the network, and the names of its layers.

        Raises:
            UsageError: the field has no network, or that has no such layer.
        """
        denoiser = denoiser_in(field)
        network = None if denoiser is None else denoiser.network
        if not isinstance(network, nn.Module):
            raise UsageError(
                "layers are those of a network, and this field has none: give features=Patches(), "
                "or a FeatureSource of your own."
            )
        return network, checked_layers(network, self.names)

    def maps(
        self, field: Field, look: Look, x: Tensor, *, to_the_end: bool = False
    ) -> list[Tensor]:
        network, names = self.known(field)
        said = features(network, lambda: look(x), names, to_the_end=to_the_end)
        size = (x.shape[2], x.shape[3])
        return [as_map(name, each, size) for name, each in said.items()]


@dataclass(frozen=True)
class Patches(FeatureSource):
    """Patches of the clean estimate x̂_0, for any field on a path: exact ones too.

    Args:
        side: of a patch, odd.
        offset: what is added to every feature, so that flat background is a vector that points
            somewhere.
        outside: what lies beyond the border.
    """

    side: int = 3
    offset: float = 1.2
    outside: float = -1.0

    def maps(
        self, field: Field, look: Look, x: Tensor, *, to_the_end: bool = False
    ) -> list[Tensor]:
        del field, to_the_end
        estimate = look(x).x0
        padded = F.pad(estimate, (self.side // 2,) * 4, value=self.outside)
        patches = F.unfold(padded, self.side)
        return [patches.unflatten(2, tuple(estimate.shape[2:])) + self.offset]
