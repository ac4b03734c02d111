"""Networks of the code of EDM, EDM2 and PFGM++, and k-diffusion's, become denoisers of ours.

Both are functions of the noise level that include their preconditioning:

    net(x, sigma, class_labels) → x̂_0      x = x_0 + σ ε

Paper: Karras et al. 2022 (arXiv:2206.00364), Eq. 7; 2024 (arXiv:2312.02696).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pathline.core.errors import UsageError
from pathline.fields import Denoiser
from pathline.paths import EDM, PFGMpp


def denoiser(
    network: Callable[..., Tensor],
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    dof: float = math.inf,
    shape: tuple[int, ...] | None = None,
    name: str | None = None,
) -> Denoiser:
    """Return a preconditioned network as a `Denoiser` on the EDM path.

    A network of EDM says its levels, shape and number of classes itself; its condition is
    `class_labels`, numbers or one-hot rows, and no class is the null condition. Any other keyword
    argument is a condition that goes to the network as it is.

    Args:
        network: network(x, sigma, …) → x̂_0, with sigma of shape (batch,).
        sigma_min: the lowest noise level; the network's own, but not below 0.002, if None.
        sigma_max: the highest; the network's own, but not above 80, if None, as EDM's code has it.
        dof: D of a network of PFGM++, whose code is EDM's; ∞ is EDM.
        shape: of one sample; what the network says if None.
        name: what receipts call the model; the network's class if None.

    Raises:
        UsageError: it is not callable with (x, sigma).

    Example: `pl.sample(edm.denoiser(net), n=4, solver="heun", grid="karras", class_labels=3)`
    """
    if not callable(network):
        raise UsageError(f"the network must be callable, and is a {type(network).__name__}.")
    forward = network.forward if isinstance(network, nn.Module) else network
    try:
        inspect.signature(forward).bind(0, 0)
    except TypeError as error:
        raise UsageError(
            f"the network is not called as network(x, sigma): {error}; its x̂_0 is needed, with the "
            "preconditioning inside (EDMPrecond, or a denoiser of k-diffusion)."
        ) from error
    except ValueError:  # a builtin without a signature: the first call will tell
        pass
    lowest = max(0.002, _level(network, "sigma_min", 0.0)) if sigma_min is None else sigma_min
    highest = min(80.0, _level(network, "sigma_max", 80.0)) if sigma_max is None else sigma_max
    path = EDM(lowest, highest) if math.isinf(dof) else PFGMpp(lowest, highest, dof)
    classes = int(getattr(network, "label_dim", 0) or 0)
    return Denoiser(
        network,
        path,
        view="x0",
        label=path.sigma,
        null={"class_labels": torch.zeros(1, classes)} if classes else None,
        encode=partial(_encoded, classes) if classes else None,
        shape=_shape(network) if shape is None else tuple(shape),
        name=type(network).__name__ if name is None else name,
    )


def _level(network: Any, key: str, default: float) -> float:
    value = getattr(network, key, None)
    return default if value is None else float(value)


def _shape(network: Any) -> tuple[int, ...] | None:
    channels = getattr(network, "img_channels", None)
    size = getattr(network, "img_resolution", None)
    return None if channels is None or size is None else (channels, size, size)


def _encoded(classes: int, class_labels: Any = None, **others: Any) -> dict[str, Any]:
    """Turn class numbers into the one-hot rows that the network takes."""
    if class_labels is None:
        return others
    labels = torch.atleast_1d(torch.as_tensor(class_labels))
    if labels.ndim == 1 and not labels.is_floating_point():
        if bool(((labels < 0) | (labels >= classes)).any()):
            raise UsageError(f"the network has classes 0 to {classes - 1}, not {labels.tolist()}.")
        labels = one_hot(labels.long(), classes).float()
    if labels.shape[-1] != classes:
        raise UsageError(
            f"class_labels are numbers, or rows of {classes}; these are {tuple(labels.shape)}."
        )
    return {"class_labels": labels, **others}
