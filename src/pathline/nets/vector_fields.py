"""Networks for the right-hand sides of differential equations, and the layers they are made of.

    ODE     f = s tanh(MLP(x))                s a learnt number: slopes are bounded, and start small
    CDE     F(z) (h × c),  a tanh at the end  the response of h hidden numbers to c channels
    SDE     μ, σ of LipSwish layers           0.909 x sigmoid(x): no layer multiplies distances

Each is called with (x, t), as everything is that is integrated.

Paper: Kidger 2022 (arXiv:2202.02435), Sec. 2.3, 3.1, 4.4 and App. B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError

__all__ = [
    "CDENet",
    "Hybrid",
    "LipSwish",
    "NoiseNet",
    "ODENet",
    "OwnNoise",
    "augmented",
    "clip_weights",
    "layers",
    "with_time",
]

LIPSWISH = 0.909
"""1.1 is the largest slope of x sigmoid(x), nearly."""


class LipSwish(nn.Module):
    """0.909 x sigmoid(x), whose slope is nowhere above 1.

    Paper: Chen et al. 2019 (arXiv:1906.02735); Kidger et al. 2021 (arXiv:2105.13493).
    """

    def forward(self, x: Tensor) -> Tensor:
        return LIPSWISH * nn.functional.silu(x)


def layers(
    sizes: Sequence[int], activation: Callable[[], nn.Module], last: nn.Module | None = None
) -> nn.Sequential:
    """Return linear layers of these sizes with an activation between them.

    Args:
        sizes: of the input, of the layers between and of the output.
        activation: makes what stands between two layers.
        last: what stands at the end, if anything.

    Raises:
        UsageError: fewer than two sizes, or one below 1.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise UsageError(f"layers have two sizes or more, each at least 1; got {list(sizes)}.")
    made: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        made += [nn.Linear(a, b), activation()]
    made[-1:] = [] if last is None else [last]
    return nn.Sequential(*made)


def with_time(x: Tensor, t: Tensor | float) -> Tensor:
    """Return (t, x) side by side, (batch, 1 + dim)."""
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    return torch.cat((t.reshape(-1, 1).expand(len(x), 1), x), 1)


def augmented(x: Tensor, extra: int) -> Tensor:
    """Return states with so many zeros more, (batch, dim + extra).

    Paths of an ODE never cross, so in `dim` numbers alone none can turn a set inside out; with room
    beside them they pass each other.

    Paper: Dupont, Doucet & Teh 2019 (arXiv:1904.01681).
    """
    if x.ndim != 2 or extra < 1:
        raise UsageError(
            f"states are (batch, dim) and 1 zero or more is added; given were {tuple(x.shape)} and "
            f"{extra}."
        )
    return torch.cat((x, x.new_zeros(len(x), extra)), 1)


class ODENet(nn.Module):
    """f = s tanh(MLP(x)), the right-hand side of a neural ODE.

    Args:
        dim: numbers in a state, (batch, dim).
        width: of the hidden layers.
        depth: how many of them.
        timed: whether t is read, too.

    Example:
        >>> f = ODENet(2)
        >>> f(torch.zeros(5, 2), torch.tensor(0.0)).shape, float(f.scale)
        (torch.Size([5, 2]), 1.0)
    """

    def __init__(self, dim: int, width: int = 64, depth: int = 2, *, timed: bool = False) -> None:
        super().__init__()
        self.dim, self.timed = dim, timed
        self.layers = layers((dim + timed, *[width] * depth, dim), nn.Softplus, nn.Tanh())
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        check_state(x, self.dim)
        return self.scale * self.layers(with_time(x, t) if self.timed else x)


class Hybrid(nn.Module):
    """A known right-hand side and a network that learns what it lacks: dx/dt = known(x, t) + NN(x).

    The last layer starts at a hundredth of its usual size, so training starts at what is known.
    Units that grow with their inputs (SiLU) go on beyond the states that were seen; those that
    saturate bend away from an interaction such as x y there.

    Args:
        known: what is known of the system; a module whose parameters are learned too, or any
            function of (x, t).
        dim: numbers in a state.
        width: of the hidden layers of the network.
        depth: how many of them.

    Paper: Rackauckas et al. 2020 (arXiv:2001.04385), universal differential equations.
    """

    def __init__(
        self,
        known: Callable[[Tensor, Tensor | float], Tensor],
        dim: int,
        width: int = 32,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.known, self.dim = known, dim
        self.rest = layers((dim, *[width] * depth, dim), nn.SiLU)
        with torch.no_grad():
            for parameter in self.rest[-1].parameters():
                parameter.mul_(0.01)

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        check_state(x, self.dim)
        return self.known(x, t) + self.rest(x)


class CDENet(nn.Module):
    """F(z), (batch, hidden, channels): how hidden numbers answer a change of each channel.

    The tanh at the end keeps the response bounded; without it training is unstable.

    Args:
        hidden: numbers in the state.
        channels: of the control, time among them.
        width: of the hidden layers.
        depth: how many of them.
    """

    def __init__(self, hidden: int, channels: int, width: int = 128, depth: int = 1) -> None:
        super().__init__()
        self.hidden, self.channels = hidden, channels
        sizes = hidden, *[width] * depth, hidden * channels
        self.layers = layers(sizes, nn.ReLU, nn.Tanh())

    def forward(self, z: Tensor, t: Tensor | float) -> Tensor:
        del t  # time is a channel of the control
        check_state(z, self.hidden)
        return self.layers(z).unflatten(1, (self.hidden, self.channels))


class NoiseNet(nn.Module):
    """A drift or a diffusion of LipSwish layers that reads (t, x) and ends in s tanh.

    Args:
        dim: numbers in a state.
        noises: columns of the diffusion matrix, then (batch, dim, noises); None for a drift or for
            noise of each number's own, (batch, dim).
        width: of the hidden layers.
        depth: how many of them.
        floor: what is added to the square of the output's size: a diffusion with a floor is nowhere
            0, as path likelihoods need; None adds nothing, and signs stay.
    """

    def __init__(
        self,
        dim: int,
        noises: int | None = None,
        *,
        width: int = 16,
        depth: int = 1,
        floor: float | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.noises, self.floor = dim, noises, floor
        sizes = dim + 1, *[width] * depth, dim * (noises or 1)
        self.layers = layers(sizes, LipSwish, nn.Tanh())
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        check_state(x, self.dim)
        made = self.scale * self.layers(with_time(x, t))
        if self.floor is not None:
            made = (made.square() + self.floor**2).sqrt()
        return made if self.noises is None else made.unflatten(1, (self.dim, self.noises))


class OwnNoise(nn.Module):
    """A diffusion of which each number depends on its own number of the state alone, never on 0.

    σ_i(x_i) = floor + sigmoid(a small network of x_i): what "diagonal" noise means.

    Args:
        dim: numbers in a state.
        width: of each small network.
        floor: the least.
    """

    def __init__(self, dim: int, width: int = 8, floor: float = 0.01) -> None:
        super().__init__()
        self.dim, self.floor = dim, floor
        self.slopes = nn.Parameter(torch.randn(dim, width))
        self.offsets = nn.Parameter(torch.randn(dim, width))
        self.weights = nn.Parameter(torch.randn(dim, width) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        del t
        check_state(x, self.dim)
        inside = nn.functional.softplus(x[..., None] * self.slopes + self.offsets)
        return self.floor + ((inside * self.weights).sum(-1) + self.bias).sigmoid()


@torch.no_grad()
def clip_weights(network: nn.Module) -> None:
    """Clip the weights of every linear layer to [−1/out, 1/out], in place.

    With LipSwish between them the layers are then of Lipschitz constant 1 or less, from the largest
    change of an input to that of an output, summed; a discriminator of a GAN needs that. Biases
    are left alone. To be called after every step of the optimiser.

    Paper: Kidger et al. 2021 (arXiv:2105.13493), Sec. 5.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            bound = 1 / module.out_features
            module.weight.clamp_(-bound, bound)


def check_state(x: Tensor, dim: int) -> None:
    """Refuse a state that is not (batch, dim)."""
    if x.ndim != 2 or x.shape[1] != dim:
        raise UsageError(
            f"the network reads states (batch, {dim}), and was given {tuple(x.shape)}."
        )
