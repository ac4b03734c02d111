"""Embedded pairs: explicit Runge-Kutta methods that estimate their own error, and interpolate.

Between the ends of a step y(θ) = y + h Σ_i b_i(θ) k_i, with b_i(θ) = Σ_p P_ip θ^p.

Sources: Bogacki & Shampine 1989 (3(2), cubic Hermite); Dormand & Prince 1980 with Shampine's
interpolant of order 4; Tsitouras 2011 with his own of order 4; Dormand & Prince 8(5,3) with the
interpolant of order 7 of Hairer, Nørsett & Wanner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pathline.solvers import dop853
from pathline.solvers.tableaux import Tableau


@dataclass(frozen=True)
class Pair(Tableau):
    """A tableau with a second result, and what interpolates between the ends of a step.

    Args:
        c, a, b, order, low, low_order: as `Tableau`.
        dense: P, a row for each stage (those of `extra` too), columns θ, θ², …
        extra_c: nodes of stages that only the interpolant needs.
        extra_a: their rows.
        coarse: weights of a second error, of a lower order, where the estimate mixes two:
            E = e₅² / √(e₅² + e₃²/100).
    """

    dense: tuple[tuple[float, ...], ...] = ()
    extra_c: tuple[float, ...] = ()
    extra_a: tuple[tuple[float, ...], ...] = ()
    coarse: tuple[float, ...] = ()

    @property
    def error(self) -> tuple[float, ...]:
        """The weights of the estimated error, b − b̂."""
        return tuple(b - low for b, low in zip(self.b, self.low, strict=True))

    @property
    def error_order(self) -> int:
        """The power of h with which the estimate falls."""
        return self.order if self.coarse else self.low_order + 1

    @property
    def stiffness(self) -> tuple[int, int] | None:
        """Two stages at the end of the step, whose difference tells how stiff the field is."""
        ends = [i for i, c in enumerate(self.c) if c == 1]
        return (ends[-2], ends[-1]) if len(ends) > 1 else None

    def weights(self, theta: Sequence[float]) -> list[list[float]]:
        """Return b_i(θ) for each stage and each θ."""
        return [
            [math.fsum(p * t ** (k + 1) for k, p in enumerate(row)) for t in theta]
            for row in self.dense
        ]


def _product(*factors: Sequence[float]) -> tuple[float, ...]:
    """Multiply polynomials, coefficients by rising power."""
    made: list[float] = [1.0]
    for factor in factors:
        longer = [0.0] * (len(made) + len(factor) - 1)
        for i, x in enumerate(made):
            for j, y in enumerate(factor):
                longer[i + j] += x * y
        made = longer
    return tuple(made)


def _tsitouras() -> tuple[tuple[float, ...], ...]:
    """Expand the interpolant of Tsitouras, which is published in factors."""
    square = (0.0, 0.0, 1.0)
    quartics = (
        _product((0.0, -1.0530884977290216), (-1.3299890189751412, 1.0),
                 (0.7139816917074209, -1.4364028541716351, 1.0)),
        _product((0.1017,), square, (1.2949852507374631, -2.1966568338249754, 1.0)),
        _product((2.490627285651252793,), square, (1.57803468208092486, -2.38535645472061657, 1.0)),
        _product((-16.54810288924490272,), square, (-1.21712927295533244, 1.0),
                 (-0.61620406037800089, 1.0)),
        _product((47.37952196281928122,), square, (-1.203071208372362603, 1.0),
                 (-0.658047292653547382, 1.0)),
        _product((-34.87065786149660974,), square, (-1.2, 1.0), (-2 / 3, 1.0)),
        _product((2.5,), square, (-1.0, 1.0), (-0.6, 1.0)),
    )  # fmt: skip
    return tuple(row[1:] for row in quartics)


def _order_seven() -> tuple[tuple[float, ...], ...]:
    """Write the interpolant of DOP853, which is nested in θ and 1 − θ, as powers of θ.

    y + θ(F_0 + (1−θ)(F_1 + θ(F_2 + (1−θ)(F_3 + …)))), F_0 = Δy, F_1 = h k_1 − Δy,
    F_2 = 2 Δy − h (k_1 + k_13), and the others h Σ D k.
    """
    n = len(dop853.C)
    step = [*dop853.A[12], *[0.0] * (n - 12)]
    first = [1.0, *[0.0] * (n - 1)]
    last = [*[0.0] * 12, 1.0, *[0.0] * (n - 13)]
    pieces: list[list[float]] = [
        step,
        [f - s for f, s in zip(first, step, strict=True)],
        [2 * s - f - e for s, f, e in zip(step, first, last, strict=True)],
        *[list(row) for row in dop853.DENSE],
    ]
    basis: list[tuple[float, ...]] = [(0.0, 1.0)]
    for k in range(1, len(pieces)):
        basis.append(_product(basis[-1], (1.0, -1.0) if k % 2 else (0.0, 1.0)))
    powers = len(basis[-1])
    return tuple(
        tuple(
            math.fsum(piece[i] * base[p] for piece, base in zip(pieces, basis, strict=True)
                      if p < len(base))
            for p in range(1, powers)
        )
        for i in range(n)
    )  # fmt: skip


_TSIT5 = (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
          2.324710524099774)  # fmt: skip
_TSIT5_ERROR = (-0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995,
                -0.1447110071732629, 0.5823571654525552, -0.45808210592918697, 1 / 66)  # fmt: skip

PAIRS: Mapping[str, Pair] = {
    "adaptive_heun": Pair(
        (0.0, 1.0), ((), (1.0,)), (0.5, 0.5), 2, (1.0, 0.0), 1, ((1.0, -0.5), (0.0, 0.5))
    ),
    "fehlberg2": Pair(
        (0.0, 0.5, 1.0),
        ((), (0.5,), (1 / 256, 255 / 256)),
        (1 / 512, 255 / 256, 1 / 512),
        2,
        (1 / 256, 255 / 256, 0.0),
        1,
        ((1.0, -511 / 512), (0.0, 255 / 256), (0.0, 1 / 512)),
    ),
    "bosh3": Pair(
        (0.0, 0.5, 0.75, 1.0),
        ((), (0.5,), (0.0, 0.75), (2 / 9, 1 / 3, 4 / 9)),
        (2 / 9, 1 / 3, 4 / 9, 0.0),
        3,
        (7 / 24, 1 / 4, 1 / 3, 1 / 8),
        2,
        ((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
    ),
    "dopri5": Pair(
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        5,
        (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
        4,
        (
            (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
            (0.0, 0.0, 0.0, 0.0),
            (
                0.0,
                131558114200 / 32700410799,
                -68118460800 / 10900136933,
                87487479700 / 32700410799,
            ),
            (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
            (
                0.0,
                127303824393 / 49829197408,
                -318862633887 / 49829197408,
                701980252875 / 199316789632,
            ),
            (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
            (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
        ),
    ),
    "tsit5": Pair(
        (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
        (
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (
                5.86145544294642,
                -12.92096931784711,
                8.159367898576159,
                -0.071584973281401,
                -0.028269050394068383,
            ),
            _TSIT5,
        ),
        (*_TSIT5, 0.0),
        5,
        tuple(b - e for b, e in zip((*_TSIT5, 0.0), _TSIT5_ERROR, strict=True)),
        4,
        _tsitouras(),
    ),
    "dop853": Pair(
        dop853.C[:13],
        dop853.A[:13],
        (*dop853.A[12], 0.0),
        8,
        tuple(b - e for b, e in zip((*dop853.A[12], 0.0), dop853.ERROR5, strict=True)),
        5,
        _order_seven(),
        dop853.C[13:],
        dop853.A[13:],
        dop853.ERROR3,
    ),
}
"""Pairs of methods that share their stages, by name."""
