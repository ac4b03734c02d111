"""Rates: how an error falls with the number of data, as a slope on logarithmic axes.

log error = a + b log n,   b fitted by least squares to the mean error of several seeds
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pathline.core.errors import CheckpointError, UsageError
from pathline.core.files import write_atomically
from pathline.core.progress import track

__all__ = ["Rate", "measure_rate"]


@dataclass(frozen=True, eq=False)
class Rate:
    """An error at several numbers of data.

    Args:
        sizes: n, those that were measured.
        errors: (sizes, seeds) float64.
        dropped: numbers of data that were asked for and are too few.
    """

    sizes: tuple[int, ...]
    errors: Tensor
    dropped: tuple[int, ...] = ()

    @property
    def means(self) -> Tensor:
        """The mean error at every n, (sizes,)."""
        return self.errors.mean(1)

    @property
    def slope(self) -> float:
        """The exponent b of error ∝ n^b."""
        return float(self._slopes(self.means[:, None])[0])

    @property
    def slope_error(self) -> float:
        """The standard error of the exponent, from those of single seeds; NaN for one seed."""
        each = self._slopes(self.errors)
        return float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan

    @property
    def table(self) -> str:
        """The errors as lines of text; what was left out is said."""
        rows = [f"{n:>8} {m:.4g} ± {s:.2g}" for n, m, s in zip(
            self.sizes, self.means.tolist(), self._spread.tolist(), strict=True)]  # fmt: skip
        rows += [f"{n:>8} dropped: fewer rows than the fit needs" for n in self.dropped]
        return "\n".join([*rows, f"   slope {self.slope:.3f} ± {self.slope_error:.2g}"])

    @property
    def _spread(self) -> Tensor:
        """The standard error of the mean at every n."""
        n = self.errors.shape[1]
        return self.errors.std(1) / math.sqrt(n) if n > 1 else self.errors[:, 0] * math.nan

    def _slopes(self, errors: Tensor) -> Tensor:
        """Return the least-squares slope of each column."""
        x = torch.tensor(self.sizes, dtype=torch.float64).log()
        x = x - x.mean()
        return x @ errors.log() / x.square().sum()


def measure_rate(
    measure: Callable[[int, int], float],
    sizes: Sequence[int],
    seeds: int = 8,
    *,
    dim: int = 0,
    keep: str | Path | None = None,
) -> Rate:
    """Return how an error depends on the number of data.

    Args:
        measure: (n, seed) → an error above 0: draws n data, fits, and says how far it is off.
        sizes: n, two or more.
        seeds: at each n.
        dim: d, what is fitted; n below 2d are dropped and reported, for they fit nothing.
        keep: a file of what has been measured, from which a call that was cut short goes on.

    Raises:
        UsageError: fewer than two sizes are left; an error that is not above 0.
        CheckpointError: the file is damaged.

    Example: the mean of n numbers.
        >>> from pathline.core import noise
        >>> def off(n, seed):
        ...     return float(noise.normal([seed], (n,), stream="data").mean().abs())
        >>> rate = measure_rate(off, (100, 1000, 10_000), seeds=64)
        >>> abs(rate.slope + 0.5) < 4 * rate.slope_error
        True
    """
    kept = tuple(n for n in sorted(sizes) if n >= max(2 * dim, 1))
    dropped = tuple(n for n in sorted(sizes) if n not in kept)
    if len(kept) < 2 or seeds < 1:
        why = f" ({', '.join(map(str, dropped))} are below 2d = {2 * dim})" if dropped else ""
        raise UsageError(f"a slope takes two sizes or more and a seed; {len(kept)} are left{why}.")
    known = {} if keep is None else _read(Path(keep))
    for n, seed in track([(n, s) for n in kept for s in range(seeds)], "rates"):
        if f"{n}:{seed}" in known:
            continue
        error = float(measure(n, seed))
        if not 0 < error < math.inf:
            raise UsageError(f"the error at n = {n}, seed {seed} is {error}: it has no logarithm.")
        known[f"{n}:{seed}"] = error
        if keep is not None:
            write_atomically(keep, json.dumps(known, indent=1) + "\n")
    errors = [[known[f"{n}:{seed}"] for seed in range(seeds)] for n in kept]
    return Rate(kept, torch.tensor(errors, dtype=torch.float64), dropped)


def _read(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    try:
        return {str(k): float(v) for k, v in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; remove it to begin again."
        ) from error
