"""Heads: what is added to a network's last layer at one evaluation of a schedule.

A solver of few steps sees little of a trajectory. What the network's last layer L is given, h,
tells more of it than what L makes of it: how the answer is going to change, and how much of it is
the condition's. A head for each of the first evaluations reads that off, at every position of h
alike (a token, a pixel), so that the steps after it end where many small ones would:

    F_k = L(h) + V_k gelu(W_k h + b_k) + c_k

Heads belong to a schedule (they know its steps) and to a network's weights. They are found by
`speed.fit`, cost a few percent of an evaluation, and leave the network as it is.

Paper: Dockhorn et al. 2022 (GENIE, arXiv:2210.05475), where a head on the same features predicts
the derivative that a Taylor step needs; here it corrects the step that there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from threading import get_ident
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from pathline.core.errors import UsageError
from pathline.core.tensors import read_tensors, write_tensors
from pathline.fields import Condition, Field
from pathline.fields.denoiser import denoiser_in, with_network

FORMAT = "pathline-heads-1"

FOLDER = "schedules"
"""Where a model's folder has its schedules, and their heads."""

HIDDEN = 256

_CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d


class Heads(nn.Module):
    """A head for each of the first evaluations of a schedule.

    Args:
        layer: the name of the network's last layer, as `named_modules` has it.
        sizes: numbers that the layer is given at a position, and that it returns there.
        n: evaluations that get a head.
        hidden: width of a head.
        weights: the checksum of the network's weights; "" if it is unknown.
        seed: of W and b, which are drawn; V and c are zero, so that new heads add nothing.
    """

    def __init__(
        self,
        layer: str,
        sizes: tuple[int, int],
        n: int,
        hidden: int = HIDDEN,
        weights: str = "",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.layer, self.weights = layer, weights
        drawn = torch.Generator().manual_seed(seed)
        self.each = nn.ModuleList(_head(*sizes, hidden, drawn) for _ in range(n))

    def __len__(self) -> int:
        return len(self.each)

    def forward(self, h: Tensor, k: int, axis: int) -> Tensor:
        """Return what evaluation k adds, shaped like what the layer makes of h.

        Args:
            h: what the layer is given; its numbers at a position lie along `axis`.
            k: number of the evaluation, below `len(self)`.
            axis: 1 for a convolution, −1 for a linear layer.
        """
        dtype = next(self.parameters()).dtype
        return self.each[k](h.movedim(axis, -1).to(dtype)).movedim(-1, axis).to(h.dtype)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that tell these heads from others."""
        made = hashlib.sha256(self.layer.encode())
        for name, tensor in self.state_dict().items():
            made.update(name.encode())
            made.update(tensor.detach().cpu().double().contiguous().numpy().tobytes())
        return made.hexdigest()[:12]

    def save(self, folder: str | Path) -> Path:
        """Write them into a folder of schedules, under their digest.

        Numbers take half a word where that loses nothing: see `rounded`.
        """
        header = {"format": FORMAT, "layer": self.layer, "weights": self.weights}
        tensors = {name: _short(tensor) for name, tensor in self.state_dict().items()}
        return write_tensors(heads_file(folder, self.digest), tensors, header)

    def rounded(self) -> Heads:
        """Return heads to stay, whose numbers are those of half precision."""
        made = deepcopy(self).requires_grad_(False)
        for number in made.parameters():
            number.copy_(number.half())
        return made

    @classmethod
    def load(cls, file: str | Path) -> Heads:
        """Read what `save` wrote.

        Raises:
            UsageError: the file cannot be read, or has no heads.
        """
        header, tensors = read_tensors(file)
        if header.get("format") != FORMAT:
            raise UsageError(f"{file} has no heads of a schedule.")
        w, v = tensors["each.0.0.weight"], tensors["each.0.2.weight"]
        n = len([name for name in tensors if name.endswith(".0.weight")])
        sizes = w.shape[1], v.shape[0]
        made = cls(header["layer"], sizes, n, w.shape[0], header["weights"])
        made = made.double() if torch.float64 in {each.dtype for each in tensors.values()} else made
        made.load_state_dict(tensors)
        return made.requires_grad_(False)


def _short(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def _head(features: int, outputs: int, hidden: int, drawn: torch.Generator) -> nn.Sequential:
    first, last = skip_init(nn.Linear, features, hidden), skip_init(nn.Linear, hidden, outputs)
    for number in first.parameters():
        nn.init.uniform_(number, -(features**-0.5), features**-0.5, generator=drawn)
    for number in last.parameters():
        nn.init.zeros_(number)
    return nn.Sequential(first, nn.GELU(), last)


def heads_file(folder: str | Path, digest: str) -> Path:
    """Return where a folder of schedules keeps heads."""
    return Path(folder) / f"heads-{digest}.safetensors"


def heads_of(field: Field, digest: str) -> Heads:
    """Return the heads of a schedule, by their digest.

    They are in the details of the model under "heads", or in its folder, with the schedules.

    Args:
        field: whose network they are for.
        digest: of the heads.

    Raises:
        UsageError: they are not there, or are of another network's weights.
    """
    model = denoiser_in(field)
    details = {} if model is None else model.details
    made = details.get("heads")
    if isinstance(made, Heads) and made.digest == digest:
        return made
    file = heads_file(Path(str(details.get("folder"))) / FOLDER, digest)
    if not file.is_file():
        raise UsageError(
            f"this schedule adds heads {digest} to the network, and {file} is not there; find them "
            "anew: pathline tune MODEL --guidance W --thin --heads 3"
        )
    found = _loaded(file, file.stat().st_mtime_ns, None if model is None else model.device)
    weights = details.get("weights", {}).get("sha256")
    if found.weights and weights and found.weights != weights:
        raise UsageError(f"{file} is of other weights than the model's; find heads for these.")
    return found


@lru_cache(maxsize=16)
def _loaded(file: Path, stamp: int, device: torch.device | None) -> Heads:
    del stamp
    return Heads.load(file).to(device or "cpu")


class Headed(nn.Module):
    """A network with heads, which are in use where it is told so.

    A compiled network knows nothing of what is added to it later, so evaluations with a head are
    those of the network before it was compiled.

    Args:
        network: the network; it stays as it is.
        heads: of its last layer.

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
        if heads.layer not in layers and len(heads):
            raise UsageError(f"the heads are of a layer {heads.layer!r}, which the network lacks.")
        layer = layers.get(heads.layer, plain)
        self._of = plain, layer, _axis(layer)  # a tuple, which is no submodule

    def forward(self, *given: Any, **told: Any) -> Tensor:
        if self.now >= len(self.heads):
            return self.network(*given, **told)
        plain, layer, _ = self._of
        with _hooked(layer, self._added):
            return plain(*given, **told)

    def _added(self, h: Tensor, made: Tensor) -> Tensor:
        return made + self.heads(h, self.now, self._of[2])


@contextmanager
def _hooked(layer: nn.Module, also: Callable[[Tensor, Tensor], Tensor]) -> Generator[None]:
    """Pass what a layer makes through a function, in this thread alone."""
    mine = get_ident()

    def hook(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        return also(given[0], made) if get_ident() == mine else made

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _axis(layer: nn.Module) -> int:
    return 1 if isinstance(layer, _CONVOLUTIONS) else -1


def with_heads(field: Field, heads: Heads) -> tuple[Field, Headed]:
    """Return the field with heads on its network, and the network, to be told the evaluation.

    Raises:
        UsageError: there is no network that is a module.
    """
    headed = Headed(network_of(field), heads)
    return with_network(field, headed), headed


def network_of(field: Field) -> nn.Module:
    """Return the module inside a field.

    Raises:
        UsageError: there is none, and so no layer that could get heads.
    """
    model = denoiser_in(field)
    if model is None or not isinstance(model.network, nn.Module):
        raise UsageError("heads are for a network that is a torch module.")
    return model.network


def uncompiled(network: nn.Module) -> nn.Module:
    """Return the module that a compiled one was made of; itself if it was not compiled."""
    for name in ("uncompiled", "_orig_mod"):
        made = getattr(network, name, None)
        if isinstance(made, nn.Module):
            return made
    return network


@torch.no_grad()
def new_heads(field: Field, x: Tensor, cond: Condition, n: int, seed: int = 0) -> Heads:
    """Return heads that add nothing yet, for the layer that a network ends with.

    Args:
        field: with the network.
        x: a state at the first time of its path, (batch, *state).
        cond: as the field's `condition` returned it.
        n: how many heads.
        seed: of what is drawn in them.

    Raises:
        UsageError: the network is no module, or has no layer that is linear or a convolution.
    """
    network, last = uncompiled(network_of(field)), list[tuple[str, nn.Module]]()
    assert field.path is not None  # that of the denoiser whose network it is
    first = torch.tensor(field.path.t_max, dtype=torch.float64, device=x.device)
    handles = [
        module.register_forward_hook(lambda *_, at=(name, module): last.append(at))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS))
    ]
    try:
        with_network(field, network).evaluate(x, first, cond)
    finally:
        for handle in handles:
            handle.remove()
    if not last:
        raise UsageError("the network has no linear layer or convolution that could get heads.")
    name, layer = last[-1]
    if isinstance(layer, nn.Linear):
        sizes = layer.in_features, layer.out_features
    else:
        sizes = cast("nn.Conv2d", layer).in_channels, cast("nn.Conv2d", layer).out_channels
    model = denoiser_in(field)
    weights = {} if model is None else model.details.get("weights", {})
    device = None if model is None else model.device
    made = Heads(name, sizes, n, weights=str(weights.get("sha256") or ""), seed=seed)
    return made.to(device or "cpu")
