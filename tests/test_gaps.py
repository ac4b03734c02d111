"""Series of which a part is to be said: sets, models, the bound; R's files they come from."""

import lzma
import math
import struct
import zlib

import numpy as np
import pytest
import torch

import pathline as pl
from pathline.core import noise
from pathline.data import irregular, liver
from pathline.data.fetch import FetchError
from pathline.data.rdata import read_table, unserialize
from pathline.domains import series as s
from pathline.domains.series.gaps import started
from pathline.domains.series.outlook import between

# -- R's format, written by hand after "R Internals", section 1.8


def word(n):
    return struct.pack(">i", n)


def text(t):
    return word(9 | 1 << 18) + word(len(t)) + t.encode()


def strings(*ts):
    return word(16) + word(len(ts)) + b"".join(map(text, ts))


def named(values, *names):
    """A list with the attribute "names", a chain of one tagged value."""
    tag = word(1) + text("names")
    return (
        word(19 | 512)
        + word(len(values))
        + b"".join(values)
        + (word(2 | 1024) + tag + strings(*names) + word(254))
    )


def reals(*xs):
    return word(14) + word(len(xs)) + struct.pack(f">{len(xs)}d", *xs)


def wholes(*xs):
    return word(13) + word(len(xs)) + struct.pack(f">{len(xs)}i", *xs)


HEAD = b"X\n" + word(2) + word(0x40201) + word(0x20300)
NONE = -(2**31)
TABLE = HEAD + named([reals(1.5, math.nan), wholes(7, NONE)], "a", "b")


@pytest.mark.parametrize("compressed", [1, 2, 3])
def test_a_table_of_an_r_package_is_read(tmp_path, compressed):
    packed = {
        1: zlib.compress(TABLE),
        2: b"0" + TABLE,
        3: b"Z" + lzma.compress(TABLE, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]),
    }[compressed]
    piece = word(len(TABLE)) + packed
    index = HEAD + named([named([wholes(3, len(piece))], "t"), wholes(compressed)],
                         "variables", "compressed")  # fmt: skip
    import gzip

    (tmp_path / "Rdata.rdx").write_bytes(gzip.compress(index))
    (tmp_path / "Rdata.rdb").write_bytes(b"..." + piece)
    table = read_table(tmp_path, "t")
    np.testing.assert_array_equal(table["a"], [1.5, math.nan])
    np.testing.assert_array_equal(table["b"], [7.0, math.nan])
    with pytest.raises(pl.UsageError, match="unknown data set 'u'"):
        read_table(tmp_path, "u")
    with pytest.raises(pl.UsageError, match="has no data of an R package"):
        read_table(tmp_path / "nowhere", "t")


def test_rows_that_are_counted_are_unfolded_and_others_refused():
    """Row names are kept as (n, first, step) since R 3.5."""
    what = word(2) + word(1) + text("compact_intseq") + word(254)
    state = reals(3, 5, 2)
    made = unserialize(HEAD + word(238) + what + state + word(254))
    assert made.tolist() == [5, 7, 9]
    with pytest.raises(pl.UsageError, match="kind 25 is in no table"):
        unserialize(HEAD + word(25))
    with pytest.raises(pl.UsageError, match="binary format"):
        unserialize(b"A\n")


def test_the_patients_are_those_of_the_trial():
    """312 patients and 1945 visits, 140 deaths and 29 transplants: survival's own page of it."""
    try:
        data = liver.load()
    except FetchError as error:
        pytest.skip(str(error))
    assert int(np.isfinite(data.days).sum()) == 1945 and len(data.days) == 312
    assert np.bincount(data.outcomes).tolist() == [143, 29, 140]
    assert bool((np.diff(data.days) > 0)[np.isfinite(np.diff(data.days))].all())
    # the first patient's first visit, as it is printed in Fleming and Harrington 1991, App. D
    bilirubin, albumin = (liver.VARIABLES.index(name) for name in ("bili", "albumin"))
    assert data.values[0, 0, [bilirubin, albumin]].tolist() == [14.5, 2.6]
    parts = s.patients()
    assert sum(map(len, parts)) == int((np.isfinite(data.days).sum(1) >= 4).sum())
    assert all(bool(part.asked.any(2).any(1).all()) for part in parts)
    assert bool(parts.test.control.value(0.5).isfinite().all())


# -- sets


def walks(n=60, length=20, channels=2):
    return noise.normal(range(n), (length, channels), dtype=torch.float64).cumsum(1)


def test_visits_go_to_the_nearest_time_and_what_meets_is_averaged():
    when = torch.tensor([[0.0, 2.4, 2.6, math.nan]], dtype=torch.float64)
    values = torch.tensor([[[1.0], [2.0], [4.0], [9.0]]], dtype=torch.float64)
    made = irregular.onto_grid(values, when, 5, end=8.0)  # times 0, 2, 4, 6, 8
    np.testing.assert_array_equal(made[0, :, 0], [1, 3, math.nan, math.nan, math.nan])
    with pytest.raises(pl.UsageError, match="from 0 to 2 .series 0 has another"):
        irregular.onto_grid(values, when, 5, end=2.0)


def test_what_is_to_come_is_hidden_and_nothing_of_it_scales():
    values = walks()
    values[:, 15:] += 100.0
    parts = s.ahead(values, 5, missing=0.2)
    for part in parts:
        assert bool(part.values[:, 15:].isnan().all()) and bool(part.goals.isfinite().all())
        gone = part.values[:, :15].isnan()
        assert bool((gone.sum(1) == 3).all()) and bool((gone == gone[..., :1]).all())
        seen = part.values.isfinite()
        torch.testing.assert_close(part.values[seen], part.goals[seen])
        assert bool((part.asked == ~seen).all())
    seen = parts.train.values[parts.train.values.isfinite()]
    assert abs(float(seen.mean())) < 1e-6
    with pytest.raises(pl.UsageError, match="of 20 times 1 to 18"):
        s.ahead(values, 19)


def test_a_channel_that_was_never_seen_begins_at_the_mean():
    values = walks(3)
    values[1, :, 0] = math.nan
    made = started(values)
    assert float(made[1, 0, 0]) == 0 and bool(made[1, 1:, 0].isnan().all())
    assert torch.equal(made[[0, 2]], values[[0, 2]])


def test_goals_of_another_shape_are_refused():
    times = irregular.unit_times(20)
    with pytest.raises(pl.UsageError, match=r"goals are values at the same times"):
        s.Gapped(times, walks(), walks()[..., :1])
    with pytest.raises(pl.UsageError, match="60 values, 59 goals, of length 20, and 20 times"):
        s.Gapped(times, walks(), walks()[:-1])


# -- models


def path(kind="lnsde"):
    torch.manual_seed(0)
    return s.StablePath(kind, 2, hidden=8)


def test_chords_are_the_control_s_filling_and_hold_the_last_value():
    parts = s.ahead(walks(), 5)
    said = s.Chords()(parts.test)
    assert torch.equal(said[:, 15:], said[:, 14:15].expand(-1, 5, -1))
    by_hand = (parts.test.goals[:, 15:] - parts.test.goals[:, 14:15]).square().mean()
    assert s.error(s.Chords(), parts.test) == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("make", [
    lambda: s.StableForecaster(path(), 2), lambda: s.GRUFiller(2),
    lambda: s.StableInterpolator(path("gsde"), 2, references=7),
], ids=["forecaster", "gru", "interpolator"])  # fmt: skip
def test_no_model_sees_its_goals_or_other_series(make):
    part = s.ahead(walks(), 5).test
    model = make().eval()
    said = model(part, range(len(part)))
    assert said.shape == part.goals.shape
    other = s.Gapped(part.times, part.values, part.goals + 1)
    assert torch.equal(model(other, range(len(part))), said)
    alone = model(part[slice(3, 4)], [3])
    torch.testing.assert_close(said[3:4], alone, rtol=1e-4, atol=1e-5)


def test_between_times_there_are_chords():
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    values = torch.tensor([[[0.0], [1.0], [4.0]]], dtype=torch.float64)
    to = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0], dtype=torch.float64)
    torch.testing.assert_close(between(values, times, to)[0, :, 0],
                               torch.tensor([0, 0.5, 1, 3.4, 4], dtype=torch.float64))  # fmt: skip


def silent(deviation=0.5):
    """A model whose decoder says 0, and a part of a set in float64."""
    model = s.StableInterpolator(path(), 2, latent=1, width=4, references=3, deviation=deviation)
    model = model.double()
    with torch.no_grad():
        for p in model.readout[-1].parameters():
            p.zero_()
    part = s.ahead(walks(), 5).test
    return model, s.Gapped(part.times, part.values.double(), part.goals.double())


def test_where_nothing_is_said_the_bound_is_the_likelihood_less_a_divergence():
    """With one draw its mean is −KL(q ‖ p), known for Gaussians; with p = q it is 0 exactly."""
    model, part = silent()
    normal = torch.distributions.Normal(0.0, model.deviation)
    exact = normal.log_prob(part.goals).sum((1, 2))
    with torch.no_grad():
        for p in model.law[-1].parameters():
            p.zero_()
        torch.testing.assert_close(model.bound(part, range(len(part)), draws=3), exact)
        model.law[-1].bias.copy_(torch.tensor([0.3, -0.2]))
        made = torch.stack([
            model.bound(part, range(first, first + len(part)), draws=1) - exact
            for first in range(0, 400 * len(part), len(part))
        ])  # fmt: skip
    s2 = math.exp(-0.4)
    kl = 3 * (s2 + 0.3**2 - 1 + 0.4) / 2
    error = float(made.std()) / made.numel() ** 0.5
    assert abs(float(made.mean()) + kl) < 5 * error


def test_more_draws_are_tighter():
    model, part = silent()
    with torch.no_grad():
        model.law[-1].bias.copy_(torch.tensor([1.0, -0.5]))
        one, many = (
            torch.stack([model.bound(part, range(f, f + len(part)), draws=k)
                         for f in range(0, 40 * len(part), len(part))]).mean()
            for k in (1, 16)
        )  # fmt: skip
    assert float(many - one) > 0.3  # of a divergence of 2.4


def test_the_divergence_comes_in_late():
    aim = s.Bound(epoch=5, late=10)
    assert [aim.weight(k) for k in (0, 54)] == [0, 0]
    assert aim.weight(55) == pytest.approx(0.01) and aim.weight(60) == pytest.approx(1 - 0.99**2)


def sines(n=120, length=16):
    phase = 2 * math.pi * noise.uniform(range(n), (1, 1), stream="data", dtype=torch.float64)
    return (4 * math.pi * irregular.unit_times(length)[None, :, None] + phase).sin()


def test_a_forecaster_learns_to_continue_sines():
    """Of phases of all kinds the last value says little."""
    parts = s.ahead(sines(), 4)
    torch.manual_seed(0)
    model = s.StableForecaster(s.StablePath("lnsde", 1, hidden=16), 1)
    s.fit(model, parts.train, parts.valid, s.Fit(60, 64, 2e-2, every=30), aim=s.Squares())
    assert s.error(model, parts.test) < 0.5 * s.error(s.Chords(), parts.test)


def test_an_interpolator_is_trained_by_its_bound():
    """The mean of all has an error of 1."""
    values = sines()
    seen = irregular.drop(values, 0.3, together=True)
    parts = s.gapped(irregular.unit_times(16), values, seen)
    torch.manual_seed(0)
    model = s.StableInterpolator(s.StablePath("lnsde", 1, hidden=16), 1, latent=2, width=16,
                                 references=16, deviation=0.3)  # fmt: skip
    s.fit(model, parts.train, parts.valid, s.Fit(60, 64, 2e-2, every=30), aim=s.Bound(draws=2))
    assert s.error(model, parts.test) < 0.5


def test_numbers_that_cannot_be_are_refused():
    part = s.ahead(walks(channels=3), 5).test
    labelled = s.Series(part.times, part.values, torch.zeros(len(part)).long(), 2)
    for model in (s.StableForecaster(path(), 2), s.GRUFiller(2), s.CDEClassifier(2, 2)):
        with pytest.raises(pl.UsageError, match="reads series of 2 channels, and these have 3"):
            model(labelled, range(len(part)))
    with pytest.raises(pl.UsageError, match="references are 2 or more"):
        s.StableInterpolator(path(), 2, references=1)
    with pytest.raises(pl.UsageError, match="deviation is above 0"):
        s.StableInterpolator(path(), 2, deviation=0.0)
