"""The denoiser: a network, the path it was trained on, and what it says there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.fields.field import Condition, Evaluate, Field, selected
from pathline.fields.views import View, as_view
from pathline.paths import GaussianPath, bshape

Label = Callable[[Tensor], Tensor] | float
Encode = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class Denoiser(Field):
    """A network on a path, seen in its native view and convertible to every other.

    The network is called as network(x, label, **condition) with label of shape (batch,), and
    returns (batch, *state). It runs in its own dtype (labels in float32 at least); the state keeps
    the caller's.

    Args:
        network: any callable or `nn.Module`.
        path: the path it was trained on.
        view: what it returns: eps, x0, v, score or velocity.
        label: how it is told the time: a function t → label, or a factor (999.0 tells 999 t). Whole
            labels, of an integer dtype, reach the network as they are: a model of a table that
            takes nothing else has `label=lambda t: path.label(t).round().long()`, and `grids.whole`
            brings any grid to its labels.
        scale: what x is multiplied with before the network, a function of t; None for nothing.
        null: the keyword arguments that mean "no condition"; None if it was trained without one.
        encode: user's condition → keyword arguments ((text=...) → (context=..., mask=...)).
        shape: the shape of one sample, if it is known.
        name: what receipts call it.
        details: what else is known of it; receipts keep the "weights" (their checksum).

    Example:
        >>> import torch
        >>> from pathline.paths import CondOT
        >>> model = Denoiser(lambda x, t: -x, CondOT(), view="velocity")
        >>> model(torch.ones(1, 2), 0.25).x0
        tensor([[1.2500, 1.2500]])
    """

    network: Callable[..., Tensor] | nn.Module
    path: GaussianPath  # pyright: ignore[reportIncompatibleVariableOverride]
    view: View = "eps"
    label: Label = 1.0
    scale: Callable[[Tensor], Tensor] | None = None
    null: Mapping[str, Any] | None = None
    encode: Encode | None = None
    shape: tuple[int, ...] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    name: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.network):
            raise UsageError(
                f"the network must be callable, and is a {type(self.network).__name__}."
            )
        if not isinstance(self.path, GaussianPath):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError("a denoiser needs a path, for example pathline.VPLinear().")
        label = self.label
        if not callable(label) and not isinstance(label, Real | Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"label={label!r} tells the network no time: give a factor, label=999.0, or a "
                "function t → label."
            )
        object.__setattr__(self, "view", as_view(self.view))

    @property
    def is_conditional(self) -> bool:
        """Whether it was trained with a condition and without: what guidance needs."""
        return self.null is not None

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What the model's configuration recommends: solver, grid, steps, guidance."""
        defaults = self.details.get("defaults", {})
        return defaults if isinstance(defaults, Mapping) else {}

    @property
    def vjps(self) -> int:
        """Backward sweeps inside the network: a potential's score is one."""
        return int(getattr(self.network, "vjps", 0))

    @property
    def device(self) -> torch.device | None:
        if not isinstance(self.network, nn.Module):
            return None
        return next((p.device for p in self.network.parameters()), None)

    def labels(self, t: Tensor) -> Tensor:
        """Return what the network is told for these times, in float64."""
        return self.label(t) if callable(self.label) else t * self.label

    def condition(self, cond: Condition, batch: int) -> Condition:
        if self.encode is not None and cond:
            cond = self.encode(**cond)
        return {name: _batched(name, value, batch) for name, value in cond.items()}

    def part(self, cond: Condition, rows: Tensor) -> Condition | None:
        return selected(cond, rows)

    def evaluate(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bind(t.reshape(1, *t.shape), x, cond)(0, x)

    def bind(self, times: Tensor, x: Tensor, cond: Condition) -> Evaluate:
        dtype = dtype_of(self.network, x.dtype)
        at_least = torch.promote_types(dtype, torch.float32)  # bfloat16 would tell 999 as 1000
        labels = self.labels(times).to(x.device)
        labels = labels.to(at_least) if labels.is_floating_point() else labels  # whole ones stay
        labels = labels.reshape(len(times), -1).expand(-1, len(x)).unbind()
        cond = {k: _cast(v, x.device, dtype) for k, v in cond.items()}
        network = self.network
        if self.scale is None and dtype == x.dtype:
            return lambda k, state: network(state, labels[k], **cond)
        scales = torch.ones_like(times) if self.scale is None else self.scale(times)
        factors = [bshape(s, x) for s in scales.unbind()]
        return lambda k, state: network((state * factors[k]).to(dtype), labels[k], **cond).to(
            x.dtype
        )

    def to(self, device: torch.device | str) -> Denoiser:
        """Move the network and the null condition to `device`, in place, and return self."""
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        if self.null is not None:
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.null.items()}
            object.__setattr__(self, "null", moved)
        return self


def denoiser_in(field: Any) -> Denoiser | None:
    """Return the denoiser inside a field, under however many guides; None if there is none."""
    while not isinstance(field, Denoiser):
        field = getattr(field, "inner", None)
        if field is None:
            return None
    return field


def source_of(field: Any) -> str | None:
    """Return which data a flow between two sets of data begins at; None if it begins at noise."""
    start = getattr(denoiser_in(field), "details", {}).get("start")
    return None if start is None else str(start.get("source"))


def null_of(field: Any) -> Mapping[str, Any] | None:
    """Return what tells a field "no condition"; None if it was trained with a condition only."""
    return getattr(field, "null", None)


def repeated(value: Any, batch: int) -> Any:
    """Repeat a null condition of one sample for the whole batch."""
    if isinstance(value, Tensor) and value.ndim and len(value) == 1:
        return value.expand(batch, *value.shape[1:])
    return value


def with_network(field: Any, network: nn.Module) -> Field:
    """Return the field with another network in its denoiser."""
    return _with_denoiser(field, lambda inner: replace(inner, network=network))


def with_details(field: Any, **details: Any) -> Field:
    """Return the field with more details in its denoiser."""
    return _with_denoiser(field, lambda inner: replace(inner, details={**inner.details, **details}))


def _with_denoiser(field: Any, make: Callable[[Denoiser], Denoiser]) -> Field:
    if isinstance(field, Denoiser):
        return make(field)
    return replace(field, inner=_with_denoiser(field.inner, make))


def as_told(field: Field, cond: Condition) -> tuple[Field, Condition]:
    """Return the field without the encoder of its denoiser, and the condition as it encodes it.

    What is told already (the names of the encoder's results, tensors) stays as it is.
    """
    denoiser = denoiser_in(field)
    if denoiser is None or denoiser.encode is None or not cond:
        return field, cond
    if denoiser.null is not None and cond.keys() == denoiser.null.keys():
        numbers = all(isinstance(value, Tensor) for value in cond.values())
        return _without_encoder(field), cond if numbers else denoiser.encode(**cond)
    return _without_encoder(field), denoiser.encode(**cond)


def _without_encoder(field: Any) -> Field:
    if isinstance(field, Denoiser):
        return replace(field, encode=None)
    return replace(field, inner=_without_encoder(field.inner))


def dtype_of(network: Callable[..., Tensor], default: torch.dtype) -> torch.dtype:
    """The floating dtype of the network's first parameter; the state's if it has none."""
    if isinstance(network, nn.Module):
        for parameter in network.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return default


def _cast(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def _batched(name: str, value: Any, batch: int) -> Any:
    """Repeat a condition of one sample for the whole batch; refuse any other size."""
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) == batch:
        return value
    if len(value) == 1:
        return value.expand(batch, *value.shape[1:])
    raise UsageError(f"condition {name!r} is for {len(value)} samples, and the batch has {batch}.")
