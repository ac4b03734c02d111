"""diffrax's side of bench sde: geometric Brownian motion, compiled once for a number of steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor

METHODS = ("euler", "milstein", "slow_rk")

DRIFT = NOISE = 0.5


@lru_cache
def _solved(method: str, n: int, batch: int, d: int) -> Any:
    """Return a compiled function of keys: the ends of sample paths, and W at the end of each."""
    jax, dfx = import_module("jax"), import_module("diffrax")
    jnp = import_module("jax.numpy")
    jax.config.update("jax_enable_x64", True)

    is_ito = method != "slow_rk"
    rate = DRIFT if is_ito else DRIFT - 0.5 * NOISE**2
    solver = {"euler": dfx.Euler, "milstein": dfx.ItoMilstein, "slow_rk": dfx.SlowRK}[method]()
    area = dfx.BrownianIncrement if is_ito else dfx.SpaceTimeLevyArea

    def one(key: Any) -> Any:
        x = jnp.ones(d)
        bm = dfx.VirtualBrownianTree(0.0, 1.0, tol=1 / n, shape=(d,), key=key, levy_area=area)
        drift = dfx.ODETerm(lambda t, y, args: rate * y)
        noise = dfx.ControlTerm(lambda t, y, args: _diagonal(NOISE * y), bm)
        sol = dfx.diffeqsolve(
            dfx.MultiTerm(drift, noise), solver, 0.0, 1.0, dt0=1 / n, y0=x, max_steps=n + 1,
            saveat=dfx.SaveAt(t1=True), adjoint=dfx.DirectAdjoint(),
        )  # fmt: skip
        return sol.ys[0], bm.evaluate(0.0, 1.0)

    def _diagonal(v: Any) -> Any:
        lineax = import_module("lineax")
        return lineax.DiagonalLinearOperator(v)

    made = jax.jit(jax.vmap(one))
    keys = jax.random.split(jax.random.key(0), batch)
    return lambda: jax.block_until_ready(made(keys))


def run_of(x: Tensor, method: str) -> Callable[[int], object]:
    """Return what draws diffrax's sample paths; the first call of a number of steps compiles."""
    return lambda n: _solved(method, n, *x.shape)()


def error_of(x: Tensor, method: str) -> Callable[[int], float]:
    """Return diffrax's strong error along the paths that it draws."""

    def error(n: int) -> float:
        ends, w = (np.asarray(v) for v in _solved(method, n, *x.shape)())
        exact = np.exp(DRIFT - 0.5 * NOISE**2 + NOISE * w)
        return float(np.sqrt(np.mean(np.square(ends - exact))))

    return error
