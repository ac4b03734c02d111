"""Series with gaps: what is dropped, scaled and stretched; and the sets that aeon ships."""

import math

import pytest
import torch

import pathline as pl
from pathline.data import irregular, timeseries
from pathline.data.fetch import FetchError
from pathline.data.irregular import Scaler, drop, split, stretch


def series(n=20, length=40, channels=3):
    return torch.randn(n, length, channels, generator=torch.Generator().manual_seed(0)).double()


def test_each_channel_loses_its_share_and_at_other_times():
    values = series()
    left = drop(values, 0.3)
    gone = left.isnan()
    assert bool((gone.sum(1) == 12).all())
    assert torch.equal(left[~gone], values[~gone])
    # two channels lose 12 of 40 each: 3.6 in common on average, 12 if they were lost together
    common = (gone[..., 0] & gone[..., 1]).sum(1).double()
    assert abs(float(common.mean()) - 3.6) < 1.5  # 20 means of deviation 0.35
    both = drop(values, 0.3, together=True).isnan()
    assert bool((both == both[..., :1]).all()) and bool((both.sum(1) == 12).all())


def test_what_is_lost_depends_on_the_seed_and_the_series_alone():
    values = series()
    assert torch.equal(drop(values, 0.5, seed=3)[:4].isnan(), drop(values[:4], 0.5, seed=3).isnan())
    assert not torch.equal(drop(values, 0.5, seed=4).isnan(), drop(values, 0.5, seed=3).isnan())
    torch.testing.assert_close(drop(values, 0.0), values)


def test_padding_is_not_counted_and_one_observation_stays():
    values = series(4)
    values[1, 10:] = math.nan
    left = drop(values, 0.5).isfinite().sum(1)
    assert left[1].tolist() == [5, 5, 5] and left[0].tolist() == [20, 20, 20]
    assert bool((drop(values, 0.99).isfinite().sum(1) >= 1).all())


def test_the_scaler_sees_observed_training_values_only():
    values = 5 + 2 * series()
    left = drop(values, 0.5)
    scaler = Scaler.fit(left)
    made = scaler(left)
    kept = made[..., 1][made[..., 1].isfinite()]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-12)
    assert float(kept.std(correction=0)) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(scaler.inverse(made), left, equal_nan=True)
    assert Scaler.fit(torch.ones(2, 3, 1)).std.tolist() == [1.0]


def test_stretching_is_linear_and_keeps_the_ends():
    values = torch.full((2, 5, 1), math.nan, dtype=torch.float64)
    values[0, :3, 0] = torch.tensor([0.0, 1.0, 3.0])
    values[1, :, 0] = torch.arange(5.0)
    made = stretch(values, torch.tensor([3, 5]))
    assert made[0, :, 0].tolist() == [0.0, 0.5, 1.0, 2.0, 3.0]
    assert made[1, :, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    with pytest.raises(pl.UsageError, match="series 1 has a gap"):
        stretch(drop(values, 0.5), torch.tensor([2, 5]))


def test_a_split_has_every_class_in_its_share():
    labels = torch.arange(3).repeat_interleave(20)
    parts = split(labels)
    assert sorted(torch.cat(parts).tolist()) == list(range(60))
    assert [labels[p].bincount().tolist() for p in parts] == [[14] * 3, [3] * 3, [3] * 3]
    with pytest.raises(pl.UsageError, match="class 0 has 1 series"):
        split(torch.zeros(1).long())


def test_what_cannot_be_is_refused():
    values = series(3)
    with pytest.raises(pl.UsageError, match=r"missing rate is in \[0, 1\)"):
        drop(values, 1.0)
    with pytest.raises(pl.UsageError, match="channel 0 has no observation in any"):
        Scaler.fit(torch.full((2, 3, 1), math.nan))
    with pytest.raises(pl.UsageError, match=r"t\[1\] = 2 is followed by 2"):
        irregular.check_times(torch.tensor([0.0, 2.0, 2.0]), unit=False)
    with pytest.raises(pl.UsageError, match="time 1 is not finite"):
        irregular.check_times(torch.tensor([0.0, math.nan, 2.0]))
    with pytest.raises(pl.UsageError, match=r"pass \(t − t\[0\]\)"):
        irregular.check_times(torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(pl.UsageError, match="labels are 0 to 2, and that of series 1 is 3"):
        irregular.check_labels(torch.tensor([0, 3]), 3)
    with pytest.raises(pl.UsageError, match="labels are integers"):
        irregular.check_labels(torch.tensor([0.0, 1.0]), 3)
    with pytest.raises(pl.UsageError, match=r"\(n, length, channels\)"):
        drop(values[0], 0.5)


TS = """# a comment
@problemName Two
@timeStamps false
@classLabel true a b
@data
1,2,3:4,?,6:b
1,2:3,4:a
"""


def test_a_file_is_read(tmp_path):
    (tmp_path / "two.ts").write_text(TS)
    read = timeseries.read_ts(tmp_path / "two.ts")
    assert read.classes == ("a", "b") and read.labels.tolist() == [1, 0]
    assert read.lengths.tolist() == [3, 2] and read.values.shape == (2, 3, 2)
    assert read.values[0, 2].tolist() == [3.0, 6.0] and math.isnan(read.values[0, 1, 1])
    assert bool((read.values[1, 2] != read.values[1, 2]).all())


@pytest.mark.parametrize(("old", "new", "told"), [
    (":b\n", ":c\n", "line 6: the class 'c' is none of a, b"),
    ("1,2:3", "1,x:3", "line 7: could not convert"),
    ("@timeStamps false", "@timeStamps true", "time stamps"),
    ("@data", "@nothing", "no series"),
    ("1,2:3,4:a", "1,2:a", "series 1 has 1 channels"),
])  # fmt: skip
def test_a_file_that_contradicts_itself_is_refused(tmp_path, old, new, told):
    (tmp_path / "two.ts").write_text(TS.replace(old, new))
    with pytest.raises(pl.UsageError, match=told):
        timeseries.read_ts(tmp_path / "two.ts")


def test_the_shipped_sets_have_the_sizes_of_the_archive():
    """Sizes, lengths and classes: Bagnall et al. 2018 (arXiv:1811.00075), Tab. 1."""
    try:
        vowels, power = (timeseries.load(n) for n in ("JapaneseVowels", "ItalyPowerDemand"))
    except FetchError as error:
        pytest.skip(str(error))
    assert vowels.train_values.shape == (270, 26, 12) and vowels.test_values.shape == (370, 29, 12)
    assert (vowels.train_lengths.min(), vowels.test_lengths.max()) == (7, 29)
    assert len(vowels.classes) == 9 and set(vowels.test_labels) == set(range(9))
    assert power.train_values.shape == (67, 24, 1) and power.test_values.shape == (1029, 24, 1)
    with pytest.raises(pl.UsageError, match="did you mean GunPoint"):
        timeseries.load("GunPint")
