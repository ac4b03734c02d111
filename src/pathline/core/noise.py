"""Counter-based noise: a draw is a pure function of (seed, stream, index, coordinate).

Philox-4x32-10 (Salmon et al. 2011) turns a 128-bit counter and a 64-bit key into four 32-bit
words. The key is the sample's seed; the counter holds the coordinate block, the index of the draw
(a step, say) and the stream (what the draw is for). So a sample is the same alone, in any batch,
in any order, on any worker, and after a resume.

The words are integers and agree on every device. The Gaussians are made from them by Box-Muller
with a logarithm, a sine and a cosine built from correctly rounded operations alone (+, −, ×, ÷, √
in float64, each its own kernel), so they too are bitwise the same on every IEEE device, whatever
the batch, the alignment or the thread count. Library logarithms promise neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.core.errors import UsageError

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

_MASK = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CANDIDATES = 8
_ATTEMPTS = 16


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the four words of Philox-4x32-10, as int64 tensors with values below 2³².

    Args:
        counter: four int64 tensors of 32-bit words (broadcastable).
        key: two int64 tensors of 32-bit words (broadcastable).

    Paper: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]  # wraps to the exact low 64 bits
        c0 = ((p1 >> 32) & _MASK) ^ c1 ^ k0
        c2 = ((p0 >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


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
    low = torch.tensor([s & _MASK for s in seeds], dtype=torch.int64, device=device)[:, None]
    high = torch.tensor([s >> 32 for s in seeds], dtype=torch.int64, device=device)[:, None]
    return Keys(low, high)


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
    low, high = seeds if isinstance(seeds, Keys) else keys(seeds, device)
    block = torch.arange(n_blocks, dtype=torch.int64, device=device)[None]
    tag = torch.full((), STREAMS[stream], dtype=torch.int64, device=device)
    if not isinstance(index, Tensor):
        index = torch.full((), index, dtype=torch.int64, device=device)
    return torch.stack(philox((block & _MASK, block >> 32, index, tag), (low, high)), dim=1)


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
    size = math.prod(shape)
    w0, w1, w2, w3 = words(seeds, -(-size // 4), stream=stream, index=index, device=device).unbind(
        1
    )
    radius_word, angle_word = torch.stack((w0, w2), 1), torch.stack((w1, w3), 1)
    radius = _sqrt(-2.0 * _log((radius_word.to(torch.float64) + 0.5) * 2.0**-32))
    cosine, sine = _turn(angle_word)
    return _shaped(torch.cat((radius * cosine, radius * sine), 1), shape, size, dtype)


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
    return made.unflatten(0, (n, -1))


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
    accepted = (root > 0) & (_log(u) < z * z / 2 + d * (1 - v + _log(v)))
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
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise UsageError(f"seed {seed!r} is not an integer from 0 to 2⁶⁴ − 1.")


def _shaped(draws: Tensor, shape: Sequence[int], size: int, dtype: torch.dtype | None) -> Tensor:
    flat = draws.flatten(1)[:, :size]
    return flat.reshape(len(draws), *shape).to(dtype or torch.get_default_dtype())


def _log(u: Tensor) -> Tensor:
    """Natural logarithm of positive float64 numbers, to about 2e-16, in rounded operations only.

    log(m·2ᵉ) = e log 2 + 2 artanh(s), s = (m − 1)/(m + 1), with m in [√½, √2).
    """
    mantissa, exponent = torch.frexp(u)
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, mantissa * 2, mantissa)
    exponent = exponent.to(torch.float64) - small.to(torch.float64)
    s = (mantissa - 1) / (mantissa + 1)
    series = _horner([2 / (2 * k + 1) for k in range(1, 11)], s * s)
    return exponent * math.log(2) + s * (2 + s * s * series)


def _sqrt(x: Tensor) -> Tensor:
    """Square root of positive float64 numbers, to about 2e-16, in rounded operations only.

    `torch.sqrt` is not one on a CPU: MKL's differs from the rounded root in one of 80 numbers.
    Halved exponents give 1/√x to 4 %, and four of Newton's steps the rest.
    """
    y = (0x5FE6EB50C7B537A9 - (x.view(torch.int64) >> 1)).view(torch.float64)
    for _ in range(4):
        y = y * (1.5 - 0.5 * x * y * y)
    root = x * y
    return root + 0.5 * y * (x - root * root)


def _turn(word: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the angle 2π (word + ½)/2³², in rounded operations only.

    The top two bits choose the quadrant; the rest is an angle in (−π/4, π/4).
    """
    quadrant = word >> 30
    angle = ((word & 0x3FFFFFFF).to(torch.float64) + (0.5 - 2.0**29)) * (math.pi * 2.0**-31)
    square = angle * angle
    c = 1 + square * _horner([(-1) ** k / math.factorial(2 * k) for k in range(1, 9)], square)
    s = angle * (
        1 + square * _horner([(-1) ** k / math.factorial(2 * k + 1) for k in range(1, 9)], square)
    )
    odd = (quadrant & 1).bool()
    sign = 1.0 - 2.0 * (quadrant >> 1).to(torch.float64)
    return torch.where(odd, -s, c) * sign, torch.where(odd, c, s) * sign


def _horner(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Σ coefficients[k] x^k, highest power first in the evaluation."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total.mul_(x).add_(coefficient)
    return total
