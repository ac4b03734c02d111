"""Counter-based noise: a draw is a pure function of (seed, stream, index, coordinate).

Philox-4x32-10 (Salmon et al. 2011) turns a 128-bit counter and a 64-bit key into four 32-bit
words. The key is the sample's seed; the counter holds the coordinate block, the index of the draw
(a step, say) and the stream (what the draw is for). So a sample is the same alone, in any batch,
in any order, on any worker, and after a resume.

The words are integers and agree on every device; the Gaussians are made from them by Box-Muller, in
operations that round alike everywhere (`core.philox`). So they too are bitwise the same on every
IEEE device, whatever the batch, the alignment or the thread count. Library logarithms promise
neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.core.philox import MASK, Array, gaussians, log, philox, stacked

STREAMS = {
    "initial": 0,
    "step": 1,
    "forward": 2,
    "probe": 3,
    "chain": 4,
    "choice": 5,
    "derived": 6,
    "data": 7,
    "corrector": 8,
    "radius": 9,
    "brownian": 10,
}
"""What a draw is for: the start of a solve, noise inside it, forward diffusion, probe vectors, the
moves of a Markov chain and its choices, seeds made from seeds, data of a known law, corrections
between steps, the radius of noise that is not Gaussian, Brownian motion."""

_PIECE = 2**13
"""Blocks that a CPU makes at once: all that they need meanwhile stays in its cache."""

_SHARED = 2**17
"""Blocks from which on threads share the work."""

_CANDIDATES = 8
_ATTEMPTS = 16


class Keys(NamedTuple):
    """Seeds on a device, as the low and high words of Philox's key, each (batch, 1) int64."""

    low: Tensor
    high: Tensor


def keys(seeds: Sequence[int], device: torch.device | str = "cpu") -> Keys:
    """Return seeds as keys; draws from them copy nothing to the device.

    Raises:
        UsageError: a seed that is not an integer from 0 to 2⁶⁴ − 1.
    """
    check_seeds(seeds)
    words = np.array([*seeds], dtype=np.uint64)[:, None]
    low, high = (torch.from_numpy(part.astype(np.int64)) for part in (words & MASK, words >> 32))
    return Keys(low.to(device), high.to(device))


def words(
    seeds: Sequence[int] | Keys,
    n_blocks: int,
    *,
    stream: str,
    index: int | Tensor,
    device: torch.device | str,
) -> Tensor:
    """Return random 32-bit words, (batch, 4, n_blocks) int64.

    Args:
        seeds: one integer a sample, 0 ≤ seed < 2⁶⁴; or the keys made of them.
        n_blocks: blocks of four words a sample.
        stream: what the draw is for, a key of `STREAMS`.
        index: which draw of that stream, 0 ≤ index < 2³²; (batch, 1) int64 for one a sample.
        device: where the words are made; the values do not depend on it.
    """
    place = _place(seeds, n_blocks, stream, index, device)
    out = torch.empty(len(place[-1]), 4, n_blocks, dtype=torch.int64, device=device)
    _fill(out, place, lambda *four: stacked(four))
    return out


def _place(
    seeds: Sequence[int] | Keys,
    n_blocks: int,
    stream: str,
    index: int | Tensor,
    device: torch.device | str,
) -> tuple[Tensor, ...]:
    """Return counter and key of all blocks, six words that broadcast to (batch, n_blocks)."""
    low, high = seeds if isinstance(seeds, Keys) else keys(seeds, device)
    block = torch.arange(n_blocks, dtype=torch.int64, device=device)[None]
    tag = torch.full((1, 1), STREAMS[stream], dtype=torch.int64, device=device)
    if not isinstance(index, Tensor):
        index = torch.full((1, 1), index, dtype=torch.int64, device=device)
    return block & MASK, block >> 32, index, tag, low, high


def _fill(out: Tensor, place: Sequence[Tensor], make: Callable[..., Array]) -> None:
    """Write what is made of the words of every block.

    Args:
        out: (batch, k, n_blocks).
        place: counter and key, as `_place` returns them.
        make: from four words to k arrays like them, (k, ...).
    """
    if out.device.type != "cpu":
        out.copy_(make(*philox(place[:4], place[4:])).transpose(0, 1))
        return

    def put(piece: tuple[slice, slice]) -> None:
        into = out[piece[0], :, piece[1]]
        is_high = into.shape[0] > into.shape[2]  # a kernel likes a long last axis
        cut = [_cut(word, *piece) for word in place]
        arrays = [(word.T if is_high else word).numpy() for word in cut]
        made = torch.from_numpy(make(*philox(arrays[:4], arrays[4:]))).to(out.dtype)
        if not is_high:
            into.copy_(made.transpose(0, 1))
        elif into.is_contiguous():  # a matrix is turned in tiles
            into.flatten(1).copy_(made.flatten(0, 1).T)
        else:
            into.copy_(made.permute(2, 0, 1))

    batch, _, n_blocks = out.shape
    pieces, threads = _pieces(batch, n_blocks), torch.get_num_threads()
    if threads == 1 or batch * n_blocks < _SHARED:
        for piece in pieces:
            put(piece)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(put, pieces))


def _pieces(batch: int, n_blocks: int) -> list[tuple[slice, slice]]:
    """Return the rows and columns that are made at once."""
    wide = max(1, min(n_blocks, _PIECE))
    high = max(1, _PIECE // wide)
    rows = [slice(r, r + high) for r in range(0, batch, high)]
    columns = [slice(c, c + wide) for c in range(0, n_blocks, wide)]
    return [(r, c) for r in rows for c in columns]


def _cut(word: Tensor, rows: slice, columns: slice) -> Tensor:
    """Return a part of a word that may be one for all rows or columns."""
    word = word[rows] if len(word) > 1 else word
    return word[:, columns] if word.shape[1] > 1 else word


def uniform(
    seeds: Sequence[int],
    shape: Sequence[int],
    *,
    stream: str = "initial",
    index: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return uniform draws in the open interval (0, 1), (batch, *shape); see `normal`."""
    size = math.prod(shape)
    bits = words(seeds, -(-size // 4), stream=stream, index=index, device=device)
    draws = (bits.to(torch.float64) + 0.5) * 2.0**-32
    return _shaped(draws, shape, size, dtype)


def normal(
    seeds: Sequence[int] | Keys,
    shape: Sequence[int],
    *,
    stream: str = "initial",
    index: int | Tensor = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return standard normal draws, (batch, *shape).

    Args:
        seeds: one integer a sample, 0 ≤ seed < 2⁶⁴; sample i depends on seeds[i] alone. Or `keys`.
        shape: the shape of one sample.
        stream: what the draw is for, a key of `STREAMS`.
        index: which draw of that stream (the step, for a stochastic solver); as for `words`.
        dtype: of the result (the default dtype if None); drawn in float64, then rounded once.
        device: where the draws are made; the values do not depend on it.

    Raises:
        UsageError: a seed that is not an integer from 0 to 2⁶⁴ − 1.

    >>> together = normal([7, 8], (3,))
    >>> torch.equal(together[1:], normal([8], (3,)))
    True
    """
    size, dtype = math.prod(shape), dtype or torch.get_default_dtype()
    n_blocks = -(-size // 4)
    place = _place(seeds, n_blocks, stream, index, device)
    out = torch.empty(len(place[-1]), 4, n_blocks, dtype=dtype, device=device)
    _fill(out, place, _normal)
    return _shaped(out, shape, size, dtype)


def _normal(w0: Array, w1: Array, w2: Array, w3: Array) -> Array:
    """Return the four normals of a block; cosines first."""
    pairs = gaussians(stacked((w0, w2)), stacked((w1, w3)))
    return pairs.reshape(4, *w0.shape)


def normals(
    keys: Keys,
    shape: Sequence[int],
    indices: Sequence[int],
    *,
    stream: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return what `normal` draws at each of these indices, (indices, batch, *shape), at once.

    The values are the same to the bit; for small samples it takes a fraction of the time.
    """
    device, n = keys.low.device, len(indices)
    which = torch.tensor(indices, dtype=torch.int64, device=device)
    which = which.repeat_interleave(len(keys.low))[:, None]
    every = Keys(keys.low.repeat(n, 1), keys.high.repeat(n, 1))
    made = normal(every, shape, stream=stream, index=which, dtype=dtype, device=device)
    return made.unflatten(0, (n, len(keys.low)))


def rademacher(
    seeds: Sequence[int],
    shape: Sequence[int],
    *,
    stream: str = "probe",
    index: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return ±1 with equal chances, (batch, *shape); see `normal`."""
    u = uniform(seeds, shape, stream=stream, index=index, dtype=torch.float64, device=device)
    return torch.where(u < 0.5, -1.0, 1.0).to(dtype or torch.get_default_dtype())


def chi_square(
    seeds: Sequence[int],
    dof: float,
    *,
    least: float = 0.0,
    index: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return draws of χ² with any dof > 0, (batch,) float64, from the stream "radius".

    Of a row of candidates, each accepted with a chance of 0.95 or more, the first is taken. From
    dof = 2 on it is made of rounded operations, as normals are; below, a power is not.

    Args:
        seeds: one a sample.
        dof: the degrees of freedom, whole or not.
        least: smaller draws are drawn anew: the law is cut off there.
        index: which draw.
        device: where.

    Paper: Marsaglia & Tsang 2000, "A simple method for generating gamma variables".
    """
    found = torch.full((len(seeds),), least, dtype=torch.float64, device=device)
    missing = torch.arange(len(seeds), device=device)
    for attempt in range(_ATTEMPTS):  # all but one sample in 1e10 are done after one
        rows = missing.tolist()
        if not rows:
            break
        drawn, accepted = _gammas([seeds[i] for i in rows], dof / 2, index * 32 + attempt, device)
        accepted &= 2 * drawn >= least
        first = accepted.int().argmax(1, keepdim=True)
        done = accepted.any(1)
        found[missing[done]] = 2 * drawn.gather(1, first)[done, 0]
        missing = missing[~done]
    return found


def _gammas(
    seeds: Sequence[int], shape: float, index: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Return candidates for a gamma variable, (batch, n) float64, and which of them count.

    d v with v = (1 + z/√9d)³ counts if log u < z²/2 + d (1 − v + log v); d is shape − 1/3. A shape
    below 1 is one more, times a power of another uniform number.
    """
    n, raised = _CANDIDATES, shape + (shape < 1)
    z = normal(seeds, (n,), stream="radius", index=2 * index, dtype=torch.float64, device=device)
    u, w = uniform(
        seeds, (2, n), stream="radius", index=2 * index + 1, dtype=torch.float64, device=device
    ).unbind(1)
    d = raised - 1 / 3
    root = 1 + z * (1 / math.sqrt(9 * d))  # a GPU divides by a number by multiplying
    v = root.clamp(min=1e-8) ** 3
    accepted = (root > 0) & (log(u) < z * z / 2 + d * (1 - v + log(v)))
    drawn = d * v
    return (drawn if shape >= 1 else drawn * w ** (1 / shape)), accepted


def derived_seeds(seeds: Sequence[int], index: int) -> list[int]:
    """Return fresh seeds, one for each: for the index-th of several solves with one sample's seed.

    >>> derived_seeds([7], 0) != derived_seeds([7], 1)
    True
    """
    check_seeds(seeds)
    made = words(seeds, 1, stream="derived", index=index, device="cpu")[:, :2, 0].tolist()
    return [low | high << 32 for low, high in made]


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that are not integers from 0 to 2⁶⁴ − 1."""
    if {*map(type, seeds)} <= {int} and (not seeds or 0 <= min(seeds) <= max(seeds) < 2**64):
        return
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise UsageError(f"seed {seed!r} is not an integer from 0 to 2⁶⁴ − 1.")


def _shaped(draws: Tensor, shape: Sequence[int], size: int, dtype: torch.dtype | None) -> Tensor:
    flat = draws.flatten(1)[:, :size]
    return flat.reshape(len(draws), *shape).to(dtype or torch.get_default_dtype())
