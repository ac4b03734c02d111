"""Random words from counters, and Gaussians from words, by operations that round alike everywhere.

Integers agree on every device. So do +, −, ×, ÷ in float64 where each is a kernel of its own, and
changes of bits; a logarithm, a square root, a sine and a cosine are built here from these alone.

Arrays are NumPy's on a CPU, where a kernel starts in a quarter of the time of one of torch's, and
torch's elsewhere. Both have the operators that are used.

Paper: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box & Muller
1958.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any
"""Of NumPy or of torch: int64 or float64."""

MASK = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

_COSINE = [(-1) ** k / math.factorial(2 * k) for k in range(1, 9)]
_SINE = [(-1) ** k / math.factorial(2 * k + 1) for k in range(1, 9)]
"""Taylor coefficients of cos x and of sin x / x in x², from the second one on."""


def philox(counter: Sequence[Array], key: Sequence[Array]) -> tuple[Array, ...]:
    """Return the four words of Philox-4x32-10, as int64 arrays with values below 2³².

    Args:
        counter: four int64 arrays of 32-bit words (broadcastable).
        key: two int64 arrays of 32-bit words (broadcastable).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]  # wraps to the exact low 64 bits
        c0, c2 = _mixed(p1, c1, k0), _mixed(p0, c3, k1)
        c1, c3 = p1, p0  # their low halves count; the high ones are cut off when they are used
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return c0, c1 & MASK, c2, c3 & MASK


def _mixed(product: Array, word: Array, key: Array) -> Array:
    """Return the high half of a product, ⊕ a word ⊕ a key."""
    high = (product >> 32) ^ word ^ key
    high &= MASK
    return high


def gaussians(radius_word: Array, angle_word: Array) -> Array:
    """Return two normals for each pair of words, (2, ...): √(−2 log u) cos φ and … sin φ."""
    square = log(unit(radius_word))
    square *= -2.0
    pair = turn(angle_word)
    pair *= root(square)
    return pair


def stacked(arrays: Sequence[Array]) -> Array:
    """Return arrays along a new first axis."""
    return (torch if isinstance(arrays[0], Tensor) else np).stack([*arrays])


def unit(word: Array) -> Array:
    """Return (word + ½)/2³², in the open interval (0, 1)."""
    u = floats(word | _bits(2.0**52))
    u -= 2.0**52 - 0.5
    u *= 2.0**-32
    return u


def log(u: Array) -> Array:
    """Natural logarithm of positive float64 numbers, to about 2e-16.

    log(m·2ᵉ) = e log 2 + 2 artanh(s), s = (m − 1)/(m + 1), with m in [√½, √2).
    """
    least = _bits(math.sqrt(0.5))
    above = integers(u) - least
    exponent = above >> 52
    above &= _FRACTION
    above += least
    mantissa = floats(above)
    s = mantissa - 1
    mantissa += 1
    s /= mantissa
    square = s * s
    series = _horner([2 / (2 * k + 1) for k in range(1, 11)], square)
    series *= square
    series += 2
    series *= s
    exponent += _bits(1.5 * 2.0**52)
    total = floats(exponent)
    total -= 1.5 * 2.0**52
    total *= math.log(2)
    total += series
    return total


def root(x: Array) -> Array:
    """Square root of positive float64 numbers, to about 2e-16.

    `torch.sqrt` is not one on a CPU: MKL's differs from the rounded root in one of 80 numbers.
    Halved exponents give 1/√x to 4 %, and four of Newton's steps the rest; the sign of y changes
    with each, as y (h y² − 3/2) is one operation less than y (3/2 − h y²).
    """
    y = floats(0x5FE6EB50C7B537A9 - (integers(x) >> 1))
    half = x * 0.5
    for _ in range(4):
        step = half * y
        step *= y
        step -= 1.5
        y *= step
    found = x * y
    y *= 0.5
    excess = found * found
    excess -= x
    excess *= y
    found -= excess
    return found


def turn(word: Array) -> Array:
    """Return cos and sin of the angle 2π (word + ½)/2³², (2, ...).

    The top two bits choose the quadrant; the rest is an angle in (−π/4, π/4).
    """
    low = word & 0x3FFFFFFF
    low |= _bits(2.0**52)
    angle = floats(low)
    angle -= 2.0**52
    angle += 0.5 - 2.0**29
    angle *= math.pi * 2.0**-31
    square = angle * angle
    pair = stacked((square * _COSINE[-1], square * _SINE[-1]))
    for c, s in zip(_COSINE[-2::-1], _SINE[-2::-1], strict=True):
        pair[0] += c
        pair[1] += s
        pair *= square
    pair += 1
    pair[1] *= angle
    _in_quadrant(integers(pair), word)
    return pair


def _in_quadrant(pair: Array, word: Array) -> None:
    """Turn on the bits of cos and sin of an angle by 0, 1, 2 or 3 right angles, in place.

    In odd quadrants they change places, and the cosine its sign; beyond π both do.
    """
    odd = (word << 33) >> 63  # all bits or none
    other = pair[0] ^ pair[1]
    other &= odd
    pair ^= other
    sign = (word >> 31) << 63
    pair ^= sign
    odd <<= 63
    pair[0] ^= odd


def _horner(coefficients: Sequence[float], x: Array) -> Array:
    """Σ coefficients[k] x^k, highest power first in the evaluation."""
    *others, last = coefficients
    total = x * last
    for coefficient in others[:0:-1]:
        total += coefficient
        total *= x
    total += others[0]
    return total


def floats(bits: Array) -> Array:
    """Return the float64 numbers that have these bits."""
    return bits.view(torch.float64 if isinstance(bits, Tensor) else np.float64)


def integers(x: Array) -> Array:
    """Return the bits of float64 numbers."""
    return x.view(torch.int64 if isinstance(x, Tensor) else np.int64)


def _bits(x: float) -> int:
    return struct.unpack("<q", struct.pack("<d", x))[0]


_FRACTION = 2**52 - 1
