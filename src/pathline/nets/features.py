"""Features: what named layers of a network say in one forward pass.

Any network will do: its blocks are found by the names that U-Nets and transformers give them, ours
and those of diffusers, and every other layer can be named. Hooks are there for one call and gone
afterwards, whatever the call raises; the network is not changed. What comes after the last layer
that was asked for is not computed.

Intermediate features say more of *what* is where than the output does: Tang et al. 2023
(arXiv:2306.03881), Mou et al. 2023 (arXiv:2307.02421).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from pathline.core.errors import UsageError

__all__ = ["as_map", "checked_layers", "feature_layers", "features"]

MIDDLES = ("middle", "mid_block", "middle_block")
UPS = ("up", "up_blocks", "output_blocks")
BLOCKS = ("blocks", "transformer_blocks", "single_transformer_blocks", "layers")


class _Enough(BaseException):
    """Every layer has spoken: the rest of the pass is left out."""


def feature_layers(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers whose outputs serve as features, in the order of the network.

    Of a U-Net these are the end of its middle and its levels on the way up, of a transformer its
    blocks; none if the network is of neither kind.

    Example:
        >>> from pathline.nets import UNet
        >>> feature_layers(UNet(width=8, multipliers=(1, 2), blocks=1))
        ('middle.1', 'up.0', 'up.1')
    """
    lists = list(_named(network, MIDDLES)) + list(_named(network, UPS))
    if any(name.rpartition(".")[2] in UPS for name, _ in lists):
        return tuple(each for name, module in lists for each in _parts(name, module))
    blocks = [(n, m) for n, m in _named(network, BLOCKS) if isinstance(m, nn.ModuleList)]
    return tuple(each for name, module in blocks for each in _parts(name, module))


def _named(network: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules whose name ends with one of these."""
    found: list[str] = []
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name.rpartition(".")[2] in names and not inside:
            found.append(name)
            yield name, module


def _parts(name: str, module: nn.Module) -> list[str]:
    """Return the layers to look at of a part: its last one if it is a middle, else each."""
    if not isinstance(module, nn.ModuleList):
        return [name]
    each = [f"{name}.{i}" for i in range(len(module))]
    return each[-1:] if name.rpartition(".")[2] in MIDDLES else each


def checked_layers(network: nn.Module, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the layers of these names, or those that are found if None.

    Raises:
        UsageError: no such layer (the message lists those that are found), or none was found.
    """
    known = feature_layers(network)
    if names is None:
        if not known:
            raise UsageError(
                f"no blocks were found in {type(network).__name__}: name the layers whose outputs "
                "are features (layers=(...)), as network.named_modules() does."
            )
        return known
    every = {name for name, _ in network.named_modules()} - {""}
    for name in names:
        if name not in every:
            told = ", ".join(known) or ", ".join(sorted(every)[:20])
            raise UsageError(
                f"there is no layer {name!r} in {type(network).__name__}; choose from {told}."
            )
    if not names:
        raise UsageError(f"at least one layer is needed; choose from {', '.join(known)}.")
    return tuple(names)


def features(
    network: nn.Module,
    call: Callable[[], Any],
    layers: Sequence[str] | None = None,
    *,
    to_the_end: bool = False,
) -> dict[str, Any]:
    """Return what layers say while `call` runs the network, by name.

    Args:
        network: any module.
        call: makes one pass through it; what it returns is not looked at.
        layers: their names; those of `feature_layers` if None.
        to_the_end: whether what comes after the last of the layers is computed too, for others
            that watch the pass.

    Returns:
        The outputs as they are, functions of the input for autograd where gradients are on.

    Raises:
        UsageError: a layer is unknown, or the pass did not come by it.

    Cost: at most one forward pass.

    Example:
        >>> import torch
        >>> from pathline.nets import UNet
        >>> net = UNet(width=8, multipliers=(1, 2), blocks=1)
        >>> said = features(net, lambda: net(torch.randn(1, 1, 8, 8), torch.tensor(3.0)), ["up.0"])
        >>> said["up.0"].shape
        torch.Size([1, 16, 4, 4])
    """
    names = checked_layers(network, layers)
    said: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            del module, given
            said[name] = output
            if len(said) == len(set(names)) and not to_the_end:
                raise _Enough

        return hook

    modules = dict(network.named_modules())
    hooks = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        call()
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in names if name not in said]
    if missing:
        raise UsageError(f"the pass did not come by {', '.join(missing)}: name other layers.")
    return {name: said[name] for name in names}


def as_map(name: str, said: Any, size: tuple[int, int]) -> Tensor:
    """Return a layer's output as a map, (batch, features, height, width).

    Maps stay as they are. Tokens, (batch, tokens, width), are laid on the grid that the picture
    has if each token is a square of pixels. Of several outputs the last one that is such is taken.

    Args:
        name: of the layer, for the error.
        said: a tensor, or a tuple or list of them.
        size: (height, width) of the picture.

    Raises:
        UsageError: it is no map, and its tokens are not those of the picture.
    """
    outputs = list(said) if isinstance(said, tuple | list) else [said]
    for output in reversed(outputs):
        if not isinstance(output, Tensor):
            continue
        if output.ndim == 4:
            return output
        grid = _grid(output.shape[1], size) if output.ndim == 3 else None
        if grid is not None:
            return output.transpose(1, 2).unflatten(2, grid)
    shapes = [tuple(o.shape) for o in outputs if isinstance(o, Tensor)]
    raise UsageError(
        f"the layer {name!r} says {shapes}, which is no map of a {size[0]} × {size[1]} picture: "
        "name a layer with (batch, features, height, width), or one token a patch."
    )


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return (rows, columns) of square patches of a picture, if there are so many of them."""
    height, width = size
    for patch in range(1, min(size) + 1):
        fits = height % patch == 0 and width % patch == 0
        if fits and (height // patch) * (width // patch) == tokens:
            return height // patch, width // patch
    return None
