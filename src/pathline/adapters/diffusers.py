"""Models of the diffusers library become denoisers, and their schedulers paths and grids.

A scheduler of diffusers says three things at once: how its model was trained, which times to visit,
and which formula to step with. `denoiser` takes the first, `grid` the second, and the third is any
solver of ours. What a scheduler's config says of the training, in our words:

    beta_schedule, trained_betas   a table ᾱ_n: the `Tabulated` path, label n at t = (n + 1)/N
    FlowMatch…, flow_prediction    x_t = (1 − t) x_0 + t ε: `CondOT`, velocity ε − x_0, label N t
    EDM…, sigma_data               x_t = x_0 + σ ε: `EDM`, x̂_0 of the preconditioned network

The library is not imported: a network is known by its `forward` and `config` alone. The other way
round, `Scheduler` puts a solver of ours into a pipeline of theirs; that one is made of its own
classes, and imports it when it is first asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pathline.adapters.schedulers import grid, read, training
from pathline.core.errors import UsageError, unknown
from pathline.fields import Denoiser
from pathline.fields.denoiser import Encode, Label

if TYPE_CHECKING:
    from pathline.adapters.diffusers_scheduler import Scheduler

__all__ = ["Scheduler", "denoiser", "grid"]


def __getattr__(name: str) -> Any:
    if name == "Scheduler":
        from pathline.adapters.diffusers_scheduler import Scheduler

        return Scheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


ADDED = ("text_embeds", "time_ids", "image_embeds", "hint", "resolution", "aspect_ratio")
"""Conditions that diffusers wants inside `added_cond_kwargs`."""

NOT_CONDITIONS = ("self", "timestep", "return_dict", "added_cond_kwargs", "img_ids", "txt_ids")
"""Arguments of a `forward` that are filled in here."""

OPTIONAL = {
    "class_labels": ("class_embed_type", "num_class_embeds", "num_embeds_ada_norm"),
    "guidance": ("guidance_embeds",),
}
"""Conditions that a network takes, and then needs, if its config has one of these keys."""


def denoiser(  # noqa: PLR0913 - keyword-only: each says one thing of the model
    network: nn.Module,
    scheduler: Any,
    *,
    null: Mapping[str, Any] | None = None,
    encode: Encode | None = None,
    shape: tuple[int, ...] | None = None,
    label: Label | None = None,
    name: str | None = None,
) -> Denoiser:
    """Return a diffusers network, with the scheduler it came with, as a `Denoiser`.

    Conditions go by the names that the network's `forward` has for them (encoder_hidden_states,
    class_labels, pooled_projections, guidance, …), and those inside `added_cond_kwargs` by their
    own. A number, or a list of them, does for a tensor, and one sample's condition for a batch.

    Args:
        network: a UNet2DModel, UNet2DConditionModel, a DiT, SD3 or Flux transformer, or the like.
        scheduler: any scheduler that goes with it, or the config of one.
        null: the conditions that mean "none", for guidance; those of a DiT are known.
        encode: your words → the network's conditions ((text=...) → (encoder_hidden_states=...)).
        shape: of one sample; what the network's config says if None.
        label: how the network is told the time, if not as its scheduler says.
        name: what receipts call the model; the network's class if None.

    Raises:
        UsageError: the network or the scheduler is of a kind that cannot be read.

    Example: `denoiser(pipe.unet, pipe.scheduler, null={"encoder_hidden_states": empty})`
    """
    told = read(scheduler)
    trained = training(told)
    conditions = Conditions.of(network)
    wrapped: nn.Module = Network(network, conditions)
    if trained.precondition is not None:
        wrapped = Preconditioned(wrapped, *trained.precondition)
    if label is None:
        label = _label(network, trained.label)
    if null is None:
        null = _null(network)
    kind = type(_original(network)).__name__
    return Denoiser(
        wrapped,
        trained.path,
        view=trained.view,
        label=label,
        null=None if null is None else conditions.read(**null),
        encode=conditions.read if encode is None else _then(encode, conditions.read),
        shape=_shape(network) if shape is None else tuple(shape),
        name=kind if name is None else name,
        details={"network": kind, "scheduler": told.kind},
    )


class Network(nn.Module):
    """A network of diffusers, called as network(x, label, **condition) → (batch, *state).

    Of an output with twice the channels of the state, the second half is a learned variance, which
    no solver here uses: it is left out.
    """

    def __init__(self, inner: nn.Module, conditions: Conditions) -> None:
        super().__init__()
        self.inner, self.conditions = inner, conditions
        self.call = _packed_call if _is_packed(inner) else _plain_call

    def forward(self, x: Tensor, label: Tensor, **cond: Any) -> Tensor:
        """Return the network's output at x."""
        self.conditions.check(cond)
        added = {name: cond.pop(name) for name in ADDED if name in cond}
        if added:
            cond["added_cond_kwargs"] = added
        out = self.call(self.inner, x, label, cond)
        return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out


class Preconditioned(nn.Module):
    """EDM's network as a function of σ that returns x̂_0, with c = (σ² + σ_d²)^−½.

        x̂_0 = (σ_d c)² x ± σ σ_d c F(c x, ¼ log σ)

    Paper: arXiv:2206.00364, Eq. 7 and Tab. 1.
    """

    def __init__(self, inner: nn.Module, sigma_data: float, sign: float) -> None:
        super().__init__()
        self.inner, self.sigma_data, self.sign = inner, sigma_data, sign

    def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return x̂_0 at noise level sigma, (batch,)."""
        d, s = self.sigma_data, sigma.reshape(-1, *[1] * (x.ndim - 1))
        c = (s**2 + d**2).rsqrt()
        f = self.inner((c * x).to(x.dtype), sigma.log() / 4, **cond)
        return ((d * c) ** 2 * x + self.sign * d * s * c * f).to(x.dtype)


def _plain_call(network: nn.Module, x: Tensor, label: Tensor, cond: dict[str, Any]) -> Tensor:
    return _unwrapped(network(x, timestep=label, **cond))


def _packed_call(network: nn.Module, x: Tensor, label: Tensor, cond: dict[str, Any]) -> Tensor:
    """Call a Flux-type transformer, whose tokens are 2 × 2 patches with their rows and columns."""
    batch, channels, height, width = x.shape
    if height % 2 or width % 2:
        raise UsageError(f"this network packs 2 × 2 patches; {height} × {width} is not even.")
    rows, columns = height // 2, width // 2
    tokens = x.reshape(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    tokens = tokens.reshape(batch, rows * columns, channels * 4)
    axes = torch.arange(1), torch.arange(rows), torch.arange(columns)
    places = torch.cartesian_prod(*axes).to(x.device, torch.float32)  # bfloat16 has no row 257
    text = places.new_zeros(cond["encoder_hidden_states"].shape[1], 3)
    out = _unwrapped(network(tokens, timestep=label, img_ids=places, txt_ids=text, **cond))
    out = out.reshape(batch, rows, columns, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return out.reshape(batch, -1, height, width)


def _unwrapped(out: Any) -> Tensor:
    """Return the tensor of an output with `.sample`, a tuple, or a tensor."""
    out = getattr(out, "sample", out)
    return out[0] if isinstance(out, tuple) else out


@dataclass(frozen=True)
class Conditions:
    """The conditions that a network takes, and those that it cannot do without.

    Args:
        known: their names; None if the network takes any.
        needed: those that must be there.
    """

    known: frozenset[str] | None
    needed: frozenset[str]

    @classmethod
    def of(cls, network: nn.Module) -> Conditions:
        """Read them off the network's `forward` and config."""
        parameters = _parameters(network)
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return cls(None, frozenset())
        if "timestep" not in parameters:
            raise UsageError(
                f"{type(network).__name__}.forward takes no `timestep`: this is no network of "
                "diffusers; use pathline.Denoiser(network, path, view=...)."
            )
        state = next(name for name in parameters if name != "self")
        own = parameters.keys() - {state, *NOT_CONDITIONS}
        config = _configuration(network)
        for name, keys in OPTIONAL.items():
            if not any(config.get(key) for key in keys):
                own -= {name}
        added = set(ADDED) if _takes_added(parameters, config) else set[str]()
        needed = {name for name in own if parameters[name].default is inspect.Parameter.empty}
        needed |= own & OPTIONAL.keys()
        if "pooled_projections" in own:
            needed |= {"pooled_projections", "encoder_hidden_states"}
        if config.get("addition_embed_type") == "text_time":
            needed |= {"text_embeds", "time_ids"}
        return cls(frozenset(own | added), frozenset(needed))

    def read(self, **cond: Any) -> dict[str, Any]:
        """Return conditions in the network's words, as tensors, or refuse a name."""
        cond |= cond.pop("added_cond_kwargs", {})
        for name in cond:
            if self.known is not None and name not in self.known:
                raise unknown("condition", name, self.known)
        return {name: _tensor(value) for name, value in cond.items()}

    def check(self, cond: Mapping[str, Any]) -> None:
        """Refuse a call that lacks a condition."""
        missing = self.needed - cond.keys()
        if missing:
            raise UsageError(
                f"this network cannot do without {', '.join(sorted(missing))}: give it as a "
                "condition, and in `null` too if you guide."
            )


def _tensor(value: Any) -> Any:
    """Turn a number or a list of them into a tensor with a batch axis."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return torch.tensor([value])
    return torch.tensor(value) if isinstance(value, list) else value


def _then(first: Encode, second: Encode) -> Encode:
    return lambda **cond: second(**first(**cond))


def _original(network: nn.Module) -> nn.Module:
    """Return the network inside a `torch.compile`d one."""
    return getattr(network, "_orig_mod", network)


def _configuration(network: nn.Module) -> Mapping[str, Any]:
    config = getattr(_original(network), "config", None)
    return config if isinstance(config, Mapping) else {}


def _parameters(network: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The arguments of `forward`, of the class: hooks may have replaced the instance's."""
    return inspect.signature(type(_original(network)).forward).parameters


def _takes_added(parameters: Mapping[str, inspect.Parameter], config: Mapping[str, Any]) -> bool:
    """Whether `added_cond_kwargs` are used; a UNet without an embedding for them ignores them."""
    keys = "addition_embed_type", "encoder_hid_dim_type"
    unused = all(config.get(key, ...) is None for key in keys)
    return "added_cond_kwargs" in parameters and not unused


def _is_packed(network: nn.Module) -> bool:
    return {"img_ids", "txt_ids"} <= _parameters(network).keys()


def _label(network: nn.Module, label: Label) -> Label:
    """Flux-type transformers multiply their time with 1000 themselves."""
    return label / 1000 if _is_packed(network) and not callable(label) else label


def _null(network: nn.Module) -> Mapping[str, Any] | None:
    """A DiT has one class more than it was told of: none."""
    if type(_original(network)).__name__ != "DiTTransformer2DModel":
        return None
    return {"class_labels": _configuration(network).get("num_embeds_ada_norm")}


def _shape(network: nn.Module) -> tuple[int, ...] | None:
    config = _configuration(network)
    channels, size = config.get("in_channels"), config.get("sample_size")
    if channels is None or size is None:
        return None
    return channels, *((size, size) if isinstance(size, int) else size)
