"""DPM-Solver-v3: what is held constant over a step is measured on the model.

On M4 (`fields.problems`), VP-linear, 16 starts, log-SNR grid, float64, with statistics of 2048 data
on 320 intervals (the specification's 1280 change no digit that is held to anything). The solvers in
the comparisons are the paper's: without a corrector and without lower final orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from pathline.core import noise
from pathline.fields import Field, Gaussian
from pathline.fields.jvp import diagonal, exact_diagonal, jvp, time_per_log_snr
from pathline.fields.problems import m4
from pathline.learn.checkpoint import load_model
from pathline.paths import VPLinear
from pathline.solvers import (
    DDIM,
    DPMpp,
    DPMv3,
    EMSTable,
    Solver,
    calibrate,
    grids,
    sample,
    solve,
    solvers,
)
from pathline.solvers.reference import reference
from pathline.systems.convergence import Convergence, Method
from pathline.systems.endpoint import Endpoint
from pathline.systems.system import Claim, System, register

PATH = VPLinear()
M4 = m4(PATH)
LAW = Gaussian(
    PATH,
    torch.tensor([0.7, -0.4, 1.5], dtype=torch.float64),
    torch.tensor([0.09, 1.0, 4.0], dtype=torch.float64),
)


def rms(error: Tensor) -> float:
    """Return the root mean square."""
    return float(error.square().mean().sqrt())


def bare(order: int, table: EMSTable, **rest: str) -> Solver:
    """Return v3 without a corrector, unless asked for, and without lower final orders."""
    return replace(DPMv3(order, table, corrector="none", final="full"), **rest)


def taylor(order: int) -> Solver:
    """Return DPM-Solver++ as v3 would write it."""
    return DPMpp(order, expansion="taylor", final="full")


def statistics() -> EMSTable:
    """Return the statistics of M4, their Jacobians exact."""
    return calibrate(M4, M4.draw(range(2048)), 320, diagonal="exact")


def on_m4(table: EMSTable) -> Convergence:
    """Return the errors of all that is compared on M4."""
    methods: Mapping[str, Method] = {
        "DDIM": DDIM(),
        "++2M": taylor(2),
        "++3M": taylor(3),
        "UniPC-3": solvers.build("unipc_3", final="full"),
        **{f"v3-{order}": bare(order, table) for order in (1, 2, 3)},
        "v3-3, corrector of order 3": bare(3, table, corrector="same"),
        "v3-2, corrector of order 3": bare(2, table, corrector="higher"),
        "v3-3, corrector of order 4": bare(3, table, corrector="higher"),
        "pseudo v3-3": bare(3, table, derivatives="pseudo"),
        "v3-3, pseudo corrector": bare(3, table, corrector="pseudo"),
        "v3-2, pseudo corrector": bare(2, table, corrector="pseudo"),
    }
    return Convergence(M4, methods, steps=(5, 10, 20, 40, 80, 160))


@dataclass(frozen=True)
class Experiment:
    """What the claims read."""

    x: Tensor = field(default_factory=lambda: noise.normal(range(16), (3,), dtype=torch.float64))

    @cached_property
    def m4(self) -> Convergence:
        """Errors on M4."""
        return on_m4(statistics())

    @cached_property
    def gaussian(self) -> Mapping[int, float]:
        """Intervals of the table → error of one step of v3-1 over the whole path."""
        x = self.x * PATH.sigma(PATH.t_max)
        exact, data = LAW.flow(x, PATH.t_max, PATH.t_min), LAW.draw(range(512))
        tables = {n: calibrate(LAW, data, n) for n in (30, 120, 480)}
        return {
            n: rms(solve(LAW, x, solver=bare(1, table), steps=1).x - exact)
            for n, table in tables.items()
        }

    def worst_ratio(self, method: str, other: str, *nfe: int) -> float:
        """Return the largest of the method's errors over the other's."""
        return max(self.m4.ratio(method, other, n) for n in nfe)

    def pseudo_spread(self) -> float:
        """Return how far the orders of the pseudo variants are from 2."""
        names = [name for name in self.m4.methods if "pseudo" in name]
        return max(abs(self.m4.order(name) - 2) for name in names)

    def degeneracy(self, view: str) -> float:
        """Return how far v3 with constant statistics is from the solvers in x̂_0 or ε̂, 20 steps."""
        constants = {"x0": (1.0, 0.0), "eps": (0.0, -1.0)}[view]
        table, x = EMSTable.constant(PATH, *constants, n=2560), self.x * PATH.sigma(PATH.t_max)

        def apart(order: int) -> float:
            other = taylor(order) if view == "x0" else solvers.build("deis_lambda", order=order)
            a, b = (solve(M4, x, solver=s, steps=20).x for s in (bare(order, table), other))
            return float((a - b).abs().max())

        return max(apart(order) for order in (2, 3))

    @cached_property
    def biases(self) -> tuple[float, float]:
        """‖mean error‖/RMS of a step in the middle, from exact states: v3-1, and with s = b = 0."""
        first, last = PATH.log_snr_range()
        ends = (first + (last - first) * 600 / 1280, first + (last - first) * 700 / 1280)
        table = calibrate(M4, M4.draw(range(16384)), 50, diagonal="exact", ends=ends)
        times = PATH.time_of_log_snr(torch.tensor(ends, dtype=torch.float64)).tolist()
        own = range(20_000, 40_000)  # other data than the table's
        eps = noise.normal(own, (3,), stream="forward", dtype=torch.float64)
        x = PATH.noised(M4.draw(own), eps, times[0])
        exact = reference(M4, x, grid=grids.log_snr(10, *times), tolerance=1e-7)

        def bias(used: EMSTable) -> float:
            error = solve(M4, x, solver=bare(1, used), grid=grids.times(times)).x - exact
            return float(error.mean(0).norm() / error.square().sum(1).mean().sqrt())

        plain = replace(table, s=torch.zeros_like(table.s), b=torch.zeros_like(table.b))
        return bias(table), bias(plain)

    def probes_error(self) -> float:
        """Return how far l by 64 random probes a sample is from the exact one, RMS over nodes."""
        first, last = PATH.log_snr_range()
        levels = torch.linspace(first, last, 9, dtype=torch.float64)
        seeds, found = range(2048), []
        x0, eps = M4.draw(seeds), noise.normal(seeds, (3,), stream="forward", dtype=torch.float64)
        for t in PATH.time_of_log_snr(levels):
            x = PATH.noised(x0, eps, t)
            guess = diagonal(M4, x, t, seeds=seeds, n_probes=64, view="eps")
            exact = exact_diagonal(M4, x, t, view="eps")
            found.append(PATH.sigma(t) * (guess - exact).mean(0))
        return rms(torch.stack(found))

    def flow_derivative_error(self) -> float:
        """Return how far dε̂/dλ by JVP is from a central difference along the flow, h = 1e-3."""
        errors, h = [], 1e-3
        for level in torch.linspace(-4.0, 4.0, 9, dtype=torch.float64):
            t = PATH.time_of_log_snr(level)
            x = PATH.noised(M4.draw(range(16)), self.x, t)
            dt = time_per_log_snr(PATH, t)
            _, found = jvp(M4, x, t, dt * M4(x, t).velocity, dt, view="eps")
            ends = [_eps_after(M4, x, level, step) for step in (h, -h)]
            errors.append((found - (ends[0] - ends[1]) / (2 * h)).abs().max())
        return float(torch.stack(errors).max())

    def network_ratio(self) -> float:
        """Return v3's error over the best of ++2M and ++3M, at 5 and 6 evaluations of a network."""
        model = load_model("fashion")
        with torch.no_grad():
            data = sample(model, 512, steps=50, seed=1000).x
        ours, theirs = (
            DPMv3(table=calibrate(model, data, 120, method="difference")),
            (DPMpp(2), DPMpp(3)),
        )
        end, few = Endpoint(model), [grids.log_snr(n) for n in (5, 6)]
        return max(end.error(ours, g) / min(end.error(o, g) for o in theirs) for g in few)


def _eps_after(model: Field, x: Tensor, level: Tensor, step: float) -> Tensor:
    """Return ε̂ where the flow has carried x by a step in λ."""
    times = PATH.time_of_log_snr(torch.stack((level, level + step))).tolist()
    end = solve(model, x, solver="rk4", grid=grids.times(times)).x
    return model(end, times[1]).eps


CLAIMS = (
    Claim("gaussian", "one step of v3-1 over the whole path is exact on Gaussian data, but for the "
          "table: RMSE with 480 intervals", lambda e: e.gaussian[480], 1e-3, headline=True),
    Claim("gaussian-refined", "that error falls at least twelvefold with four times the intervals",
          lambda e: min(e.gaussian[30] / e.gaussian[120], e.gaussian[120] / e.gaussian[480]), 12.0,
          "higher", headline=True),
    Claim("first-order", "v3-1 makes at most half of DDIM's error on M4, at 5 to 80 evaluations",
          lambda e: e.worst_ratio("v3-1", "DDIM", 5, 10, 20, 40, 80), 0.5),
    Claim("second-order", "v3-2 makes at most 0.6 of ++2M's error on M4, at 5 to 40 evaluations",
          lambda e: e.worst_ratio("v3-2", "++2M", 5, 10, 20, 40), 0.6),
    Claim("order-1", "v3-1 converges with order 1 ± 0.25",
          lambda e: e.m4.order("v3-1"), 1.0, "equal", 0.25),
    Claim("order-2", "v3-2 converges with order 2 ± 0.25",
          lambda e: e.m4.order("v3-2"), 2.0, "equal", 0.25),
    Claim("order-3", "v3-3 converges with order 3 ± 0.25",
          lambda e: e.m4.order("v3-3"), 3.0, "equal", 0.25),
    # Of order 3 in the limit. But the corrector's term of h³ is a ninth of the predictor's (1/24 to
    # 3/8), so that of h⁴ still shows: the specification has 3.26 and 3.19 on these grids.
    Claim("order-3-corrected", "v3-3 with a corrector of order 3 converges a little faster than "
          "that here: 3.2 ± 0.25",
          lambda e: e.m4.order("v3-3, corrector of order 3"), 3.2, "equal", 0.25),
    Claim("order-2-corrected", "v3-2 with a corrector of order 3 converges with order 3 ± 0.25",
          lambda e: e.m4.order("v3-2, corrector of order 3"), 3.0, "equal", 0.25),
    Claim("order-pseudo", "pseudo predictors and correctors converge with order 2, to 0.25",
          Experiment.pseudo_spread, 0.25),
    Claim("degenerate-x0", "with statistics (1, 0, 0) v3 is DPM-Solver++",
          lambda e: e.degeneracy("x0"), 1e-11),
    Claim("degenerate-eps", "with statistics (0, −1, 0) v3 is the multistep solver in the noise",
          lambda e: e.degeneracy("eps"), 1e-11),
    Claim("bias", "the mean error of a step of v3-1 is a small part of its RMS",
          lambda e: e.biases[0], 0.03),
    Claim("bias-plain", "without s and b it is not", lambda e: e.biases[1], 0.05, "higher"),
    Claim("third-order-5", "at 5 evaluations v3-3 makes less error than ++3M on M4",
          lambda e: e.m4.ratio("v3-3", "++3M", 5), 1.0),
    Claim("third-order-10", "at 10 it makes more: on so smooth a field ++3M is better",
          lambda e: e.m4.ratio("v3-3", "++3M", 10), 1.0, "higher"),
    Claim("third-order-20", "and at 20",
          lambda e: e.m4.ratio("v3-3", "++3M", 20), 1.0, "higher"),
    Claim("corrected", "with its corrector v3-3 makes at most 0.6 of the error of UniPC-3, "
          "which has one too, at 5 to 80 evaluations",
          lambda e: e.worst_ratio("v3-3, corrector of order 4", "UniPC-3", 5, 10, 20, 40, 80), 0.6),
    Claim("probes", "l by 64 random probes a sample is the exact one to 0.02",
          Experiment.probes_error, 0.02),
    Claim("flow-derivative", "the derivative along the flow is that of a central difference",
          Experiment.flow_derivative_error, 1e-6),
    # The specification proposes this and has not measured it. Here it fails (1.31): in five or six
    # steps of a network the third order extrapolates too far. With the one number for all elements
    # that is shipped, order 3 makes 1.34 and 1.99 of the best ++'s error, and order 2 with a pseudo
    # corrector 0.79 and 0.97 (16 noises, 5 and 6 evaluations).
    Claim("network", "on the fashion model v3 makes at most 0.9 of the squared error of the best "
          "of ++2M and ++3M, at 5 and 6 evaluations",
          Experiment.network_ratio, 0.9, needs="training"),
)  # fmt: skip

register(System(
    slug="dpm-solver-v3",
    title="DPM-Solver-v3",
    paper="Zheng et al. 2023, arXiv:2310.13268",
    summary="Fewer network calls, from statistics that are measured once on the model.",
    experiment=Experiment,
    claims=CLAIMS,
    plots=lambda e: (e.m4.plot("DPM-Solver-v3 on M4, VP-linear, uniform in log-SNR"),),
))  # fmt: skip
