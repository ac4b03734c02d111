"""Attention, seen from outside: what a network's attentions compute can be read and changed.

Every attention here and in diffusers ends in one call, softmax(q kᵀ/√d) v, of torch. While the
pass of a named layer is under way that call is handed to a function of the caller's, which sees q,
k, v and the mask and says what comes of them. The network, its class and its processors are left
alone, and nothing is left behind when the pass raises.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pathline.core.errors import UsageError

__all__ = ["Attending", "attending", "checked_attentions", "cross_attentions", "self_attentions"]

CROSS = ("cross", "attn2")


@dataclass(frozen=True)
class Attending:
    """One call of an attention.

    Args:
        name: of the layer.
        q: (batch, heads, tokens, width).
        k: (batch, heads, others, width).
        v: (batch, heads, others, width).
        mask: broadcasts to (batch, heads, tokens, others); bool (True may be seen) or added.
        more: what else torch is told (dropout, scale).
    """

    name: str
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    more: dict[str, Any]

    def __call__(self) -> Tensor:
        """Return softmax(q kᵀ/√d) v, (batch, heads, tokens, width)."""
        return F.scaled_dot_product_attention(self.q, self.k, self.v, self.mask, **self.more)

    def to(self, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Attending:
        """Return the same queries before other keys and values."""
        return replace(self, k=k, v=v, mask=mask)


Answer = Callable[[Attending], Tensor]


def self_attentions(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers in which a picture attends to itself.

    Example:
        >>> from pathline.nets import UNet
        >>> self_attentions(UNet(width=8, multipliers=(1, 2), blocks=1, attention=(1,)))
        ('down.1.stages.0.attention', 'up.0.stages.0.attention', 'middle.0.attention')
    """
    return tuple(name for name, is_cross in _attentions(network) if not is_cross)


def cross_attentions(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers in which a picture attends to a condition."""
    return tuple(name for name, is_cross in _attentions(network) if is_cross)


def _attentions(network: nn.Module) -> Iterator[tuple[str, bool]]:
    """Yield each innermost attention, and whether it attends to something else."""
    found = [(n, m) for n, m in network.named_modules() if "Attention" in type(m).__name__]
    for name, module in found:
        if any(inner.startswith(f"{name}.") for inner, _ in found):
            continue
        named = name.rpartition(".")[2] in CROSS
        yield name, named or getattr(module, "is_cross_attention", False) is True


def checked_attentions(
    network: nn.Module, names: Sequence[str] | None, known: Sequence[str]
) -> tuple[str, ...]:
    """Return these layers, or the known ones if None.

    Raises:
        UsageError: there is no such layer, or none is known.
    """
    modules = dict(network.named_modules())
    for name in names or ():
        if name not in modules:
            raise UsageError(
                f"there is no attention {name!r} in {type(network).__name__}; choose from "
                f"{', '.join(known) or 'none: it has no attention of this kind'}."
            )
    if not (known if names is None else names):
        raise UsageError(
            f"{type(network).__name__} has no attention of this kind that could be found: name "
            "the layers, or do without."
        )
    return tuple(known if names is None else names)


@contextmanager
def attending(network: nn.Module, layers: Sequence[str], answer: Answer) -> Generator[None]:
    """Let `answer` say what the attention of these layers comes to, inside the `with` block.

    Args:
        network: any module whose attentions call torch's `scaled_dot_product_attention`.
        layers: names of its modules.
        answer: Attending → (batch, heads, tokens, width); `lambda call: call()` changes nothing.

    Raises:
        UsageError: a layer ran, and never made that call.
    """
    mode = _Mode(answer)
    modules = dict(network.named_modules())
    hooks: list[Any] = []
    try:
        for name in layers:
            hooks.append(modules[name].register_forward_pre_hook(mode.entering(name)))
            hooks.append(modules[name].register_forward_hook(mode.leaving, always_call=True))
            hooks.append(modules[name].register_forward_hook(mode.checking(name)))
        with mode:
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _Mode(TorchFunctionMode):
    """Hands the attention of the innermost named layer under way to a function."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer, self._inside, self._seen = answer, list[str](), set[str]()

    def entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, given: Any) -> None:
            del module, given
            self._inside.append(name)

        return hook

    def leaving(self, module: nn.Module, given: Any, output: Any) -> None:
        del module, given, output
        self._inside.pop()

    def checking(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            del given, output
            if name not in self._seen:
                raise UsageError(
                    f"the attention {name!r} ({type(module).__name__}) does not call torch's "
                    "scaled_dot_product_attention: choose a processor that does (AttnProcessor2_0)."
                )

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention or not self._inside:
            return func(*args, **(kwargs or {}))
        name = self._inside[-1]
        self._seen.add(name)
        return self._answer(_read(name, *args, **(kwargs or {})))


def _read(  # noqa: PLR0913 - torch's own arguments, in torch's order
    name: str, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, **more: Any,
) -> Attending:  # fmt: skip
    told = {"dropout_p": dropout_p, "is_causal": is_causal, **more}
    return Attending(name, query, key, value, attn_mask, told)
