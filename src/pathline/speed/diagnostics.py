"""Diagnostics of chains: how many independent draws they are worth, and whether they drift."""

from __future__ import annotations

import torch
from torch import Tensor


def autocorrelation(trace: Tensor) -> Tensor:
    """Return the autocorrelation of chains about their common mean, (n,), averaged over chains.

    Args:
        trace: (n, chains), one scalar of each state.
    """
    n = len(trace)
    centred = (trace.double() - trace.double().mean()).T
    spectrum = torch.fft.rfft(centred, 2 * n)
    covariance = torch.fft.irfft(spectrum.abs() ** 2, 2 * n)[:, :n].mean(0) / n
    return covariance / covariance[0]


def effective_sample_size(trace: Tensor) -> float:
    """Return how many independent draws the chains are worth together, as seen in one scalar.

    n · chains / (1 + 2 Σ_k ρ_k), summed while the sums of two neighbours stay positive.

    Args:
        trace: (n, chains), n ≥ 4; a constant trace is worth nothing less than all its draws.

    Paper: Geyer 1992, "Practical Markov chain Monte Carlo" (initial positive sequence).
    """
    if float(trace.double().var()) == 0:
        return float(trace.numel())
    rho = autocorrelation(trace)
    pairs = rho[: len(rho) // 2 * 2].reshape(-1, 2).sum(1)
    positive = (pairs > 0).long().cumprod(0).bool()
    time = 2 * float(pairs[positive].sum()) - 1
    return trace.numel() / max(time, 1.0)


def drift(trace: Tensor) -> float:
    """Return by how many standard errors the last quarter of a trace lies above the first.

    The standard errors are those between chains, which are independent.

    Args:
        trace: (n, chains), n ≥ 4.
    """
    quarter = max(len(trace) // 4, 1)
    rise = (trace[-quarter:].double().mean(0) - trace[:quarter].double().mean(0)).cpu()
    error = float(rise.std()) / len(rise) ** 0.5 if len(rise) > 1 else 0.0
    return float(rise.mean()) / error if error else 0.0
