"""Rules for stochastic equations: Runge-Kutta rows with products of diffusion and noise.

    x_new = Σ a x + Σ b f(x_k, t_k) + Σ c g(x_k, t_k)·w

The w are functionals of the Brownian motion over the step (`plan.Kind`). Derivatives of g are taken
by stages, never asked for. Without noise, on a plain field, each rule is the ordinary method that
it comes from; `tuned` looks up which noise a field has and which integral is meant, and refuses
what the rule would get wrong.

Strong orders on the noise that each takes (drift alone: `order`):

    ito_euler        Itô            ½, additive 1
    milstein         both           1 (general noise: with the Lévy area of a `Brownian`)
    srk              Itô            1.5 (additive: SRA1; diagonal, scalar: SRIW1)
    euler_heun       Stratonovich   1 if diagonal, scalar or additive, general ½
    stratonovich_rk  Stratonovich   as euler_heun, with any tableau
    slow_rk          Stratonovich   1.5 (diagonal, scalar or additive)
    reversible_heun  Stratonovich   ½, additive 1; exactly invertible
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from pathline.core.errors import UsageError, unknown
from pathline.fields import SDE, Field, View
from pathline.fields.sde import INTEGRALS, Integral, Noise
from pathline.solvers.plan import Coefficient, Kind, Product
from pathline.solvers.solver import Level, Solver, Writer, solvers
from pathline.solvers.tableaux import ALIASES, TABLEAUX, Tableau


@dataclass(frozen=True)
class Stochastic(Solver):
    """What rules for stochastic equations share.

    Args:
        noise: what the field's noise is; found by itself (`tuned`), None for a plain field.
        channels: the number of its Brownian motions, where the field says it.
    """

    integrals: ClassVar[tuple[Integral, ...]] = INTEGRALS
    noises: ClassVar[tuple[Noise, ...]] = ("diagonal", "scalar", "additive", "general")
    noise: Noise | None = None
    channels: int | None = None

    @property
    def view(self) -> View:
        return "velocity"

    @property
    def is_stochastic(self) -> bool:
        return self.noise is not None

    def tuned(self, field: Field, shape: Sequence[int]) -> Self:
        """Return the rule for the noise of this field.

        Raises:
            UsageError: noise that the rule does not take, or the other integral.
        """
        del shape
        if not isinstance(field, SDE):
            return self
        check_noise(field, type(self).__name__, self.noises)
        check_integral(field, type(self).__name__, self.integrals)
        return replace(self, noise=field.noise, channels=field.channels)

    def products(self, leg: int, terms: Mapping[tuple[int, Kind], float]) -> dict[Product, float]:
        """Return products over one leg; none on a plain field."""
        if self.noise is None:
            return {}
        return {Product(k, kind, leg): c for (k, kind), c in terms.items() if c}

    def check_direction(self, to: Writer) -> None:
        """Refuse to take an Itô equation back in time.

        Raises:
            UsageError: the grid does so.
        """
        forward = to.times[-1] >= to.times[0]
        if self.noise not in (None, "additive") and not forward:
            raise UsageError(
                f"the grid runs back from t = {to.times[0]:g} to {to.times[-1]:g}, and an Itô "
                "integral has a direction: give times that increase, or the Stratonovich "
                "equation, sde.stratonovich(), and a solver for it."
            )


def check_noise(field: SDE, who: str, noises: Sequence[Noise]) -> None:
    """Refuse noise that a solver does not take."""
    if field.noise not in noises:
        raise UsageError(
            f"{who} takes {' or '.join(noises)} noise, and this is {field.noise}; use "
            "euler_maruyama or milstein (Itô), heun or reversible_heun (Stratonovich)."
        )


def check_integral(field: SDE, who: str, integrals: Sequence[Integral]) -> None:
    """Refuse the other integral: the solver would converge to another process."""
    if field.noise == "additive" or field.sde_type in integrals:
        return
    (wanted,) = integrals
    said = {"ito": "Itô", "stratonovich": "Stratonovich"}
    assert field.sde_type is not None
    sign = "−" if wanted == "stratonovich" else "+"
    raise UsageError(
        f"{who} integrates {said[wanted]} equations, and this one is {said[field.sde_type]}: give "
        f"sde.{wanted}(), which adds {sign}½ Σ (∂g/∂x) g to the drift, or take a solver of the "
        f"other kind ({'heun, reversible_heun' if wanted == 'ito' else 'euler_maruyama, srk'})."
    )


@solvers.register("ito_euler", aliases=("maruyama",), paper="Kloeden & Platen 1992, Sec. 10.2")
@dataclass(frozen=True)
class ItoEuler(Stochastic):
    """Euler-Maruyama, x + h f + g ΔW; what `euler_maruyama` is on a field that has noise."""

    integrals: ClassVar[tuple[Integral, ...]] = ("ito",)

    @property
    def order(self) -> int:
        return 1

    def write(self, to: Writer) -> None:
        self.check_direction(to)
        for i, (s, t) in enumerate(to.intervals()):
            to.write(t.t, {i: 1.0}, {i: t.t - s.t}, g=self.products(i, {(i, "w"): 1.0}))


@solvers.register("milstein", paper="Kloeden & Platen 1992, Sec. 10.3 and 11.1")
@dataclass(frozen=True)
class Milstein(Stochastic):
    """Milstein's method without derivatives, for either integral: strong order one.

        x + h f + Σ_j g_j W_j + Σ_jk (g_k(x + √h g_j) − g_k(x)) I_jk / √h

    With diagonal or scalar noise I_jj = ½(W² − h) or ½W²; with general noise it is made of the
    Lévy area, and costs an evaluation of the diffusion for each of `channels` motions.

    Args:
        integral: which is meant; found by itself.
    """

    integral: Integral = "ito"

    @property
    def order(self) -> int:
        return 1

    def tuned(self, field: Field, shape: Sequence[int]) -> Self:
        made = super().tuned(field, shape)
        if not isinstance(field, SDE):
            return made
        if field.noise == "general" and field.channels is None:
            raise UsageError(
                "Milstein goes through the motions of general noise one by one: say how many "
                "there are, SDE(..., channels=m)."
            )
        return replace(made, integral=field.sde_type or "ito")

    def write(self, to: Writer) -> None:
        if self.integral == "ito":
            self.check_direction(to)
        at = 0
        for i, (s, t) in enumerate(to.intervals()):
            at = self._write_step(to, i, at, s.t, t.t)

    def _write_step(self, to: Writer, leg: int, at: int, s: float, t: float) -> int:
        h, root = t - s, math.sqrt(abs(t - s))
        first = self.products(leg, {(at, "w"): 1.0})
        if self.noise in (None, "additive"):
            return to.write(t, {at: 1.0}, {at: h}, g=first)
        g, ito = first, self.integral == "ito"
        if self.noise != "general":
            moved = to.write(s, {at: 1.0}, {}, g={Product(at, "one", leg): root}, lands=False)
            kind: Kind = "ww_ito" if ito else "ww"
            g = {**g, Product(moved, kind, leg): 1 / root, Product(at, kind, leg): -1 / root}
            return to.write(t, {at: 1.0}, {at: h}, g=g)
        kind = "ij_ito" if ito else "ij"
        for j in range(self.channels or 0):
            moved = to.write(s, {at: 1.0}, {}, g={Product(at, "unit", leg, j): root}, lands=False)
            g = {**g, Product(moved, kind, leg, j): 1 / root, Product(at, kind, leg, j): -1 / root}
        return to.write(t, {at: 1.0}, {at: h}, g=g)


@solvers.register("euler_heun", paper="Kloeden & Platen 1992, 11.1")
@dataclass(frozen=True)
class EulerHeun(Stochastic):
    """Euler in the drift and Heun in the noise: one evaluation of the drift a step, two of g."""

    integrals: ClassVar[tuple[Integral, ...]] = ("stratonovich",)

    @property
    def order(self) -> int:
        return 1

    def write(self, to: Writer) -> None:
        at = 0
        for i, (s, t) in enumerate(to.intervals()):
            h = t.t - s.t
            if self.noise is None:
                at = to.write(t.t, {at: 1.0}, {at: h})
                continue
            ahead = to.write(t.t, {at: 1.0}, {}, g=self.products(i, {(at, "w"): 1.0}), lands=False)
            g = self.products(i, {(at, "w"): 0.5, (ahead, "w"): 0.5})
            at = to.write(t.t, {at: 1.0}, {at: h}, g=g)


@solvers.register("stratonovich_rk", paper="Rümelin 1982; arXiv:2202.02435, Sec. 5.1")
@dataclass(frozen=True)
class StratonovichRK(Stochastic):
    """A Runge-Kutta method on f h + g ΔW: what `heun`, `rk4` … are where there is noise.

    Args:
        method: any tableau of order two or more, as for `RK`.
    """

    integrals: ClassVar[tuple[Integral, ...]] = ("stratonovich",)
    method: str = "heun"

    def __post_init__(self) -> None:
        name = ALIASES.get(self.method, self.method)
        if name not in TABLEAUX:
            raise unknown("Runge-Kutta method", self.method, [*TABLEAUX, *ALIASES])
        if TABLEAUX[name].order < 2:
            raise UsageError(
                f"{name} on a Stratonovich equation would converge to the Itô one; use heun, "
                "midpoint, euler_heun, or euler_maruyama for sde.ito()."
            )
        object.__setattr__(self, "method", name)

    @property
    def tableau(self) -> Tableau:
        """The method."""
        return TABLEAUX[self.method]

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def nfe_per_step(self) -> int:
        return len(self.tableau.b)

    def write(self, to: Writer) -> None:
        at = 0
        for i, (s, t) in enumerate(to.intervals()):
            at = self._write_step(to, i, at, s.t, t.t)

    def _write_step(self, to: Writer, leg: int, at: int, s: float, t: float) -> int:
        h, made = t - s, [at]
        for c, row in zip(self.tableau.c[1:], self.tableau.a[1:], strict=True):
            made.append(self._write(to, leg, s + c * h if c != 1 else t, made, row, h, False))
        return self._write(to, leg, t, made, self.tableau.b, h, True)

    def _write(  # noqa: PLR0913 - a row of a tableau
        self,
        to: Writer,
        leg: int,
        t: float,
        made: Sequence[int],
        weights: Sequence[float],
        h: float,
        lands: bool,
    ) -> int:
        used = {k: w for k, w in zip(made, weights, strict=True) if w}
        f: dict[int, Coefficient] = {k: h * w for k, w in used.items()}
        g = self.products(leg, {(k, "w"): w for k, w in used.items()})
        return to.write(t, {made[0]: 1.0}, f, g=g, lands=lands)


@dataclass(frozen=True)
class StrongRK(Stochastic):
    """What methods of strong order 1.5 share: motions commute, and the drift is asked twice."""

    noises: ClassVar[tuple[Noise, ...]] = ("diagonal", "scalar", "additive")

    @property
    def order(self) -> int:
        return 2

    @property
    def nfe_per_step(self) -> int:
        return 2


@solvers.register("srk", aliases=("sra1", "sriw1", "rossler"), paper="Rößler 2010 (SINUM 48)")
@dataclass(frozen=True)
class SRK(StrongRK):
    """Rößler's methods of strong order 1.5: SRA1 for additive noise, SRIW1 for diagonal or scalar.

    Two evaluations of the drift a step, and of the diffusion two (SRA1) or four (SRIW1). The
    iterated integral of time comes from the space-time Lévy area.
    """

    integrals: ClassVar[tuple[Integral, ...]] = ("ito",)

    def write(self, to: Writer) -> None:
        self.check_direction(to)
        at = 0
        for i, (s, t) in enumerate(to.intervals()):
            step = self._write_sriw1 if self.noise in ("diagonal", "scalar") else self._write_sra1
            at = step(to, i, at, s, t)

    def _write_sra1(self, to: Writer, leg: int, at: int, s: Level, t: Level) -> int:
        """x + h(⅓ f(x) + ⅔ f(H)) + g' W + (g − g') Z/h, H = x + ¾ h f(x) + 3/2 g' Z/h, g' at t'."""
        h = t.t - s.t
        if self.noise is None:
            middle = to.write(s.t + 0.75 * h, {at: 1.0}, {at: 0.75 * h}, lands=False)
            return to.write(t.t, {at: 1.0}, {at: h / 3, middle: 2 * h / 3})
        end = to.write(t.t, {at: 1.0}, {}, lands=False)  # for its time: g does not see the state
        g: dict[tuple[int, Kind], float] = {(end, "w"): 0.75, (end, "h"): 1.5}  # Z/h = ½W + H
        middle = to.write(
            s.t + 0.75 * h, {at: 1.0}, {at: 0.75 * h}, g=self.products(leg, g), lands=False
        )
        g = {(end, "w"): 0.5, (end, "h"): -1.0, (at, "w"): 0.5, (at, "h"): 1.0}
        f = {at: h / 3, middle: 2 * h / 3}
        return to.write(t.t, {at: 1.0}, f, g=self.products(leg, g))

    def _write_sriw1(self, to: Writer, leg: int, at: int, s: Level, t: Level) -> int:
        h, root = t.t - s.t, math.sqrt(t.t - s.t)

        def stage(c: float, f: Mapping[int, float], g: Mapping[tuple[int, Kind], float]) -> int:
            scaled = {k: h * a for k, a in f.items()}
            products = self.products(leg, g)
            return to.write(
                s.t + c * h if c != 1 else t.t, {at: 1.0}, scaled, g=products, lands=False
            )

        drift = stage(0.75, {at: 0.75}, {(at, "w"): 0.75, (at, "h"): 1.5})
        second = stage(0.25, {at: 0.25}, {(at, "one"): 0.5 * root})
        third = stage(1.0, {at: 1.0}, {(at, "one"): -root})
        fourth = stage(
            0.25, {at: 0.25},
            {(at, "one"): -5 * root, (second, "one"): 3 * root, (third, "one"): 0.5 * root},
        )  # fmt: skip
        g: dict[tuple[int, Kind], float] = {}
        weights = zip(
            (at, second, third, fourth),
            (-1, 4 / 3, 2 / 3, 0), (-1, 4 / 3, -1 / 3, 0),
            (2, -4 / 3, -2 / 3, 0), (-2, 5 / 3, -2 / 3, 1),
            strict=True,
        )  # fmt: skip
        for k, b1, b2, b3, b4 in weights:
            g |= {(k, "w"): b1 + b3 / 2, (k, "h"): b3}
            g |= {(k, "ww_ito"): b2 / root, (k, "www_ito"): b4 / h}
        f = {at: h / 3, drift: 2 * h / 3}
        return to.write(t.t, {at: 1.0}, f, g=self.products(leg, g))


@solvers.register("slow_rk", aliases=("slowrk",), paper="arXiv:2210.17543, eq. 6.2")
@dataclass(frozen=True)
class SlowRK(StrongRK):
    """SLOW-RK of Foster, dos Reis & Strange: strong order 1.5 on Stratonovich equations.

    Two evaluations of the drift a step, and five of the diffusion: RK4 along the noise from half a
    step of the drift, and the space-time Lévy area H where the two do not commute.

        x' = x + h (⅓ f(x) + ⅔ f(y)) + W (⅙ k₁ + ⅓ k₂ + ⅓ k₃ + ⅙ k₄) + 2 H (k₃ − k₅)
        k₁ = g(m),  k₂ = g(m + ½ W k₁),  k₃ = g(m + ½ W k₂),  k₄ = g(m + W k₃),  m = x + ½ h f(x)
        y = x + ¾ h f(x) + (¾ W + 3/2 H) k₃,        k₅ = g(x + h f(x) + ½ W k₂)

    The diffusion is diagonal, scalar or additive: motions have to commute. Without noise it is a
    method of order two.
    """

    integrals: ClassVar[tuple[Integral, ...]] = ("stratonovich",)

    def write(self, to: Writer) -> None:
        at = 0
        for i, (s, t) in enumerate(to.intervals()):
            at = self._write_step(to, i, at, s.t, t.t)

    def _write_step(self, to: Writer, leg: int, at: int, s: float, t: float) -> int:
        h = t - s

        def stage(c: float, g: Mapping[tuple[int, Kind], float]) -> int:
            products = self.products(leg, g)
            return to.write(
                s + c * h if c != 1 else t, {at: 1.0}, {at: c * h}, g=products, lands=False
            )

        g: dict[tuple[int, Kind], float] = {}
        if self.noise is not None:
            k = [stage(0.5, {})]
            for w in (0.5, 0.5, 1.0):
                k.append(stage(0.5, {(k[-1], "w"): w}))
            end = stage(1.0, {(k[1], "w"): 0.5})
            g = {(k[0], "w"): 1 / 6, (k[1], "w"): 1 / 3, (k[2], "w"): 1 / 3, (k[3], "w"): 1 / 6}
            g |= {(k[2], "h"): 2.0, (end, "h"): -2.0}
            y = stage(0.75, {(k[2], "w"): 0.75, (k[2], "h"): 1.5})
        else:
            y = stage(0.75, {})
        return to.write(t, {at: 1.0}, {at: h / 3, y: 2 * h / 3}, g=self.products(leg, g))
