"""Stable neural SDEs on closed forms: what the claims that train nothing read, in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from pathline.core import noise
from pathline.domains.series import StableClassifier, frequencies, prepared
from pathline.fields import SDE
from pathline.fields.probes import probe
from pathline.fields.stable_sde import NOISES, At, Kind, logarithm
from pathline.solvers import grids, solve

STABLE: tuple[Kind, ...] = ("lsde", "lnsde", "gsde")


def ends(sde: SDE, x: Tensor, horizon: float, n: int, seed: int = 0) -> Tensor:
    """Return where Euler-Maruyama takes states, NaN and infinities among them."""
    grid = grids.uniform(n, start=0.0, end=horizon)
    with torch.no_grad():
        return solve(sde, x, solver="ito_euler", grid=grid, seed=seed, on_failure="return").x


def linear(drift: float, sigma: float, constant: float = 0.0) -> SDE:
    """Return dz = a z dt + (σ z + c) dW."""
    return SDE(lambda z, t: drift * z, lambda z, t: sigma * z + constant, noise="diagonal",
               sde_type="ito")  # fmt: skip


# -- 3: contraction


def pulling(z: Tensor, t: Tensor | float = 0.0) -> Tensor:
    """Return −1.5 z + 0.5 tanh z, whose one-sided constant is −1."""
    del t
    return -1.5 * z + 0.5 * z.tanh()


@cache
def contraction(horizon: float = 5.0, paths: int = 500) -> float:
    """Return the largest |Δ(T)|/|Δ(0)| of two states under the same noise."""
    sde = SDE(pulling, lambda z, t: 0.5 + 0 * z, noise="additive", sde_type="ito")
    first = noise.normal(range(paths), (2,), stream="data", dtype=torch.float64)
    pair = [ends(sde, first[:, i : i + 1] * 2, horizon, 1000) for i in range(2)]
    apart = (pair[0] - pair[1]).abs()[:, 0] / (2 * (first[:, 0] - first[:, 1]).abs())
    return float(apart.max())


def contraction_ratio() -> float:
    """Return that over e^(−m T), with the m that a probe finds in the drift."""
    line = torch.linspace(-10, 10, 2001, dtype=torch.float64)[:, None]
    return contraction() / probe(pulling, line).contraction(5.0)


# -- 4: linear noise


def exponent(horizon: float = 10.0, paths: int = 4000) -> float:
    """Return the Lyapunov exponent of dz = 0.5 z dt + 1.5 z dW, by Euler with h = 0.01."""
    n = round(horizon / 0.01)
    end = ends(linear(0.5, 1.5), torch.ones(paths, 1, dtype=torch.float64), horizon, n)
    return float(end.abs().clamp_min(1e-300).log().mean() / horizon)


def invariant_variance(paths: int = 40_000) -> float:
    """Return the variance of dz = −z dt + 0.7 dW after a long time, h = 0.01."""
    end = ends(linear(-1.0, 0.0, 0.7), torch.zeros(paths, 1, dtype=torch.float64), 4.0, 400)
    return float(end.var())


# -- 5: signs


def log_scheme_changes(paths: int = 2000) -> float:
    """Return how many states of the pure geometric class change their sign in its logarithm."""
    torch.manual_seed(0)
    net = StableClassifier("gsde", 1, 2, hidden=4, variant="pure")
    values = noise.normal(range(paths), (20, 1), stream="data", dtype=torch.float64)
    with torch.no_grad():
        net.sde.theta.fill_(1.0)
        for p in net.sde.noise_net.parameters():
            p.mul_(4.0)
    times = torch.linspace(0, 1, 20, dtype=torch.float64)
    driven = net.sde.along(times, torch.stack((times.expand(paths, 20), values[..., 0]), 2)
                           .transpose(0, 1))  # fmt: skip
    start = noise.normal(range(paths), (4,), stream="data", index=1)
    y, sign = logarithm(start)
    sde = SDE(lambda y, t: driven.log_drift(y, sign, t), driven.log_diffusion, noise="additive")
    with torch.no_grad():
        made = solve(sde, y, solver="ito_euler", grid=times.tolist(), seed=0, trajectory=True)
    assert made.trajectory is not None
    states = sign * made.trajectory.exp()
    return float((states.sign() != start.sign()).sum())


def zero_moves() -> float:
    """Return how far dz = z γ dt + σ z dW moves from 0."""
    return float(ends(linear(0.3, 2.0), torch.zeros(100, 4, dtype=torch.float64), 5.0, 50).abs()
                 .max())  # fmt: skip


CROSSINGS = {(1.0, 0.05): 5e-5, (1.0, 0.2): 0.03, (2.0, 0.2): 0.45}
"""σ and h → the share of paths that Euler takes across 0, as the specification saw it.

Of dz = 0.5 z dt + σ z dW up to T = 1, where 1 − (1 − Φ(−(1 + h/2)/(σ√h)))^(1/h) is exact: 4.6e-5,
0.034 and 0.44.
"""


# -- 6: bad diffusions


@cache
def broken(name: str, paths: int = 4000, sigma: float = 1.0) -> tuple[float, float]:
    """Return the shares of paths of dz = −z dt + g(z) dW that are NaN, or were beyond 10⁶.

    From z = 1 to T = 10 with h = 0.01; what is beyond is told by its later overflow too.
    """
    g = NOISES[name]
    one = torch.ones((), dtype=torch.float64) * sigma
    sde = SDE(lambda z, t: -z, lambda z, t: g(At(z, torch.as_tensor(t), one, one)),
              noise="diagonal", sde_type="ito")  # fmt: skip
    x = torch.ones(paths, 1, dtype=torch.float64)
    beyond = torch.zeros(paths, dtype=torch.bool)

    def watch(step: Any) -> None:
        nonlocal beyond
        beyond = beyond | (step.x[:, 0].abs() > 1e6)

    with torch.no_grad():
        end = solve(sde, x, solver="ito_euler", grid=grids.uniform(1000, start=0.0, end=10.0),
                    seed=0, observe=watch, on_failure="return").x  # fmt: skip
    return float(end.isnan().double().mean()), float(beyond.double().mean())


# -- 7: who reads the data


def influence(kind: Kind) -> float:
    """Return the largest derivative of the logits in the observation in the middle."""
    values, labels = frequencies(range(60))
    series = prepared((values[:40], labels[:40]), (values[40:], labels[40:]), classes=3).test
    torch.manual_seed(0)
    model = StableClassifier(kind, 2, 3).eval()
    with torch.enable_grad():
        observed = series.values.clone().requires_grad_()
        made = type(series)(series.times, observed, series.labels, 3)
        out = model(made, range(len(made))).square().sum()
        (slope,) = torch.autograd.grad(out, observed)
    return float(slope[:, slope.shape[1] // 2].abs().max())


@cache
def crossed(sigma: float, h: float) -> float:
    """Return the share of paths of dz = 0.5 z dt + σ z dW that Euler takes across 0 by T = 1."""
    paths, n = (10**6 if h < 0.1 else 20_000), round(1.0 / h)
    x = torch.ones(paths, 1, dtype=torch.float64)
    negative = torch.zeros(paths, dtype=torch.bool)

    def watch(step: Any) -> None:
        nonlocal negative
        negative = negative | (step.x[:, 0] < 0)

    with torch.no_grad():
        solve(linear(0.5, sigma), x, solver="ito_euler", grid=grids.uniform(n, start=0.0, end=1.0),
              seed=0, observe=watch)  # fmt: skip
    return float(negative.double().mean())
