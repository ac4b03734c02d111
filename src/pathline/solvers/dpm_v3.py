"""DPM-Solver-v3: what is held constant over a step is measured on the model, not chosen.

With the model's statistics (`ems`) the probability flow over a step s → t is, exactly,

    x_t = α_t A [x_s/α_s − U − ∫ e^{L+S} g dλ],     g_i = e^{S_s − S_i} f_i − B̂(λ_i)
    f_i = ((1 − l_i) x_i/α_i) − x̂_0(x_i)

and g is replaced by the polynomial through its last values: g ≈ Σ ĝ^(k) (λ − λ_s)^k/k!, so
∫ = Σ ĝ^(k) E_k. All of it is linear in states and predictions, but for a constant.

The corrector repeats the step with g at its end among the values, and keeps that value: the
corrected state and the prediction at the uncorrected one go on together, at no extra evaluation.

Paper: Zheng et al. 2023 (arXiv:2310.13268), Eq. 9 and 15, Alg. 1 and 2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

from torch import Tensor

from pathline.core.errors import UsageError
from pathline.fields import Denoiser, Field
from pathline.fields.views import View
from pathline.paths import GaussianPath
from pathline.paths.path import LOWEST_LOG_SNR
from pathline.solvers.ems import EMSTable, table_of
from pathline.solvers.exponential import FEW_STEPS, Final
from pathline.solvers.phi import derivative_weights
from pathline.solvers.plan import Coefficient
from pathline.solvers.solver import Level, Solver, Writer, check_order, solvers

Derivatives = Literal["full", "pseudo"]
Corrector = Literal["higher", "same", "pseudo", "none"]

STANDARD_NODES = 1280
"""Intervals of the closed-form table that the solver is measured with where no model is at hand."""


class Known(NamedTuple):
    """A node at which the field is, or is about to be, known.

    Args:
        node: its number in the table.
        state: the number of the state at which the field is evaluated.
        level: α and σ there.
    """

    node: int
    state: int
    level: Level


@solvers.register(
    "dpm_v3",
    aliases=("DPM-Solver-v3", "dpm_solver_v3"),
    paper="arXiv:2310.13268",
)
@dataclass(frozen=True)
class DPMv3(Solver):
    """DPM-Solver-v3: multistep in a parametrisation measured on the model beforehand.

    Choose it for 5 to 10 evaluations of a model that has a table (`pathline tune MODEL` makes one,
    `calibrate` in Python); order 2 under guidance. The grid is moved to the table's nodes.

    Args:
        order: 1, 2 or 3.
        table: the statistics; None for those saved beside the model, a checksum for exactly those.
        derivatives: of the predictor, "full" (from all its points) or "pseudo" (the k-th from the
            k + 1 nearest, of order two, steadier at 5 evaluations).
        corrector: of one order "higher" than the predictor, of the "same" (the paper's), one
            higher but "pseudo" (the paper's for latent and guided models), or "none".
        window: the times between which the corrector works; (0, 0.5) is the paper's half-corrector
            for large guidance.
        final: as for DPMpp.
    """

    order: int = 3  # pyright: ignore[reportIncompatibleMethodOverride]
    table: EMSTable | str | None = None
    derivatives: Derivatives = "full"
    corrector: Corrector = "higher"
    window: tuple[float, float] = (0.0, 1.0)
    final: Final = "auto"

    def __post_init__(self) -> None:
        check_order("DPMv3", self.order, (1, 2, 3))
        if self.derivatives not in ("full", "pseudo"):
            raise UsageError(f"derivatives={self.derivatives!r}: choose 'full' or 'pseudo'.")
        if self.corrector not in ("higher", "same", "pseudo", "none"):
            raise UsageError(f"corrector={self.corrector!r}: choose higher, same, pseudo or none.")
        if self.final not in ("auto", "full", "lower"):
            raise UsageError(f"final={self.final!r}: choose 'auto', 'full' or 'lower'.")
        if not _is_window(self.window):
            raise UsageError(f"window is two rising times in [0, 1], and is {self.window!r}.")
        if self.corrector == "same" and self.order == 1:
            warnings.warn(
                "a corrector of order 1 does nothing: take corrector='higher' or 'pseudo'.",
                stacklevel=3,
            )

    @property
    def convergence(self) -> int:
        full = self.derivatives == "full"
        predicted = self.order if full else min(self.order, 2)
        if self.corrector == "none" or self._corrects_with(self.order, self.window[0]) == 0:
            return predicted
        corrected = {"higher": self.order + 1, "pseudo": 2}.get(self.corrector, self.order)
        return min(corrected, predicted + 1)

    @property
    def view(self) -> View:
        return "x0"

    @property
    def is_exact_on_points(self) -> bool:
        return False  # only with the statistics of that point

    def tuned(self, field: Field, shape: Sequence[int]) -> Solver:
        if field.path is None:
            return self  # refused when it is compiled, as for every solver that needs a path
        table = self.table
        if not isinstance(table, EMSTable):
            details = field.details if isinstance(field, Denoiser) else {}
            found = table_of(details)
            if found is None:
                raise UsageError(_LACKING)
            if table is not None and table != found.checksum:
                raise UsageError(
                    f"the statistics beside the model ({found.checksum[:12]}…) are not those that "
                    f"were asked for ({table[:12]}…)."
                )
            table = found
            _check_weights(table, details.get("weights"))
        table.check_shape(shape)
        _check_path(table, field.path)
        return replace(self, table=table)

    def standard(self, path: GaussianPath | None) -> Solver:
        """Return the solver with the statistics of standard normal data."""
        return self if path is None else replace(self, table=_standard(path))

    def write(self, to: Writer) -> None:
        if not isinstance(self.table, EMSTable) or to.path is None:
            raise UsageError(_LACKING)
        _check_path(self.table, to.path)
        nodes = self._snap(self.table, to)
        steps = list(to.intervals())
        at, known = 0, [Known(nodes[0], 0, to.levels[0])]
        for i, (_, t) in enumerate(steps):
            order = self._order_at(i, len(steps))
            goal = Known(nodes[i + 1], len(to.rows) + 1, t)
            higher = self._corrects_with(order, t.t) if i < len(steps) - 1 else 0
            pseudo = self.derivatives == "pseudo"
            self._write(to, at, known[:order], goal, pseudo=pseudo, lands=not higher)
            if higher:
                points = [known[0], goal, *known[1 : higher - 1]]
                pseudo = self.corrector == "pseudo"
                self._write(to, at, points, goal, pseudo=pseudo, lands=True)
            at, known = len(to.rows), [goal, *known[:3]]

    def _snap(self, table: EMSTable, to: Writer) -> list[int]:
        """Move the grid to nodes of the table, and return their numbers."""
        assert to.path is not None
        levels = to.levels[:-1] if to.denoises else to.levels
        nodes = [0 if _is_noise(level, table) else table.nearest(level.log_snr) for level in levels]
        if len(set(nodes)) < len(nodes):
            raise UsageError(
                f"two of {len(nodes) - 1} steps fall on one node of the table, which has "
                f"{len(table.log_snr)}; take fewer steps, or calibrate with more nodes."
            )
        snapped = table.log_snr[nodes]
        times = to.path.time_of_log_snr(snapped).tolist()
        close = [1e-9 * table.spacing >= abs(d) for d in _distances(levels, snapped)]
        to.move(
            [a.t if is_close else t for a, t, is_close in zip(levels, times, close, strict=True)]
        )
        return nodes

    def _write(
        self,
        to: Writer,
        at: int,
        points: Sequence[Known],
        goal: Known,
        *,
        pseudo: bool,
        lands: bool,
    ) -> None:
        """Write the step from state `at` with g at these points, the start of the step first."""
        assert isinstance(self.table, EMSTable)
        table, (start, *others) = self.table, points
        nodes = [p.node for p in points]
        found = table.integrals(start.node, goal.node, nodes, len(points))
        x, f = {at: found.decay * (goal.level.alpha / start.level.alpha)}, dict[int, Tensor]()
        constant = -goal.level.alpha * found.decay * found.bias
        offsets = [float(table.log_snr[p.node] - table.log_snr[start.node]) for p in others]
        weights = _weights(found.weights, offsets, pseudo)
        for point, weight in zip(points, weights, strict=True):
            w = goal.level.alpha * found.decay * weight
            moved, n = w * found.growth[point.node], point.state
            f[n] = moved
            x[n] = x.get(n, 0.0) - moved * (1 - table.l[point.node]) / point.level.alpha
            constant = constant + w * found.offset[point.node]
        to.write(
            goal.level.t,
            {n: _coefficient(c) for n, c in x.items()},
            {n: _coefficient(c) for n, c in f.items()},
            lands=lands,
            constant=_coefficient(constant),
        )

    def _order_at(self, i: int, n: int) -> int:
        lowers = self.final == "lower" or (self.final == "auto" and n < FEW_STEPS)
        return min(self.order, i + 1, n - i if lowers else self.order)

    def _corrects_with(self, predicted: int, t: float) -> int:
        """Return the order of the corrector after a predictor of this order; 0 for none."""
        order = {"none": 0, "higher": predicted + 1, "pseudo": predicted + 1}
        inside = self.window[0] <= t <= self.window[1]
        found = order.get(self.corrector, predicted)
        return found if inside and found > 1 else 0


_LACKING = (
    "dpm_v3 needs the model's statistics, and this model has none: make them with `pathline tune "
    "MODEL`, or in Python with calibrate(model, data) and DPMv3(table=...)."
)


def _is_window(given: object) -> bool:
    if not isinstance(given, Sequence) or len(given) != 2:
        return False
    first, last = given
    are_numbers = isinstance(first, float | int) and isinstance(last, float | int)
    return are_numbers and 0 <= first < last <= 1


@lru_cache(maxsize=16)
def _standard(path: GaussianPath) -> EMSTable:
    return EMSTable.gaussian(path, n=STANDARD_NODES)


def _is_noise(level: Level, table: EMSTable) -> bool:
    """Whether a level has no more signal than where log-SNR grids begin, and the table does."""
    first = float(table.log_snr[0])
    return first <= LOWEST_LOG_SNR and (not level.alpha or level.log_snr < first)


def _distances(levels: Sequence[Level], log_snr: Tensor) -> list[float]:
    """Return how far levels are from these λ; where α = 0, infinitely."""
    pairs = zip(levels, log_snr.tolist(), strict=True)
    return [level.log_snr - own if level.alpha else math.inf for level, own in pairs]


def _weights(integrals: Sequence[Tensor], offsets: Sequence[float], pseudo: bool) -> list[Tensor]:
    """Return the weight of g at the start and at each offset: Σ_k E_k d_ki."""
    weights = [integrals[0], *[integrals[0] * 0] * len(offsets)]
    for k in range(1, len(integrals)):
        used = offsets[:k] if pseudo else offsets
        for i, a in enumerate(derivative_weights(used, k), 1):
            weights[i] = weights[i] + integrals[k] * a
            weights[0] = weights[0] - integrals[k] * a
    return weights


def _coefficient(c: Tensor) -> Coefficient:
    """Return one number as such, and one an element as a tensor of the state's shape."""
    return c if c.ndim else float(c)


def _check_path(table: EMSTable, path: GaussianPath) -> None:
    if table.path != path:
        raise UsageError(
            f"the statistics were measured on {table.path}, and the model is on {path}."
        )


def _check_weights(table: EMSTable, weights: object) -> None:
    """Refuse the statistics of other weights, where both are known."""
    found = weights.get("sha256") if isinstance(weights, dict) else None
    if table.weights and found and table.weights != found:
        raise UsageError(
            f"the statistics beside the model were measured on other weights "
            f"({table.weights[:12]}…, now {str(found)[:12]}…); run `pathline tune` again."
        )
