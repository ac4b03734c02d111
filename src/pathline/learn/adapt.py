"""Adapting a network to a control: a class embedding, and low-rank changes of its attention.

    time features  ←  time features + E[y],        W  ←  W + on(y) · B A

E, of K + 1 rows, and B are zero at first, so an adapted model is the pretrained one until it is
taught. Class K means "no control": its row stays zero, and on(K) = 0, sample by sample: such a
sample is the pretrained model's to the last bit. So the pretrained model needs no copy.

Weights are shared with the network that was given, which is left as it was.

Papers: Zhao et al. 2024 (arXiv:2406.12120), Sec. 6; Hu et al. 2021 (arXiv:2106.09685).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import CheckpointError, UsageError
from pathline.fields import Denoiser
from pathline.learn.checkpoint import read_folder, write_folder
from pathline.learn.lora import with_low_ranks

__all__ = ["Adapted", "Surgery", "adapt", "load_control", "save_control"]

FORMAT = "pathline-control-1"
TIME_NAMES = ("time", "time_embedding", "time_embed", "t_embedder", "time_mlp")


@dataclass(frozen=True)
class Surgery:
    """What is put into a network.

    Args:
        classes: K; the embedding has one row more.
        name: by which a user asks for a class.
        rank: of the changes of the projections.
        targets: names of the layers that are changed; None finds the projections of every module
            whose class is called attention.
        time: name of the module that makes the time's features; None looks for the usual names.
    """

    classes: int
    name: str = "label"
    rank: int = 4
    targets: tuple[str, ...] | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        if self.classes < 1 or self.rank < 1:
            raise UsageError(
                f"a control needs at least 1 class and rank 1; got {self.classes}, {self.rank}."
            )
        if self.targets is not None:
            object.__setattr__(self, "targets", tuple(self.targets))


class Adapted(nn.Module):
    """A network with a class embedding and low-rank changes; called as the network, and with y.

    Args:
        network: as given; its weights are shared, and frozen here.
        surgery: what is put in.

    Raises:
        UsageError: no attention, or no time features, under names that are known.
        MissingExtra: peft is not installed.
    """

    def __init__(self, network: nn.Module, surgery: Surgery) -> None:
        super().__init__()
        inner = _sharing(network)
        layers = surgery.targets or tuple(attention_layers(inner))
        if not layers:
            raise UsageError(
                "no attention was found in the network: name the layers that are to be changed, "
                "Surgery(targets=(...))."
            )
        time = _time_module(inner, surgery.time)
        width = [m for m in time.modules() if isinstance(m, nn.Linear)][-1].out_features
        self.surgery = surgery
        device = next(inner.parameters()).device
        k = surgery.classes
        self.classes = nn.Embedding(k + 1, width, padding_idx=k, device=device)
        nn.init.zeros_(self.classes.weight)
        self.network = with_low_ranks(inner, layers, surgery.rank, surgery.rank)
        self._now: tuple[Tensor, Tensor] | None = None
        time.register_forward_hook(self._tell)
        for name, module in self.network.named_modules():
            if name.endswith("lora_B.default"):
                module.register_forward_hook(self._switch)

    def forward(self, x: Tensor, t: Tensor, *more: Any, **told: Any) -> Tensor:
        """Return the network's output; y, under the surgery's name, is (batch,) or () int64.

        Without y, and where it is K, the network is the pretrained one.
        """
        y = told.pop(self.surgery.name + "_y", None)
        k = self.surgery.classes
        y = x.new_full((len(x),), k, dtype=torch.long) if y is None else y.expand(len(x))
        self._now = self.classes(y), y != k
        try:
            return self.network(x, t, *more, **told)
        finally:
            self._now = None

    def taught(self) -> dict[str, Tensor]:
        """Return the weights that are not the pretrained network's."""
        return {n: p.detach() for n, p in self.named_parameters() if p.requires_grad}

    def _tell(self, module: nn.Module, given: Any, features: Tensor) -> Tensor | None:
        """Add the class to the features of time."""
        return None if self._now is None else features + self._now[0].to(features)

    def _switch(self, module: nn.Module, given: Any, change: Tensor) -> Tensor | None:
        """Leave the pretrained weights alone where no class is asked for."""
        if self._now is None:
            return None
        on = self._now[1]
        if len(change) != len(on):
            raise UsageError(
                f"a changed layer answers {len(change)} rows for {len(on)} samples; leave it out "
                "of Surgery(targets=(...)): a layer must keep the batch first."
            )
        return change * on.view(-1, *[1] * (change.ndim - 1)).to(change)


def adapt(model: Denoiser, surgery: Surgery) -> Denoiser:
    """Return a model that can also be asked for a class; untaught, it is the pretrained one.

    Args:
        model: with an `nn.Module` that attends and is told the time.
        surgery: what is put in; `surgery.name` is the keyword that asks for a class.

    Raises:
        UsageError: the model is told a class by this name already; no `nn.Module`; as `Adapted`.
        MissingExtra: peft is not installed.
    """
    if not isinstance(model.network, nn.Module):
        raise UsageError("only an nn.Module can be adapted; put a Shift beside other networks.")
    if _is_taken(model, surgery.name):
        raise UsageError(
            f"the model is told a {surgery.name!r} already; give the control's embedding a second "
            f'name: Surgery(classes, name="{surgery.name}2").'
        )
    network = Adapted(model.network, surgery)
    encode = partial(_encoded, model, surgery)
    details = {key: value for key, value in model.details.items() if key != "weights"}
    name = None if model.name is None else f"{model.name}+{surgery.name}"
    return replace(model, network=network, encode=encode, name=name, details=details)


def save_control(folder: str | Path, model: Denoiser, **about: Any) -> Path:
    """Write what a model was taught, without the pretrained weights, and return the folder.

    Args:
        folder: made if it is missing.
        model: adapted.
        about: whatever is worth recording, as JSON values.

    Raises:
        UsageError: the model was not adapted, or the place cannot be written to.
    """
    network = _adapted(model)
    surgery = {**vars(network.surgery)}
    config = {"format": FORMAT, "surgery": surgery, "model": model.name, **about}
    return write_folder(folder, network.taught(), config)


def load_control(folder: str | Path, model: Denoiser) -> Denoiser:
    """Return a pretrained model, adapted as `save_control` wrote it.

    Raises:
        CheckpointError: the folder is damaged, or of another model.
    """
    config, weights = read_folder(Path(folder), FORMAT, {"surgery", "model"})
    made = adapt(model, Surgery(**config["surgery"]))
    network = _adapted(made)
    expected = network.taught()
    fits = expected.keys() == weights.keys() and all(
        expected[name].shape == weights[name].shape for name in expected
    )
    if not fits:
        raise CheckpointError(f"{folder}: what was taught there does not fit this model.")
    network.load_state_dict(weights, strict=False)
    return made


def attention_layers(network: nn.Module) -> list[str]:
    """Return the names of the linear layers inside modules whose class is called attention."""
    inside = [
        name for name, module in network.named_modules()
        if "attention" in type(module).__name__.lower()
    ]  # fmt: skip
    return [
        name for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and any(name.startswith(f"{up}.") for up in inside)
    ]  # fmt: skip


def _adapted(model: Denoiser) -> Adapted:
    if not isinstance(model.network, Adapted):
        raise UsageError("the model was not adapted (learn.adapt).")
    return model.network


def _sharing(network: nn.Module) -> nn.Module:
    """Return a copy whose weights are the same memory, and ask for no gradients."""
    kept = [*network.parameters(), *network.buffers()]
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) if isinstance(p, nn.Parameter) else p
        for p in kept
    }
    return copy.deepcopy(network, memo)


def _time_module(network: nn.Module, name: str | None) -> nn.Module:
    known = dict(network.named_modules())
    wanted = TIME_NAMES if name is None else (name,)
    for each in wanted:
        if each in known and any(isinstance(m, nn.Linear) for m in known[each].modules()):
            return known[each]
    raise UsageError(
        f"there is no module {' or '.join(wanted)} with a linear layer, to which a class could be "
        "added: name the one that makes the features of time, Surgery(time=...)."
    )


def _is_taken(model: Denoiser, name: str) -> bool:
    """Whether a model is told something by this name."""
    if name in (model.null or {}) or model.details.get("condition") == name:
        return True
    if name == "label" and getattr(model.network, "classes", None) is not None:
        return True
    known = inspect.signature(getattr(model.network, "forward", model.network)).parameters
    return name in known and known[name].default is inspect.Parameter.empty


def _encoded(model: Denoiser, surgery: Surgery, **words: Any) -> Mapping[str, Any]:
    """Return the keyword arguments of the adapted network."""
    y = words.pop(surgery.name, None)
    base = words if model.encode is None or not words else model.encode(**words)
    if y is None:
        return base
    y = torch.as_tensor(y).reshape(-1)
    if y.is_floating_point() or bool((y < 0).any()) or bool((y > surgery.classes).any()):
        raise UsageError(
            f"{surgery.name} goes from 0 to {surgery.classes - 1}, or is {surgery.classes} for no "
            f"control; it is {y.tolist()[:8]}."
        )
    return {**base, surgery.name + "_y": y}
