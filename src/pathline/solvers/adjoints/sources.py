"""What a field's answers depend on: every tensor that asks for a gradient, found by itself.

An adjoint that evaluates a field again has to know of whom gradients are wanted. Two searches
together miss nobody: one through the field's own parts (networks, conditions, guides, the closures
of functions), and one through the graph of an evaluation. A tensor that turns up later (a network
that is used at some times only, out of sight of the first search) is refused, not forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from pathline.core.errors import UsageError

_RANDOM = (
    nn.modules.dropout._DropoutNd,  # pyright: ignore[reportPrivateUsage]
    nn.modules.batchnorm._BatchNorm,  # pyright: ignore[reportPrivateUsage]
)


def parts(root: Any) -> Iterator[Any]:
    """Yield an object and all that it is made of: fields, items, closures; each once."""
    left, seen = [root], set[int]()
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, str | bytes | int | float | type | None):
            continue
        seen.add(id(thing))
        yield thing
        left.extend(_children(thing))


def _children(thing: Any) -> Iterator[Any]:
    if isinstance(thing, Tensor | nn.Module):
        return
    if is_dataclass(thing):
        yield from (getattr(thing, f.name) for f in fields(thing))
    elif isinstance(thing, Mapping):
        yield from cast("Mapping[Any, Any]", thing).values()
    elif isinstance(thing, Sequence | set | frozenset):
        yield from cast("Sequence[Any]", thing)
    elif isinstance(thing, partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif callable(thing):
        yield from _reached(thing)


def _reached(function: Callable[..., Any]) -> Iterator[Any]:
    """Yield what a function reaches: its object, its closure, the globals that it names."""
    yield getattr(function, "__self__", None)
    yield getattr(function, "__wrapped__", None)
    inner = getattr(function, "__func__", function)
    for cell in getattr(inner, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is not bound yet
            continue
    code = getattr(inner, "__code__", None)
    if code is None:
        yield getattr(function, "__dict__", None)
        return
    known = inner.__globals__
    named = (known.get(name) for name in code.co_names)
    yield from (value for value in named if isinstance(value, Tensor | nn.Module))


def asking(*roots: Any) -> list[Tensor]:
    """Return the tensors that ask for a gradient, each once, in the order in which they are met."""
    found: dict[int, Tensor] = {}
    for root in roots:
        for thing in parts(root):
            inside = thing.parameters() if isinstance(thing, nn.Module) else (thing,)
            for tensor in inside:
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    found.setdefault(id(tensor), tensor)
    return list(found.values())


class Sources(NamedTuple):
    """Who asks for a gradient of a field.

    Args:
        tensors: them; none of them depends on another.
        keeps_graph: whether some lie behind a graph that is not ours to free.
    """

    tensors: tuple[Tensor, ...]
    keeps_graph: bool


def sources(roots: Sequence[Any], outputs: Sequence[Tensor], given: Sequence[Tensor]) -> Sources:
    """Return who asks for a gradient: found in the roots, and behind an evaluation's outputs.

    A tensor that was made of others that ask (a field's table of its own weights) is left out for
    them: with both, what goes through it would be counted twice.

    Args:
        roots: the field, its condition.
        outputs: of an evaluation.
        given: the states at the start, whose gradients are taken by others.
    """
    known, is_cut = asking(*roots), False
    while True:
        behind = hidden(outputs, [*known, *given])
        others = [*known, *behind]
        apart = [each for each in known if not _depends(each, others)]
        if len(apart) == len(known):
            return Sources((*known, *behind), bool(behind) or is_cut)
        known, is_cut = apart, True


def _depends(made: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether a tensor was made of one of these."""
    if made.grad_fn is None:
        return False
    known = [each for each in others if each is not made]
    leaves = {id(each) for each in known}
    edges = {(each.grad_fn, each.output_nr) for each in known if each.grad_fn is not None}
    return any(
        edge in edges or id(getattr(edge[0], "variable", None)) in leaves
        for edge in _edges([(made.grad_fn, made.output_nr)])
    )


def _edges(
    left: list[tuple[Node | None, int]], stops: set[tuple[Node | None, int]] | None = None
) -> Iterator[tuple[Node, int]]:
    """Yield what a graph is made of, each node once, from its ends back; but nothing at a stop."""
    seen = set[Node]()
    while left:
        edge = left.pop()
        node = edge[0]
        if node is None or node in seen or (stops and edge in stops):
            continue
        seen.add(node)
        yield node, edge[1]
        left += node.next_functions  # type: ignore[arg-type]


def hidden(outputs: Sequence[Tensor], known: Sequence[Tensor]) -> list[Tensor]:
    """Return the leaves that outputs depend on and that are not among, or behind, the known ones.

    Cost: one look at every node of the graph, less than a microsecond each.
    """
    stops: set[tuple[Node | None, int]] = {
        (tensor.grad_fn, tensor.output_nr) for tensor in known if tensor.grad_fn is not None
    }
    ids = {id(tensor) for tensor in known}
    found = list[Tensor]()
    for node, _ in _edges([(out.grad_fn, out.output_nr) for out in outputs], stops):
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in ids:
            ids.add(id(leaf))
            found.append(leaf)
    return found


def random_module(root: Any) -> str | None:
    """Return the name of a module whose answers change from call to call; None if there is none."""
    for thing in parts(root):
        if isinstance(thing, nn.Module):
            for name, module in thing.named_modules():
                if module.training and isinstance(module, _RANDOM):
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore
                        return f"{name or type(thing).__name__} ({type(module).__name__})"
                    if module.p > 0:
                        return f"{name or type(thing).__name__} ({type(module).__name__})"
    return None


def check_steady(root: Any, who: str) -> None:
    """Refuse to evaluate again what would answer otherwise.

    Raises:
        UsageError: a dropout or batch norm is in training mode; the message names it.
    """
    name = random_module(root)
    if name is not None:
        raise UsageError(
            f"adjoint={who!r} evaluates the network again, and {name} is in training mode: it "
            "would not answer the same. Call network.eval(), or use adjoint='direct'."
        )


def check_all_known(outputs: Sequence[Tensor], known: Sequence[Tensor], where: str) -> None:
    """Refuse a tensor that asks for a gradient and was not found before.

    Raises:
        UsageError: there is one; the message has its shape.
    """
    missed = hidden(outputs, known)
    if missed:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in missed[:3])
        raise UsageError(
            f"{where} the field uses a tensor of shape {shapes} that asks for a gradient and is "
            "not used at the start, nor found in the field. Make it a part of the field or of the "
            "condition, or use adjoint='direct'."
        )


def gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    keeps_graph: bool = False,
) -> Sequence[Tensor | None]:
    """Return the gradient of each input; None of what the outputs know nothing of."""
    return torch.autograd.grad(
        outputs, inputs, cotangents, allow_unused=True, retain_graph=keeps_graph
    )


def transforms_are_active() -> bool:
    """Whether torch.func is at work, which differentiates by means of its own."""
    return torch._C._are_functorch_transforms_active()  # pyright: ignore
