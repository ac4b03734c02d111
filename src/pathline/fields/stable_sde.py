"""Neural SDEs that stay put: Langevin-type, with linear noise, and geometric.

    z̄ = ν(z[, t], X(t))                      a data path X is read all along, not at the start only
    LSDE     dz = γ(z̄) dt + σ(t) dW           no time in the drift: over-damped Langevin
    LNSDE    dz = γ(t, z̄) dt + σ(t) z dW      noise that may itself stabilise: exponent K − σ²/2
    GSDE     dz = z γ(t, z̄) dt + σ(t) z dW    signs are kept, 0 absorbs

(Itô, noise of each number's own). With γ Lipschitz and σ bounded each has one strong solution. A
drift and a diffusion chosen freely ("naive") need not: √z and z³ are there to show it.

`variant="pure"` is the theory's; "runtime" is the public code's network, whose outer tanh bounds
drift and diffusion, and on which the published numbers rest.

Paper: Oh, Lim & Kim 2024 (arXiv:2402.14989).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError, unknown
from pathline.nets.vector_fields import LipSwish, layers

__all__ = ["CLASSES", "NOISES", "Driven", "Kind", "Noise", "Reads", "StableSDE", "Variant"]

Kind = Literal["lsde", "lnsde", "gsde", "naive"]
Variant = Literal["pure", "runtime"]
Reads = Literal["control", "latent", "latent+control", "latent+control+time"]
Noise = Literal[
    "none", "constant", "time", "state", "sqrt", "cube", "sigmoid", "relu",
    "net(t)", "net(t)z", "net(t,z)", "net(t,z)z",
]  # fmt: skip

CLASSES: Mapping[str, tuple[Reads, Noise]] = {
    "lsde": ("latent+control", "net(t)"),
    "lnsde": ("latent+control+time", "net(t)z"),
    "gsde": ("latent+control+time", "net(t)z"),
    "naive": ("latent", "net(t,z)"),
}
"""What the drift of each kind reads, and its noise."""


class At(NamedTuple):
    """What a diffusion is made of at one time: z, t, a learned number, and n(t) or n(t, z)."""

    z: Tensor
    t: Tensor
    sigma: Tensor
    net: Tensor


NOISES: Mapping[str, Callable[[At], Tensor]] = {
    "none": lambda at: torch.zeros_like(at.z),
    "constant": lambda at: at.sigma.expand_as(at.z),
    "time": lambda at: (at.sigma * at.t).expand_as(at.z),
    "state": lambda at: at.sigma * at.z,
    "sqrt": lambda at: at.z.sqrt(),
    "cube": lambda at: at.z**3,
    "sigmoid": lambda at: at.z.sigmoid(),
    "relu": lambda at: at.z.relu(),
    "net(t)": lambda at: at.net.expand_as(at.z),
    "net(t)z": lambda at: at.net * at.z,
    "net(t,z)": lambda at: at.net.expand_as(at.z),
    "net(t,z)z": lambda at: at.net * at.z,
}
"""Diffusions by name; √z and z³ have no solution that lasts."""

UNSTABLE = "sqrt", "cube"


class StableSDE(nn.Module):
    """Drift and diffusion of one of the three classes, or of the naive one.

    Args:
        kind: which.
        hidden: numbers in a state.
        channels: of the data path, time among them; 0 where none is read.
        depth: hidden layers of the drift.
        width: of them; that of the state if None.
        variant: the theory's functions, or the public code's.
        reads: what the drift reads; that of the class if None.
        noise: the diffusion; that of the class if None.
        allow_unstable: lets `noise` be one of those that blow up.

    Raises:
        UsageError: an unknown name, √z or z³ without `allow_unstable`, a control of no channels.

    Example:
        >>> net = StableSDE("lnsde", hidden=4, channels=2)
        >>> t, x = torch.linspace(0, 1, 5), torch.zeros(5, 3, 2)
        >>> driven = net.along(t, x)
        >>> driven.drift(torch.ones(3, 4), t[0]).shape
        torch.Size([3, 4])
    """

    def __init__(  # noqa: PLR0913 - the switches of an ablation
        self,
        kind: Kind,
        hidden: int,
        channels: int,
        *,
        depth: int = 2,
        width: int | None = None,
        variant: Variant = "runtime",
        reads: Reads | None = None,
        noise: Noise | None = None,
        allow_unstable: bool = False,
    ) -> None:
        super().__init__()
        _known("class of stable SDEs", kind, tuple(CLASSES))
        usual = CLASSES[kind]
        _known("variant", variant, get_args(Variant))
        _known("input of the drift", reads or usual[0], get_args(Reads))
        _known("diffusion", noise or usual[1], tuple(NOISES))
        self.kind, self.variant, self.hidden, self.channels = kind, variant, hidden, channels
        self.reads, self.noise = reads or usual[0], noise or usual[1]
        if self.noise in UNSTABLE and not allow_unstable:
            raise UsageError(
                f"the diffusion {self.noise!r} leaves its domain or blows up in finite time; pass "
                "allow_unstable=True to see it."
            )
        if "control" in self.reads and channels < 1:
            raise UsageError("the drift reads a data path, so channels= is 1 or more.")
        self._build(hidden if width is None else width, depth)

    def _build(self, width: int, depth: int) -> None:
        activation = nn.ReLU if self.variant == "runtime" else LipSwish
        if "latent" in self.reads:
            self.embed = nn.Linear(self.hidden, width)
        if "time" in self.reads or self.kind == "naive":
            self.embed_time = nn.Linear(2, width, bias=False)
        if "control" in self.reads:
            self.embed_control = nn.Linear(self.channels, width)
        self.joined = nn.Linear(2 * width if "latent+control" in self.reads else width, width)
        self.rest = nn.Sequential(
            activation(),
            *layers([width] * depth, activation, activation()) if depth > 1 else [],
            nn.Linear(width, self.hidden),
        )
        if self.noise.startswith("net"):
            inputs = 2 + self.hidden * ("t,z" in self.noise)
            self.noise_net = layers((inputs, width, self.hidden), activation, activation())
        self.theta = nn.Parameter(torch.ones(()))

    def along(self, times: Tensor, control: Tensor | None = None) -> Driven:
        """Return drift and diffusion along a data path, with all that no state decides worked out.

        Args:
            times: where they will be evaluated, (n,) increasing.
            control: X at these times, (n, batch, channels); None where none is read.

        Raises:
            UsageError: a path of another shape, or none where one is read.
        """
        reads = "control" in self.reads
        if reads and (control is None or control.shape[::2] != (len(times), self.channels)):
            given = "none" if control is None else tuple(control.shape)
            raise UsageError(
                f"a data path ({len(times)}, batch, {self.channels}) is read, and the one given is "
                f"{given}."
            )
        parameter = self.joined.weight
        waves = torch.stack((times.sin(), times.cos()), 1).to(parameter)
        width = self.joined.out_features
        known = self.joined.bias[None, None]
        first, second = self.joined.weight[:, :width], self.joined.weight[:, -width:]
        if hasattr(self, "embed_time"):
            known = known + (self.embed_time(waves) @ first.T)[:, None]
        if reads:
            assert control is not None
            known = known + self.embed_control(control.to(parameter)) @ second.T
        if "latent" in self.reads:
            known = known + first @ self.embed.bias
            mixing = first @ self.embed.weight
        else:
            mixing = parameter.new_zeros(width, self.hidden)
        net = self.noise_net(waves) if self.noise in ("net(t)", "net(t)z") else None
        return Driven(self, times, known.expand(len(times), -1, -1), mixing, waves, net)


def _known(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise unknown(what, given, known)


@dataclass
class Driven:
    """Drift and diffusion of a stable SDE along one batch of data paths; made by `along`.

    Args:
        sde: the networks.
        times: where it can be evaluated, (n,).
        known: what the first layer adds to the state's part, (n, batch or 1, width).
        mixing: the state's part of the first layer, (width, hidden).
        waves: sin t and cos t, (n, 2).
        net: n(t), (n, hidden), where the diffusion has one that reads time alone.
        lost: how many numbers of the diffusion were NaN and became 0 so far.
    """

    sde: StableSDE
    times: Tensor
    known: Tensor
    mixing: Tensor
    waves: Tensor
    net: Tensor | None
    lost: int = 0
    _number: dict[float, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._number = {float(t): k for k, t in enumerate(self.times.tolist())}

    def index(self, t: Tensor | float) -> int:
        """Return which of the times this is.

        Raises:
            UsageError: it is none of them.
        """
        k = self._number.get(float(t))
        if k is None:
            raise UsageError(
                f"t = {float(t):g} is none of the {len(self.times)} times that the data path was "
                "worked out at: pass the times of the solver's steps to `along`."
            )
        return k

    def raw(self, z: Tensor, k: int) -> Tensor:
        """Return γ(t_k, z̄), the network without what the class makes of it."""
        return self.sde.rest(z @ self.mixing.T + self.known[k])

    def drift(self, z: Tensor, t: Tensor | float) -> Tensor:
        """Return the drift, (batch, hidden)."""
        a = self.raw(z, self.index(t))
        if self.sde.variant == "pure":
            return z * a if self.sde.kind == "gsde" else a
        return (a * z.tanh() if self.sde.kind == "gsde" else a).tanh()

    def volatility(self, z: Tensor, t: Tensor | float) -> Tensor:
        """Return the diffusion before the runtime's tanh, NaN where it has no value."""
        k, sde = self.index(t), self.sde
        net = self.waves.new_zeros(()) if self.net is None else self.net[k]
        if "t,z" in sde.noise:
            net = sde.noise_net(torch.cat((self.waves[k].expand(len(z), 2), z), 1))
        return NOISES[sde.noise](At(z, self.times[k].to(z), sde.theta, net))

    def diffusion(self, z: Tensor, t: Tensor | float) -> Tensor:
        """Return the diffusion of each number's own noise, (batch, hidden).

        In the runtime variant NaN becomes 0, as in the public code, and is counted in `lost`. Only
        the unstable noises can make one, as drift and diffusion are bounded there.
        """
        made = self.volatility(z, t)
        if self.sde.variant == "pure":
            return made
        if self.sde.noise in UNSTABLE:
            bad = made.isnan()
            self.lost += int(bad.sum())
            made = made.masked_fill(bad, 0.0)
        return (self.sde.theta.sigmoid() * made).tanh()

    # -- the geometric one in its logarithm

    def log_drift(self, y: Tensor, sign: Tensor, t: Tensor | float) -> Tensor:
        """Return γ − σ²/2, the drift of log|z| in the pure geometric class."""
        k = self.index(t)
        sigma = self.log_diffusion(y, t)
        return self.raw(sign * y.exp(), k) - sigma.square() / 2

    def log_diffusion(self, y: Tensor, t: Tensor | float) -> Tensor:
        """Return σ(t), the diffusion of log|z|.

        Raises:
            UsageError: another class, or noise that is not z times a function of time.
        """
        if (self.sde.kind, self.sde.variant, self.sde.noise) != ("gsde", "pure", "net(t)z"):
            raise UsageError(
                "the logarithm of the state is for StableSDE('gsde', ..., variant='pure') and its "
                "own noise."
            )
        assert self.net is not None
        return self.net[self.index(t)].expand_as(y)


def logarithm(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return log|z| and the sign of z, in which a geometric SDE keeps its signs exactly.

    Raises:
        UsageError: a state of 0, which stays 0 forever.
    """
    if bool((z == 0).any()):
        raise UsageError(
            "a geometric SDE that starts at 0 stays there: let the first state be softplus(·) + "
            "1e-4."
        )
    return z.abs().log(), z.sign()
