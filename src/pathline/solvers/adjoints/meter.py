"""Meters of memory: what autograd keeps for a backward pass, and all that is alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pathline.solvers.adjoints.sources import parts


class Gauge:
    """Bytes that are alive, and the most that ever were."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def add(self, n: int) -> None:
        """Count n bytes more, or −n fewer."""
        self.now += n
        self.peak = max(self.peak, self.now)


class _Held:
    """A tensor that autograd has saved; counted until it is let go of."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def saved(*without: Any) -> Generator[Gauge]:
    """Measure the bytes that are saved for backward passes while the block runs.

    A storage that several nodes save counts once; leaves that ask for gradients, which are there
    anyway, do not count. What is saved on another thread (a backward pass on a GPU) is not seen.

    Args:
        without: fields and networks whose parameters do not count either.

    Example:
        >>> x = torch.ones(4, requires_grad=True)
        >>> with saved() as gauge:
        ...     y = x.exp().sin().sum()
        >>> gauge.now  # exp keeps its result, which sin keeps too
        16
    """
    gauge, uses = Gauge(), dict[int, int]()
    known = {_address(tensor) for root in without for tensor in _tensors(root)}

    def pack(tensor: Tensor) -> Any:
        at = _address(tensor)
        if (tensor.is_leaf and tensor.requires_grad) or at in known:
            return tensor
        size = tensor.untyped_storage().nbytes()
        if not uses.get(at):
            gauge.add(size)
        uses[at] = uses.get(at, 0) + 1
        held = _Held(tensor.detach())  # the tensor itself may hold the node that holds this
        weakref.finalize(held, _let_go, uses, at, gauge, size)
        return held

    def unpack(held: Any) -> Tensor:
        return held.tensor if isinstance(held, _Held) else held

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield gauge


def _let_go(uses: dict[int, int], at: int, gauge: Gauge, size: int) -> None:
    uses[at] -= 1
    if not uses[at]:
        gauge.add(-size)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(root: Any) -> Iterator[Tensor]:
    for part in parts(root):
        if isinstance(part, nn.Module):
            yield from part.parameters()
            yield from part.buffers()
        elif isinstance(part, Tensor):
            yield part


class _Allocations(TorchDispatchMode):
    """Follows every storage that an operation makes until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.gauge, self._live = Gauge(), dict[int, int]()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if _is_dense(leaf)}
        made = func(*args, **kwargs)
        for leaf in tree_leaves(made):
            if _is_dense(leaf):
                self._see(_key(leaf), leaf.untyped_storage(), given)
        return made

    def _see(self, key: int, storage: torch.UntypedStorage, given: set[int]) -> None:
        if key in self._live or key in given:
            return
        self._live[key] = size = storage.nbytes()
        self.gauge.add(size)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.gauge.add(-self._live.pop(key, 0))


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _is_dense(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the most bytes of tensors that a call has made and that were alive at one time.

    On a CPU, backward passes are seen too. What operations allocate inside themselves is not.

    Example:
        >>> peak_bytes(lambda: torch.ones(256) + torch.ones(256))  # two terms and their sum
        3072
    """
    with _Allocations() as seen:
        made = run()
        del made
    return seen.gauge.peak
