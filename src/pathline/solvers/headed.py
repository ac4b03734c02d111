"""A network with the heads and scales of a schedule (`solvers.heads`) put on it.

The network itself stays as it is. A head is a hook on the last layer that one thread sees, for the
length of a call. Scales that are being fitted are such hooks too; others are folded into the
weights of a twin, since scaling what a layer makes is a pass over all positions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from threading import get_ident
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.fields import Field
from pathline.fields.denoiser import with_network
from pathline.solvers.heads import CONVOLUTIONS, Heads, network_of, uncompiled


class Headed(nn.Module):
    """A network with heads and scales, which are in use where it is told so.

    A compiled network knows nothing of what is added to it later, so evaluations that add something
    are those of the network before it was compiled.

    Args:
        network: the network; it stays as it is.
        heads: what is added.

    Attributes:
        now: the number of the evaluation that is being made.

    Raises:
        UsageError: the network has no such layer.
    """

    def __init__(self, network: nn.Module, heads: Heads) -> None:
        super().__init__()
        self.network, self.heads, self.now = network, heads, 0
        plain = uncompiled(network)
        layers = dict(plain.named_modules())
        for name in ([heads.layer] if len(heads.each) else []) + list(heads.scaled):
            if name not in layers:
                raise UsageError(f"the heads are of a layer {name!r}, which the network lacks.")
        twin = _twin(plain, {}) if heads.scaled else plain
        self._of = plain, layers, twin, dict(twin.named_modules())  # a tuple: these are no parts

    def forward(self, *given: Any, **told: Any) -> Tensor:
        if self.now >= len(self.heads):
            return self.network(*given, **told)
        asked, layers, twin, folded = self._of
        scales = self.heads.scales_of(self.now)
        with ExitStack() as hooks:
            if any(s.requires_grad for s, _ in scales.values()):  # that of a weight costs more
                for name, (s, d) in scales.items():
                    also = _Scaled(1 + s, d, _axis(layers[name]))
                    hooks.enter_context(_hooked(layers[name], also))
            elif scales:
                asked, layers = twin, folded
                for name, (s, d) in scales.items():
                    _fold(self._of[1][name], 1 + s, d, folded[name])
            if self.now < len(self.heads.each):
                also = partial(self._added, _axis(layers[self.heads.layer]))
                hooks.enter_context(_hooked(layers[self.heads.layer], also))
            return asked(*given, **told)

    def _added(self, axis: int, h: Tensor, made: Tensor) -> Tensor:
        return made + self.heads(h, self.now, axis)


class _Scaled(NamedTuple):
    """Scale and shift what a layer makes, whose outputs lie along an axis."""

    scale: Tensor
    shift: Tensor
    axis: int

    def __call__(self, _: Tensor, made: Tensor) -> Tensor:
        behind = made.dim() - 2 if self.axis == 1 else 0
        scale, shift = (
            each.to(made.dtype).reshape(-1, *[1] * behind) for each in (self.scale, self.shift)
        )
        return torch.addcmul(shift, made, scale)


def _twin(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    """Return a module that shares everything with another one, and whose numbers can be others."""
    if id(module) not in known:
        made = known[id(module)] = copy(module)
        own, of = vars(made), vars(module)
        own["_modules"] = {k: m and _twin(m, known) for k, m in of["_modules"].items()}
        own["_parameters"] = dict(of["_parameters"])
        own["_forward_hooks"] = OrderedDict(of["_forward_hooks"])
    return known[id(module)]


def _fold(layer: nn.Module, scale: Tensor, shift: Tensor, into: nn.Module) -> None:
    """Write a layer's weights, scaled and shifted, into its twin.

    That is a pass over the weights, where scaling what a layer makes is one over all positions.
    """
    weight, bias = cast("Tensor", layer.weight), cast("Tensor | None", layer.bias)
    scale, shift = scale.to(weight.dtype), shift.to(weight.dtype)
    numbers = vars(into)["_parameters"]
    numbers["weight"] = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    numbers["bias"] = shift if bias is None else torch.addcmul(shift, bias, scale)


@contextmanager
def _hooked(layer: nn.Module, also: Callable[[Tensor, Tensor], Tensor]) -> Generator[None]:
    """Pass what a layer is given and makes through a function, in this thread alone."""
    mine = get_ident()

    def hook(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        return also(given[0], made) if get_ident() == mine else made

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _axis(layer: nn.Module) -> int:
    return 1 if isinstance(layer, CONVOLUTIONS) else -1


def with_heads(field: Field, heads: Heads) -> tuple[Field, Headed]:
    """Return the field with heads on its network, and the network, to be told the evaluation.

    Raises:
        UsageError: there is no network that is a module.
    """
    headed = Headed(network_of(field), heads)
    return with_network(field, headed), headed
