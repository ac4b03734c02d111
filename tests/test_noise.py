"""Counter-based noise: published vectors, exact arithmetic, and independence of everything else."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pathline.core import UsageError, noise, philox

# Philox-4x32-10 in the known-answer file of Random123: counter, key → words.
VECTORS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_words(counter, key, expected):
    for make in (torch.tensor, np.array):
        arrays = [[make([w]) for w in group] for group in (counter, key)]
        assert [w.item() for w in philox.philox(*arrays)] == expected


def test_normals_are_box_muller_of_the_words():
    """The same formula with the standard library's functions agrees to float64 rounding."""
    words = noise.words([3, 2**63 + 5], 2, stream="step", index=9, device="cpu")
    drawn = noise.normal([3, 2**63 + 5], (8,), stream="step", index=9, dtype=torch.float64)
    for sample in range(2):
        for half, (radius_word, angle_word) in enumerate([(0, 1), (2, 3)]):
            for block in range(2):
                u = (int(words[sample, radius_word, block]) + 0.5) / 2**32
                turn = (int(words[sample, angle_word, block]) + 0.5) / 2**32 - 1 / 8
                radius = math.sqrt(-2 * math.log(u))
                pair = radius * math.cos(2 * math.pi * turn), radius * math.sin(2 * math.pi * turn)
                at = 2 * half + block
                assert drawn[sample, at] == pytest.approx(pair[0], rel=1e-13, abs=1e-14)
                assert drawn[sample, at + 4] == pytest.approx(pair[1], rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 63, 64, 65, 3072])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_is_bitwise_the_same_alone_in_any_batch_in_any_order(size, dtype):
    seeds = [11, 4, 2**64 - 1, 0, 7]
    together = noise.normal(seeds, (size,), dtype=dtype)
    backwards = noise.normal(seeds[::-1], (size,), dtype=dtype)
    for i, seed in enumerate(seeds):
        alone = noise.normal([seed], (size,), dtype=dtype)[0]
        assert torch.equal(together[i], alone)
        assert torch.equal(backwards[-1 - i], alone)


def test_thread_count_does_not_matter():
    torch.set_num_threads(2)
    try:
        two = noise.normal(range(60), (9001,))  # many enough for threads to share them
    finally:
        torch.set_num_threads(1)
    assert torch.equal(two, noise.normal(range(60), (9001,)))


def test_arrays_of_numpy_and_of_torch_give_the_same_bits():
    """A CPU makes them with one and every other device with the other."""
    words = noise.words(range(50), 500, stream="step", index=3, device="cpu")[:, :2].unbind(1)
    one, other = philox.gaussians(*words), philox.gaussians(*(w.numpy() for w in words))
    assert np.array_equal(one.numpy(), other)


def test_many_draws_at_once_are_those_of_each_alone():
    keys = noise.keys([3, 2**40])
    for size in (1, 3, 9000):  # the last one takes two pieces
        together = noise.normals(keys, (size,), [5, 0, 9], stream="step")
        for made, index in zip(together, (5, 0, 9), strict=True):
            assert torch.equal(made, noise.normal(keys, (size,), stream="step", index=index))


def test_streams_and_indices_and_seeds_are_different_draws():
    base = {"stream": "step", "index": 0}
    draws = [
        noise.normal([1], (64,), **base),
        noise.normal([2], (64,), **base),
        noise.normal([1], (64,), stream="initial", index=0),
        noise.normal([1], (64,), stream="step", index=1),
        noise.normal([1 + 2**32], (64,), **base),
    ]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert not (a == b).any()


def test_the_draws_are_standard_normal_and_uniform():
    """Kolmogorov-Smirnov at 1e-6 with fixed seeds: a false alarm would have shown already."""
    normal = noise.normal(range(100), (2000,), dtype=torch.float64)
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-6
    uniform = noise.uniform(range(100), (2000,), dtype=torch.float64)
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-6
    assert uniform.min() > 0 and uniform.max() < 1
    # correlations between neighbours, and between the two halves of Box-Muller
    flat = normal.numpy()
    for lag in (1, 500, 1000):
        r = float((flat[:, :-lag] * flat[:, lag:]).mean())
        assert abs(r) < 5 / math.sqrt(flat[:, lag:].size)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", True])
def test_a_seed_is_an_integer_below_two_to_the_64(seed):
    with pytest.raises(UsageError, match="not an integer from 0"):
        noise.normal([seed], (2,))


def test_square_roots_are_those_of_the_reals():
    """Within two roundings of the root in extended precision, wherever a radius squared is."""
    x = torch.exp(torch.linspace(math.log(2.0**-32), math.log(46.0), 100_001, dtype=torch.float64))
    exact = np.sqrt(x.numpy().astype(np.longdouble))
    assert np.abs(philox.root(x).numpy() / exact - 1).max() <= 2 * 2.0**-53


@pytest.mark.gpu
def test_words_and_normals_are_bitwise_the_same_on_the_gpu():
    for dtype in (torch.float32, torch.float64):
        cpu = noise.normal(range(5), (3, 33, 31), dtype=dtype)
        gpu = noise.normal(range(5), (3, 33, 31), dtype=dtype, device="cuda")
        assert torch.equal(cpu, gpu.cpu())
