"""Guides: functions from field to field, and how they are put together.

A guide takes a field and returns another field, so it works under every solver. Guides compose with
`&`, and the one that is written first acts first:

    CFG(4.0) & Inpaint(mask, picture) & Classifier(network, 3)

Whatever their number, one evaluation of the guided field evaluates the model once (twice or more
where a guide such as CFG says so), and all gradients through the model are taken in one backward
pass. Three rules, and what breaks them is refused with the reason:

    1. a guide that chooses what is evaluated (CFG, APG, Autoguidance, Regions) stands first;
    2. guides with a gradient through the model (`vjps` above 0) stand next to each other;
    3. two exact projections must leave each other's data alone, or become one (`Stacked`).

What a guide costs is said by the field that it returns: `calls` of the network and `vjps`,
vector-Jacobian products through it, an evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathline.core.errors import UsageError
from pathline.core.registry import Registry
from pathline.fields import Field
from pathline.fields.around import Around
from pathline.solvers.adjoints.sources import random_module

guides: Registry[Guide] = Registry("guide")
"""Every guide, by name."""


class Guide(ABC):
    """A function from field to field, with a description for receipts."""

    @property
    def is_none(self) -> bool:
        """Whether it changes nothing: then a field is returned as it is, and nothing is spent."""
        return False

    @property
    def chooses_evaluations(self) -> bool:
        """Whether it decides which evaluations of the model are made; such a guide stands first."""
        return False

    @abstractmethod
    def __call__(self, field: Field) -> Field:
        """Return the guided field.

        Raises:
            UsageError: the field lacks what the guide needs.
        """

    def __and__(self, other: Guide) -> Chain:
        """Return both guides as one; this one acts first."""
        if not isinstance(other, Guide):
            raise UsageError(f"& puts guides together, and the right side is {other!r}.")
        return Chain((self, other))

    def describe(self) -> dict[str, Any]:
        """Return what rebuilds the guide, as plain values."""
        return guides.describe(self)


@guides.register("chain", aliases=("and",))
@dataclass(frozen=True)
class Chain(Guide):
    """Guides that act one after the other; what `&` makes.

    Args:
        guides: the first acts first. Chains among them are flattened, so `&` is associative;
            descriptions are rebuilt.

    Raises:
        UsageError: they do not go together; the message says why.

    Example:
        >>> from pathline.steer import CFG, Clip
        >>> both = CFG(3.0) & Clip(-1.0, 1.0)
        >>> [each["name"] for each in both.describe()["guides"]]
        ['cfg', 'clip']
    """

    guides: Sequence[Guide | Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        flat: list[Guide] = []
        for each in self.guides:
            guide = guides.rebuild(each) if isinstance(each, Mapping) else each
            flat.extend(guide.members if isinstance(guide, Chain) else (guide,))
        object.__setattr__(self, "guides", tuple(flat))
        self._check_first(flat)
        from pathline.steer.estimate import check_together  # which needs this module

        check_together(flat)

    @staticmethod
    def _check_first(members: Sequence[Guide]) -> None:
        for before, guide in zip(members, members[1:], strict=False):
            if guide.chooses_evaluations:
                raise UsageError(
                    f"{named(guide)} chooses which evaluations of the model are made, so it comes "
                    f"first, and alone of its kind; here {named(before)} comes before it."
                )

    @property
    def members(self) -> tuple[Guide, ...]:
        """The guides, in the order in which they act."""
        return tuple(self.guides)  # type: ignore[arg-type]

    @property
    def is_none(self) -> bool:
        return all(guide.is_none for guide in self.members)

    @property
    def chooses_evaluations(self) -> bool:
        return any(guide.chooses_evaluations for guide in self.members)

    def __call__(self, field: Field) -> Field:
        for guide in self.members:
            field = guide(field)
        return field

    def describe(self) -> dict[str, Any]:
        return {"name": "chain", "guides": [guide.describe() for guide in self.members]}


def check_steady(guide: Guide) -> None:
    """Refuse a guide whose own network would answer otherwise from call to call.

    Raises:
        UsageError: a dropout or batch norm in it is in training mode; the message names it.
    """
    name = random_module(guide)
    if name is not None:
        raise UsageError(
            f"{named(guide)} asks a network of which {name} is in training mode: its answers, and "
            "its gradients, would change from call to call. Call network.eval()."
        )


def named(guide: Guide) -> str:
    """Return what messages call a guide: the name of its class."""
    return type(guide).__name__


@dataclass(frozen=True)
class Guided(Around):
    """A field made from another one, whose path, view and conditions it keeps."""

    inner: Field
