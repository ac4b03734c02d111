"""Brownian motion that can be asked again: bits, laws, and what holds between intervals."""

import math

import numpy as np
import pytest
import torch

from pathline.core import noise
from pathline.core.bridge import Piece, joined
from pathline.core.brownian import Brownian
from pathline.core.errors import UsageError
from pathline.core.refined import Refined

TIMES = (0.0, 0.13, 0.5, 0.8125, 1.7, 2.0)


def path(n=4, shape=(3,), **options):
    return Brownian(0.0, 2.0, tuple(range(n)), shape, **options)


@pytest.mark.parametrize("has_area", [False, True])
def test_what_is_asked_again_in_any_order_or_batch_has_the_same_bits(has_area):
    whole = path(has_area=has_area).at(TIMES)
    for i in (4, 2, 0, 5, 1, 3):
        assert torch.equal(path(has_area=has_area).at([TIMES[i]])[0], whole[i])
    assert torch.equal(path(has_area=has_area).at(TIMES[::-1]), whole.flip(0))
    alone = Brownian(0.0, 2.0, (2,), (3,), has_area=has_area)
    assert torch.equal(alone.at(TIMES), whole[:, 2:3])


def test_increments_add_up_and_areas_join():
    b = path(has_area=True)
    s, r, t = 0.13, 0.8, 1.7
    first, second, whole = (b.over(ends) for ends in ((s, r), (r, t), (s, t)))
    made = joined(Piece(first.w[0], first.h[0]), Piece(second.w[0], second.h[0]), r - s, t - r)
    assert (made.w - whole.w[0]).abs().max() < 1e-12  # rounding
    assert (made.h - whole.h[0]).abs().max() < 1e-12
    assert torch.equal(b(t, s), -b(s, t))


def test_the_law_is_that_of_brownian_motion():
    """20 000 paths; five standard errors each (false alarms below 1e-5 in all)."""
    n = 20_000
    b = Brownian(0.0, 2.0, tuple(range(n)), (), depth=6, has_area=True)
    for s, t in ((0.0, 0.7), (0.3, 1.5), (1.0, 1.25)):
        w, h = (v[0] for v in b.over((s, t)))
        error = math.sqrt(2 / n)
        assert float(w.var() / (t - s)) == pytest.approx(1, abs=5 * error)
        assert float(h.var() * 12 / (t - s)) == pytest.approx(1, abs=5 * error)
        assert abs(float(torch.corrcoef(torch.stack((w, h)))[0, 1])) < 0.03
        before, after = b(0.0, s), b(t, 2.0)
        for other in (before, after):
            if float(other.var()):
                assert abs(float((other * w).mean())) < 5 * math.sqrt((t - s) * 2 / n)


def test_levy_areas_obey_chen_and_have_their_variance():
    """E A² = h²/4 for two channels; the leaves miss h²/12 · leaf/h of it."""
    n = 4000
    b = Brownian(0.0, 1.0, tuple(range(n)), (2,), depth=5, has_area=True)
    whole, first, second = b.levy_area(0, 1), b.levy_area(0, 0.5), b.levy_area(0.5, 1)
    cross = b(0, 0.5)[:, :, None] * b(0.5, 1)[:, None]
    assert (whole - first - second - 0.5 * (cross - cross.mT)).abs().max() < 1e-12
    a = whole[:, 0, 1]
    assert float(a.var()) == pytest.approx(0.25 - 1 / 12 / 32, rel=6 * math.sqrt(3 / n))
    assert (b.levy_area(1, 0) + whole).abs().max() < 1e-12


@pytest.mark.parametrize("has_area", [False, True])
def test_a_finer_grid_refines_the_path_of_a_coarser_one(has_area):
    keys, coarse = noise.keys(range(3)), np.linspace(0, 1, 13) ** 1.5
    fine = np.sort(np.concatenate((coarse, (coarse[1:] + 2 * coarse[:-1]) / 3)))
    parts = [Refined(keys, (2,), g.tolist(), has_area, 2**15).block(0)[1] for g in (coarse, fine)]
    left, right = (torch.from_numpy(v)[:, None, None] for v in np.diff(fine).reshape(-1, 2).T)
    pairs = [None if v is None else v.unflatten(0, (-1, 2)) for v in parts[1]]
    halves = [Piece(*(None if v is None else v[:, i] for v in pairs)) for i in (0, 1)]
    made = joined(*halves, left, right)
    assert (made.w - parts[0].w).abs().max() < 1e-14
    if has_area:
        assert (made.h - parts[0].h).abs().max() < 1e-14


@pytest.mark.parametrize("ahead", [1, 8, 100, 2**15])
def test_blocks_of_any_size_hold_the_same_bits(ahead):
    keys, edges = noise.keys(range(3)), np.linspace(0, 1, 41).tolist()
    whole = Refined(keys, (2,), edges, True, 2**15).block(0)[1]
    source = Refined(keys, (2,), edges, True, ahead)
    for i in (39, 0, 17, 18, 5):
        first, piece = source.block(i)
        assert torch.equal(piece.w[i - first], whole.w[i])
        assert torch.equal(piece.h[i - first], whole.h[i])


def test_times_of_each_samples_own_are_on_the_same_path():
    b = path(has_area=True, depth=8)
    times = np.array([[0.1, 0.0, 1.0, 0.3], [0.4, 2.0, 1.5, 0.3000001], [2.0, 2.0, 1.6, 0.9]])
    each = b.each(times)
    for i in range(4):
        alone = b.over(times[:, i].tolist()) if i else b.over([0.1, 0.4, 2.0])
        assert (each.w[:, i] - alone.w[:, i]).abs().max() < 1e-12
    some = b.each(times[:, [2, 0]], np.array([2, 0]))
    assert torch.equal(some.w, each.w[:, [2, 0]])


def test_bad_paths_are_refused():
    with pytest.raises(UsageError, match=r"outside of the Brownian path's span \[0, 2\]"):
        path()(0.0, 2.5)
    with pytest.raises(UsageError, match="at finite times, and not at nan"):
        path()(0.0, float("nan"))
    with pytest.raises(UsageError, match="start < end"):
        Brownian(1.0, 1.0, (0,))
    with pytest.raises(UsageError, match="1 to 30"):
        Brownian(0.0, 1.0, (0,), depth=40)
    with pytest.raises(UsageError, match="has_area=True"):
        path().levy_area(0, 1)
    with pytest.raises(UsageError, match="seeds"):
        Brownian(0.0, 1.0, ())
