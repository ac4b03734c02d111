"""A network with the heads and scales of a schedule (`solvers.heads`) put on it.

The network itself stays as it is. A head is a hook on the last layer that one thread sees, for the
length of a call. Scales that are being fitted are such hooks too; others are folded into the
weights of a twin, since scaling what a layer makes is a pass over all positions. Compiled code does
not see hooks that come later, so there what an evaluation changes are arguments of one program.
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
from torch.func import functional_call

from pathline.core.errors import UsageError
from pathline.fields import Field
from pathline.fields.denoiser import with_network
from pathline.solvers.heads import CONVOLUTIONS, Heads, added, network_of, uncompiled


class Headed(nn.Module):
    """A network with heads and scales, which are in use where it is told so.

    `executor="compile"` compiles evaluations that add something as a program of their own. Of a
    network that was compiled by somebody else they are those of the network before that.

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
        self._compiled: Callable[..., Callable[..., Tensor]] | None = getattr(network, "also", None)

    def forward(self, *given: Any, **told: Any) -> Tensor:
        if self.now >= len(self.heads):
            return self.network(*given, **told)
        asked, layers, twin, folded = self._of
        scales = self.heads.scales_of(self.now)
        is_fitted = any(s.requires_grad for s, _ in scales.values())
        if self._compiled is not None and not is_fitted:
            return self._program()(self._numbers(), given, told)
        with ExitStack() as hooks:
            if is_fitted:  # the gradient of a weight costs more
                for name, (s, d) in scales.items():
                    also = _Scaled(1 + s, d, _axis(layers[name]))
                    hooks.enter_context(_hooked(layers[name], also))
            elif scales:
                asked, layers = twin, folded
                for name, (s, d) in scales.items():
                    vars(folded[name])["_parameters"].update(_folded(self._of[1][name], 1 + s, d))
            if self._has_head:
                also = partial(self._added, _axis(layers[self.heads.layer]))
                hooks.enter_context(_hooked(layers[self.heads.layer], also))
            return asked(*given, **told)

    def _added(self, axis: int, h: Tensor, made: Tensor) -> Tensor:
        return made + self.heads(h, self.now, axis)

    @property
    def _has_head(self) -> bool:
        return self.now < len(self.heads.each)

    def _program(self) -> Callable[..., Tensor]:
        """Return the compiled network whose numbers are arguments, one for all that are alike."""
        heads, plain = self.heads, self._of[0]
        head = heads.each[self.now] if self._has_head else None
        sizes = None if head is None else (heads.layer, *(p.shape for p in head.parameters()))
        assert self._compiled is not None
        return self._compiled(
            (sizes, *heads.scaled), lambda: partial(functional_call, _open(plain, heads, head))
        )

    def _numbers(self) -> dict[str, Tensor]:
        """Return the numbers that this evaluation has of its own."""
        heads, made = self.heads, dict[str, Tensor]()
        for name, (s, d) in heads.scales_of(self.now).items():
            inside = f"{name}.layer" if self._has_head and name == heads.layer else name
            folded = _folded(self._of[1][name], 1 + s, d)
            made |= {f"{inside}.{kind}": number for kind, number in folded.items()}
        if self._has_head:
            own = heads.each[self.now].named_parameters()
            made |= {f"{heads.layer}.head.{name}": number for name, number in own}
        return made


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


def _folded(layer: nn.Module, scale: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """Return a layer's weight and bias, scaled and shifted.

    That is a pass over the weights, where scaling what a layer makes is one over all positions.
    """
    weight, bias = cast("Tensor", layer.weight), cast("Tensor | None", layer.bias)
    scale, shift = scale.to(weight.dtype), shift.to(weight.dtype)
    return {
        "weight": weight * scale.reshape(-1, *[1] * (weight.dim() - 1)),
        "bias": shift if bias is None else torch.addcmul(shift, bias, scale),
    }


class _Ending(nn.Module):
    """A last layer and its head."""

    def __init__(self, layer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.layer, self.head, self.axis = layer, head, _axis(layer)

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h) + added(self.head, h, self.axis)


def _open(plain: nn.Module, heads: Heads, head: nn.Module | None) -> nn.Module:
    """Return a twin of a network that has a place for each number of an evaluation's own."""
    twin = _twin(plain, {})
    layers = dict(twin.named_modules())
    for name, outputs in heads.scaled.items():
        weight, bias = layers[name].weight, cast("Tensor | None", layers[name].bias)
        if bias is None:
            none = cast("Tensor", weight).new_zeros(outputs)
            layers[name].bias = nn.Parameter(none, requires_grad=False)
    if head is not None:
        last = layers[heads.layer]
        ending = _Ending(last, head)
        for module in list(twin.modules()):
            for name, inside in vars(module)["_modules"].items():
                if inside is last:
                    vars(module)["_modules"][name] = ending
    return twin


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
