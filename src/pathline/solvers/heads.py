"""Heads and scales: what a schedule adds to a network, evaluation by evaluation.

A solver of few steps sees little of a trajectory. What the network's last layer L is given, h,
tells more of it than what L makes of it: how the answer is going to change, and how much of it is
the condition's. A head for each of the first evaluations reads that off, at every position of h
alike (a token, a pixel), so that the steps after it end where many small ones would:

    F_k = L(h) + V_k gelu(W_k h + b_k) + c_k

And at every evaluation what each linear layer or convolution ℓ makes may be scaled and shifted,
output by output, so that the network as a whole answers for the step rather than for its time:

    y ← (1 + s_kℓ) ⊙ y + d_kℓ

Both belong to a schedule (they know its steps) and to a network's weights. They are found by
`speed.fit` and leave the network as it is. A head costs less than a percent of an evaluation, and
scales a pass over the weights, which is a few percent of one of many samples.

Papers: Dockhorn et al. 2022 (GENIE, arXiv:2210.05475), where a head on the same features predicts
the derivative that a Taylor step needs; here it corrects the step that there is. Lian et al. 2022
(SSF, arXiv:2210.08823) scale and shift features to tune a network to another task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import cast

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

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
"""Layers whose outputs lie along the axis after the batch."""


class Heads(nn.Module):
    """A head for each of the first evaluations of a schedule, and scales for all of them.

    Args:
        layer: the name of the network's last layer, as `named_modules` has it.
        sizes: numbers that the layer is given at a position, and that it returns there.
        n: evaluations that get a head.
        hidden: width of a head.
        weights: the checksum of the network's weights; "" if it is unknown.
        seed: of W and b, which are drawn; V and c are zero, so that new heads add nothing.

    Attributes:
        scaled: the layers that are scaled and shifted, and how many outputs each has.
        scales: s and d of all these layers, one after the other: (2, outputs) an evaluation. New
            ones are zero, which changes nothing; see `scale`.
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
        self.scaled: dict[str, int] = {}
        self.scales = nn.ParameterList()

    def __len__(self) -> int:
        """How many evaluations ask another network than the one there is."""
        return max(len(self.each), len(self.scales))

    def scale(self, layers: Mapping[str, int], n: int) -> None:
        """Let n evaluations scale and shift these layers, given with their outputs; not yet."""
        like = next(self.parameters(), torch.zeros(()))
        self.scaled = dict(layers)
        new = like.new_zeros(2, sum(layers.values()))
        self.scales = nn.ParameterList(nn.Parameter(new.clone()) for _ in range(n))

    def scales_of(self, k: int) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return s and d of each layer at evaluation k; nothing if it scales none."""
        if k >= len(self.scales):
            return {}
        s, d = (each.split(list(self.scaled.values())) for each in self.scales[k])
        return dict(zip(self.scaled, zip(s, d, strict=True), strict=True))

    def forward(self, h: Tensor, k: int, axis: int) -> Tensor:
        """Return what evaluation k adds, shaped like what the layer makes of h.

        Args:
            h: what the layer is given; its numbers at a position lie along `axis`.
            k: number of the evaluation, one that has a head.
            axis: 1 for a convolution, −1 for a linear layer.
        """
        return added(self.each[k], h, axis)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that tell these heads from others."""
        made = hashlib.sha256("".join([self.layer, *self.scaled]).encode())
        for name, tensor in self.state_dict().items():
            made.update(name.encode())
            made.update(tensor.detach().cpu().double().contiguous().numpy().tobytes())
        return made.hexdigest()[:12]

    def save(self, folder: str | Path) -> Path:
        """Write them into a folder of schedules, under their digest.

        Numbers take half a word where that loses nothing: see `rounded`.
        """
        header = {"format": FORMAT, "layer": self.layer, "weights": self.weights}
        header |= {"scaled": self.scaled} if self.scaled else {}
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
        none = torch.zeros(1, 1)
        w, v = (tensors.get(f"each.0.{i}.weight", none) for i in (0, 2))
        n = len([name for name in tensors if name.endswith(".0.weight")])
        sizes = w.shape[1], v.shape[0]
        made = cls(header["layer"], sizes, n, w.shape[0], header["weights"])
        made.scale(header.get("scaled", {}), len([n for n in tensors if n.startswith("scales.")]))
        made = made.double() if torch.float64 in {each.dtype for each in tensors.values()} else made
        made.load_state_dict(tensors)
        return made.requires_grad_(False)


def added(head: nn.Module, h: Tensor, axis: int) -> Tensor:
    """Return what a head adds, in its own precision, where h has its numbers along an axis."""
    dtype = next(head.parameters()).dtype
    return head(h.movedim(axis, -1).to(dtype)).movedim(-1, axis).to(h.dtype)


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
    name, sizes = "", (1, 1)  # of no heads
    if n:
        name, layer = list(_asked(field, x, cond).items())[-1]
        sizes = _sizes(layer)
    model = denoiser_in(field)
    weights = {} if model is None else model.details.get("weights", {})
    device = None if model is None else model.device
    made = Heads(name, sizes, n, weights=str(weights.get("sha256") or ""), seed=seed)
    return made.to(device or "cpu")


def scalable(field: Field, x: Tensor, cond: Condition) -> dict[str, int]:
    """Return the layers of a network that can be scaled, with their outputs, as they are asked.

    Args:
        field: with the network.
        x: a state at the first time of its path, (batch, *state).
        cond: as the field's `condition` returned it.

    Raises:
        UsageError: the network is no module, or has no layer that is linear or a convolution.
    """
    return {name: _sizes(layer)[1] for name, layer in _asked(field, x, cond).items()}


@torch.no_grad()
def _asked(field: Field, x: Tensor, cond: Condition) -> dict[str, nn.Module]:
    """Return the linear layers and convolutions that an evaluation asks, the last one last."""
    network, found = uncompiled(network_of(field)), dict[str, nn.Module]()
    assert field.path is not None  # that of the denoiser whose network it is
    first = torch.tensor(field.path.t_max, dtype=torch.float64, device=x.device)

    def note(name: str, layer: nn.Module) -> None:
        found.pop(name, None)
        found[name] = layer

    handles = [
        module.register_forward_hook(lambda *_, at=(name, module): note(*at))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, *CONVOLUTIONS))
    ]
    try:
        with_network(field, network).evaluate(x, first, cond)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise UsageError("the network has no linear layer or convolution that could get heads.")
    return found


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Return how many numbers a layer is given and returns at a position."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    convolution = cast("nn.Conv2d", layer)
    return convolution.in_channels, convolution.out_channels
