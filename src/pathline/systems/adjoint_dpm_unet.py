"""AdjointDPM on a small conditional U-Net in float64, under guidance: all three kinds of leaves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from pathline.core import noise
from pathline.fields import Denoiser
from pathline.nets import UNet
from pathline.paths import VPLinear
from pathline.solvers import differentiate, grids, solve
from pathline.solvers.adjoints import Adjoint, Continuous
from pathline.steer import CFG

GUIDE = CFG(3.0)
SHAPE = 1, 8, 8
H = 1e-5


class Told(nn.Module):
    """A U-Net that is told a picture, as a second channel."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = UNet(channels=1, width=8, multipliers=(1, 2), blocks=1, time_scale=1000.0)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return self.inner(x + c, t)


@cache
def model() -> Denoiser:
    """Return the model; an untrained U-Net is the zero function, so its weights are drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Told()
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.1)
    null = torch.zeros(1, *SHAPE, dtype=torch.float64)
    return Denoiser(net.double().eval(), VPLinear(), "eps", null={"c": null}, shape=SHAPE)


def _loss(x: Tensor) -> Tensor:
    return (x - 0.3).square().mean()


def _inputs() -> tuple[Tensor, Tensor]:
    x, c = (noise.normal(range(2), SHAPE, stream="probe", index=i, dtype=torch.float64)
            for i in range(2))  # fmt: skip
    return x, c[:1]


def _gradients(adjoint: Adjoint | str, solver: str, n: int) -> list[Tensor]:
    """Return the gradients in noise and condition, and in the weights as one vector."""
    x, c = _inputs()
    found = differentiate(model(), x, _loss, wrt=("noise", "condition", "weights"), solver=solver,
                          grid=grids.log_snr(n), guide=GUIDE, adjoint=adjoint, c=c)  # fmt: skip
    assert found.noise is not None
    flat = torch.cat([g.flatten() for g in found.weights.values()])
    return [found.noise, found.condition["c"], flat]


def checkpoint_off(n: int = 4) -> float:
    """Return the largest relative error against central differences along random directions."""
    x, c = _inputs()
    net = model().network
    assert isinstance(net, nn.Module)
    leaves = [[x], [c], list(net.parameters())]
    found, worst = _gradients("checkpoint", "dpmpp_2m", n), 0.0
    for kind, mine in zip(leaves, found, strict=True):
        ways = [noise.normal([7], tuple(v.shape), stream="probe", dtype=torch.float64)[0]
                for v in kind]  # fmt: skip
        ends = [_moved(x, c, kind, ways, h, n) for h in (H, -H)]
        exact = (ends[0] - ends[1]) / (2 * H)
        along = float(mine.flatten() @ torch.cat([w.flatten() for w in ways]))
        worst = max(worst, abs(along - exact) / abs(exact))
    return worst


@torch.no_grad()
def _moved(
    x: Tensor, c: Tensor, kind: Sequence[Tensor], ways: Sequence[Tensor], h: float, n: int
) -> float:
    """Return the loss with some leaves moved by h along their ways."""
    for leaf, way in zip(kind, ways, strict=True):
        leaf += h * way
    made = solve(model(), x, solver="dpmpp_2m", grid=grids.log_snr(n), guide=GUIDE, c=c)
    for leaf, way in zip(kind, ways, strict=True):
        leaf -= h * way
    return float(_loss(made.x))


def continuous_off(n: int = 50) -> float:
    """Return the largest relative difference of the continuous adjoint and autograd, RK4."""
    pairs = zip(_gradients(Continuous("rk4", probe=0), "rk4", n),
                _gradients("direct", "rk4", n), strict=True)  # fmt: skip
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)
