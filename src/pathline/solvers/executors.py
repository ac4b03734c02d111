"""Executors: three ways to run the same loop.

    eager     one kernel a term and whatever the network launches
    compile   the network, and the sum of a row in a kernel or a few, under `torch.compile`
    graph     the whole loop as one CUDA graph, captured once and replayed

A plan's coefficients do not depend on the data, so nothing in the loop has to be decided or looked
at: it can be captured as it is. Compiled sums take their coefficients as tensors, so steps share
one kernel instead of recompiling it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError, unknown
from pathline.fields import Condition, Denoiser, Field, VectorField
from pathline.fields.around import Around
from pathline.fields.denoiser import denoiser_in, with_network
from pathline.solvers.evaluate import Call, Evaluator, Speed
from pathline.solvers.execute import Known, Sum, combined, complete, drawing
from pathline.solvers.plan import Functional

Loop = Callable[[], Tensor]

__all__ = ["Compiled", "Eager", "Executor", "Graph", "as_executor"]


class Executor:
    """Runs loops; what it keeps between them (compiled code, captures) goes when it goes."""

    name = "eager"
    is_watchable = True
    """Whether a loop can be looked at while it runs, and can decide on what it sees."""

    def prepared(self, field: Field) -> Field:
        """Return the field as it will be evaluated."""
        return field

    def fused(
        self, key: Hashable, of: object, make: Callable[[], Callable[..., Any]]
    ) -> Callable[..., Any] | None:
        """Return a function as this executor runs it; None where it has no way of its own.

        Args:
            key: what tells it from others of the same object.
            of: what it was made from; remembered as long as this lives in the executor.
            make: makes it.
        """
        del key, of, make
        return None

    def combined(self, terms: Sum, known: Known) -> Tensor:
        """Return a row's sum."""
        return combined(terms, known)

    def complete(self, call: Call, given: Sequence[Tensor], evaluator: Evaluator) -> Tensor:
        """Run a loop to its end with nobody watching, and return the final state."""
        return complete(call.plan, evaluator, given, call.seeds, self.combined)


Eager = Executor


class Compiled(Executor):
    """`torch.compile` for the network and for the sums of rows.

    Results are close to eager ones, not the same: a fused sum rounds less often, and so does a
    compiled network (relative 1e-6 in float32, 1e-14 in float64, each step). The first solve takes
    the time of compiling; later ones of the same shapes do not. A field without a network of its
    own (an exact oracle) is compiled as a function.

    Args:
        keep: how many networks it remembers.
        backend: of `torch.compile`; "eager" traces and generates no code.
    """

    name = "compile"

    def __init__(self, keep: int = 4, backend: str = "inductor") -> None:
        self._keep, self._backend = keep, backend
        self._networks: OrderedDict[int, _CompiledNetwork] = OrderedDict()
        self._sums: dict[int, Callable[..., Tensor]] = {}
        self._tensors: dict[tuple[float, torch.device, torch.dtype], Tensor] = {}
        self._fused: OrderedDict[Hashable, tuple[object, Callable[..., Any]]] = OrderedDict()

    def fused(
        self, key: Hashable, of: object, make: Callable[[], Callable[..., Any]]
    ) -> Callable[..., Any] | None:
        whole = (key, id(of))
        found = self._fused.pop(whole, None)
        found = found or (of, _compiled(make(), self._backend))
        self._fused[whole] = found  # which holds the object, so its id stays its own
        while len(self._fused) > self._keep:
            self._fused.popitem(last=False)
        return found[1]

    def prepared(self, field: Field) -> Field:
        denoiser = denoiser_in(field)
        if denoiser is None:
            return _CompiledField(field, _compiled(field.evaluate, self._backend))
        network = denoiser.network
        made = self._networks.pop(id(network), None)
        made = made or _CompiledNetwork(network, self._backend)
        self._networks[id(network)] = made  # which holds the network, so its id stays its own
        while len(self._networks) > self._keep:
            self._networks.popitem(last=False)
        return with_network(field, made)

    def combined(self, terms: Sum, known: Known) -> Tensor:
        letters = (terms.first, *terms.others)
        states = [known[letter][k] for letter, k, _ in letters]
        coefficients = [self._tensor(c, states[0]) for _, _, c in letters]
        total = self._summed(states[:_AT_ONCE], coefficients[:_AT_ONCE])
        one, more = self._tensor(1.0, states[0]), _AT_ONCE - 1
        for i in range(_AT_ONCE, len(states), more):
            then = slice(i, i + more)
            total = self._summed([total, *states[then]], [one, *coefficients[then]])
        return total

    def _summed(self, states: list[Tensor], coefficients: list[Tensor]) -> Tensor:
        n = len(states)
        if n not in self._sums:
            self._sums[n] = _compiled(_weighted, self._backend)
        return self._sums[n](states, coefficients)

    def _tensor(self, c: float | Tensor, like: Tensor) -> Tensor:
        """Return a coefficient as a tensor on the device, made once."""
        if isinstance(c, Tensor):
            return c
        dtype = torch.promote_types(like.dtype, torch.float32)
        key = (c, like.device, dtype)
        if key not in self._tensors:
            if len(self._tensors) > 4096:
                self._tensors.clear()
            with torch.inference_mode(False):
                self._tensors[key] = torch.tensor(c, dtype=dtype, device=like.device)
        return self._tensors[key]


_AT_ONCE = 4
"""States that one kernel sums: each number of them is a program, and a long row can have any."""


def _weighted(states: list[Tensor], coefficients: list[Tensor]) -> Tensor:
    """Return Σ c_i x_i, in the dtype of the states."""
    total = states[0] * coefficients[0]
    for x, c in zip(states[1:], coefficients[1:], strict=True):
        total = total + x * c
    return total


def _compiled(function: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    """Return the function under `torch.compile`, with an error that says what to do."""
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor.exc import InductorError

    made = torch.compile(_of_its_own(function), backend=backend)

    def call(*args: Any, **kwargs: Any) -> Tensor:
        try:
            return made(*args, **kwargs)
        except (BackendCompilerFailed, InductorError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise UsageError(
                f"torch.compile failed ({reason}): it needs a working C++ compiler on the CPU "
                "(apt install g++; CXX names another) and Triton on a GPU; or use "
                "executor='eager'."
            ) from error

    return call


_number = count()


def _of_its_own(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the function with a code object of its own.

    What torch compiles it keeps by code object, and it gives up after eight programs of one: two
    networks of a class, or sums of many lengths, would share the eight.
    """

    def call(*args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **kwargs)

    code = call.__code__.replace(co_name=f"call_{next(_number)}")
    return FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


class _CompiledNetwork(nn.Module):
    """A network whose calls are compiled; its parameters stay where they are.

    Attributes:
        uncompiled: the network as it was, for those who change what happens inside.
    """

    def __init__(self, network: Callable[..., Tensor] | nn.Module, backend: str) -> None:
        super().__init__()
        self.network = self.uncompiled = network
        self._call, self._backend = _compiled(network, backend), backend
        self._others: dict[Hashable, Callable[..., Tensor]] = {}

    def also(
        self, key: Hashable, make: Callable[[], Callable[..., Tensor]]
    ) -> Callable[..., Tensor]:
        """Return another function of the network's, compiled the same way; kept under a key."""
        if key not in self._others:
            self._others[key] = _compiled(make(), self._backend)
        return self._others[key]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._call(*args, **kwargs)


@dataclass(frozen=True)
class _CompiledField(Around):
    """A field whose evaluation is compiled."""

    inner: Field
    call: Callable[..., Tensor]

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.call(x, t, cond)


def inner_of(field: Field) -> VectorField | None:
    """Return the plain function that a field is, compiled or not; None if it is another."""
    inner = field.inner if isinstance(field, _CompiledField) else field
    return inner if type(inner) is VectorField else None


class Graph(Executor):
    """The whole loop as one CUDA graph: no launch costs, no Python between steps.

    The first solve of a model, plan and shape runs the loop three times more, to warm up and to
    capture; later ones copy state, condition and noise into its buffers and replay. Noise is drawn
    before the replay, from the same counters. Weights may change in place between replays.

    Args:
        keep: how many captures it remembers; each holds the memory of a whole loop.
    """

    name = "graph"
    is_watchable = False

    def __init__(self, keep: int = 4) -> None:
        self._keep = keep
        self._captures: OrderedDict[Any, _Capture] = OrderedDict()

    def complete(self, call: Call, given: Sequence[Tensor], evaluator: Evaluator) -> Tensor:
        _check_capturable(call, given)
        key = evaluator.policy, _key(call, given)
        capture = self._captures.pop(key, None) or _Capture(call, given, evaluator.policy)
        self._captures[key] = capture
        while len(self._captures) > self._keep:
            self._captures.popitem(last=False)
        evaluator.n = call.plan.nfe
        return capture.replay(call, given)


class _Capture:
    """A loop that was captured, with the buffers that it reads from.

    Args:
        call, given: of the first solve; `call` also keeps alive what the key names by identity.
        policy: what makes the evaluator; None for the plain one.
    """

    def __init__(self, call: Call, given: Sequence[Tensor], policy: Speed | None) -> None:
        self.call, self._policy = call, policy
        self._given = [x.detach().clone() for x in given]
        self._cond = {k: _buffer(v, given[0].device) for k, v in call.cond.items()}
        draws = {d for row in call.plan.rows for d in row.z}
        noise = {d: torch.empty_like(given[0]) for d in draws}
        self._noise: dict[int | Functional, Tensor] = {**noise}
        self._fill(call, given)
        self._run, self._out = _captured(self._loop, given[0].device)

    def replay(self, call: Call, given: Sequence[Tensor]) -> Tensor:
        """Run the loop on other states, conditions and noise of the same shapes."""
        self._fill(call, given)
        self._run()
        return self._out.clone()

    def _fill(self, call: Call, given: Sequence[Tensor]) -> None:
        for buffer, x in zip(self._given, given, strict=True):
            buffer.copy_(x)
        for name, buffer in self._cond.items():
            if isinstance(buffer, Tensor):
                buffer.copy_(call.cond[name])
        draw = drawing(call.plan, call.seeds, given[0])
        for d, buffer in self._noise.items():
            buffer.copy_(draw(d))

    def _loop(self) -> Tensor:
        """Run the loop on the buffers; binding belongs to it, for it reads the condition."""
        call = self.call._replace(x=self._given[0], cond=self._cond)
        if self._policy is None:
            evaluator = Evaluator(call.field, call.plan, call.x, call.cond)
        else:
            evaluator = self._policy.evaluator(call)
        return complete(call.plan, evaluator, self._given, draw=self._noise.__getitem__)


def _captured(
    loop: Callable[[], Tensor], device: torch.device
) -> tuple[Callable[[], None], Tensor]:
    """Return what replays a loop, and the tensor in which its result then lies."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # lazy initialisation must not be captured
            for _ in range(2):
                loop()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                out = loop()
        except RuntimeError as error:
            raise UsageError(
                "this loop cannot be captured as a CUDA graph: something in it waits for the "
                "device or copies from the CPU (is a null condition still there? Denoiser.to moves "
                f"it); use executor='eager'. ({str(error).splitlines()[0][:160]})"
            ) from error
    return graph.replay, out


def _check_capturable(call: Call, given: Sequence[Tensor]) -> None:
    device = given[0].device
    if device.type != "cuda":
        raise UsageError(
            f"executor='graph' captures CUDA kernels, and the state is on {device}; move state and "
            "network to a GPU, or use executor='compile'."
        )
    denoiser = denoiser_in(call.field)
    network = None if denoiser is None else denoiser.network
    trained = isinstance(network, nn.Module) and any(p.requires_grad for p in network.parameters())
    if torch.is_grad_enabled() and (trained or any(x.requires_grad for x in given)):
        raise UsageError(
            "a CUDA graph has no gradients: solve under torch.no_grad(), or use executor='eager'."
        )


def _buffer(value: Any, device: torch.device) -> Any:
    """Return a copy on the device of the loop, wherever the condition was made."""
    return value.detach().to(device, copy=True) if isinstance(value, Tensor) else value


def _key(call: Call, given: Sequence[Tensor]) -> Any:
    """Return what a capture belongs to: values by value, and what has none by identity."""
    cond = tuple((k, _kind(v)) for k, v in sorted(call.cond.items()))
    return id(call.plan), _identity(call.field), cond, tuple(_kind(x) for x in given)


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    return value if isinstance(value, str | int | float | bool | None) else id(value)


def _identity(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type | Denoiser):
        parts = ((f.name, _identity(getattr(value, f.name))) for f in fields(value))
        return type(value), tuple(parts)
    return value if isinstance(value, str | int | float | bool | None) else id(value)


_KINDS: Mapping[str, type[Executor]] = {kind.name: kind for kind in (Eager, Compiled, Graph)}


@cache
def _shared(name: str) -> Executor:
    """Return the executor of a name; all solves that name it share what it keeps."""
    return _KINDS[name]()


def as_executor(executor: Executor | str) -> Executor:
    """Return the executor of a name, or the executor itself.

    Raises:
        UsageError: there is no such executor.
    """
    if isinstance(executor, Executor):
        return executor
    if executor not in _KINDS:
        raise unknown("executor", executor, _KINDS)
    return _shared(executor)
