"""`pathline bench adjoint` and `bench memory`: everybody computes the same gradient, and what is
told is what was measured. No test here times anything."""

import json
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch

import pathline as pl
from pathline.bench import BENCHES, Report
from pathline.bench.adjoint import AT_MOST, bars_of
from pathline.bench.adjoint.contestants import (
    BOUNDED,
    CHECKPOINT,
    CONTINUOUS,
    DIRECT,
    PEER,
    PEER_DIRECT,
    contestants,
)
from pathline.bench.adjoint.fitting import Fit, Kept, fitted, least
from pathline.bench.adjoint.problems import Found, ours, problems, reference
from pathline.bench.memory import HELD, memory
from pathline.core.errors import PathlineError
from pathline.solvers.runge_kutta import RK4

HOME = Path(__file__).parents[1]
NEEDS = pytest.mark.skipif(
    find_spec("torchdiffeq") is None,
    reason='it comes with the extra "pathline[bench]"',
)


@pytest.fixture(scope="module")
def both():
    """Four samples of each problem; a network that has hardly been trained."""
    return list(problems(updates=2, samples=4))


# --- who takes part ------------------------------------------------------------------------------


@NEEDS
@pytest.mark.parametrize("which", [0, 1], ids=["mixture", "network"])
def test_everybody_has_the_gradient_of_the_flow(both, which):
    """In the noise and in the weights, within the error of 40 steps, or of a tolerance of 1e-7;
    a gradient that was lost in a cache, or of another flow, would be off by all of itself."""
    problem = both[which]
    exact = ours(problem, RK4(view="eps"), "direct", 80)
    families = set()
    for who in contestants(problem):
        found = who.gradients(40 if isinstance(who.ladder[0], int) else 1e-7)
        assert found.off(exact) < 0.05, who.name
        assert found.nfe >= 40 and found.noise.dtype == torch.float64
        families.add(who.family)
    assert families == {DIRECT, CHECKPOINT, BOUNDED, CONTINUOUS, PEER, PEER_DIRECT}


def test_what_is_sought_by_is_the_same_gradient(both):
    for who in contestants(both[0]):
        if who.sought is not None:
            assert who.gradients(12).off(who.sought(12)) < 1e-10, who.name


def test_a_reference_that_is_not_sure_is_refused(both):
    whole, off = reference(both[0], 1.0, n=40)
    assert off == ours(both[0], RK4(view="eps"), "checkpoint", 20).off(whole) > 0
    with pytest.raises(PathlineError, match="too much to judge errors of 1e-06 by"):
        reference(both[0], 1e-6, n=40)


# --- how much each needs -------------------------------------------------------------------------


def test_the_least_that_suffices_is_found_by_halving():
    """All patterns of eight rungs: found is one that keeps with the next, and, of monotone
    patterns, the first; a monotone pattern of 153 rungs is asked for nine of them at most."""
    for pattern in product([False, True], repeat=8):
        i = least(pattern.__getitem__, 8)
        if i is not None:
            assert pattern[i] and (i == 7 or pattern[i + 1])
        if list(pattern) == sorted(pattern):
            assert i == (pattern.index(True) if any(pattern) else None)
    for first in range(154):
        asked = []

        def keeps(i, first=first, asked=asked):
            asked.append(i)
            return i >= first

        assert least(keeps, 153) == (first if first < 153 else None) and len(asked) <= 9


class Fake:
    """Errs by 1/n in the noise alone; cannot do fewer than five steps."""

    def __init__(self):
        self.asked = []

    def __call__(self, n):
        self.asked.append(n)
        if n < 5:
            raise AssertionError("underflow in dt")
        return Found(torch.tensor([1 + 1 / n]), (torch.ones(2),), 3 * n)


EXACT = Found(torch.ones(1), (torch.ones(2),), 0)


def test_a_fit_is_the_cheapest_within_the_error():
    from pathline.bench.adjoint.contestants import Contestant

    who = Contestant("f", "fake", Fake(), range(1, 101))
    fit = fitted(who, EXACT, 0.11)
    assert (fit.how, fit.nfe) == (10, 30) and fit.error == pytest.approx(0.1, rel=1e-5)
    assert fitted(who, EXACT, 1e-3) is None
    other = who._replace(sought=lambda n: EXACT)  # says that everything is near enough
    with pytest.raises(PathlineError, match="is not the gradient it should be"):
        fitted(other._replace(ladder=(5, 6)), EXACT, 0.11)


def test_what_was_found_is_not_sought_again(tmp_path):
    from pathline.bench.adjoint.contestants import Contestant

    who = Contestant("f", "fake", Fake(), (10,))
    fits = {"one": Fit(who, 10, 0.1, 30), "none": None}
    first = Kept(tmp_path, {"error": 1})
    for name, fit in fits.items():
        assert first.fit(name, who, lambda fit=fit: fit) == fit

    def never():
        raise KeyboardInterrupt

    again = Kept(tmp_path, {"error": 1})
    assert [again.fit(name, who, never) for name in fits] == list(fits.values())
    with pytest.raises(KeyboardInterrupt):
        Kept(tmp_path, {"error": 2}).fit("one", who, never)


def test_the_bar_is_for_bounded_memory():
    times = {DIRECT: 1.0, CHECKPOINT: 2.0, BOUNDED: 4.0, CONTINUOUS: 3.0, PEER: 5.0}
    bar, *told = bars_of("p", times)
    assert bar.measured == 3 / 5 and bar.limit == AT_MOST and not bar.passed
    assert [each.measured for each in told] == [0.2, 0.4, 0.8, 0.6]
    assert all(each.limit is None for each in told)


@NEEDS
def test_the_bench_runs_to_its_end(monkeypatch, tmp_path, both):
    module = sys.modules["pathline.bench.adjoint"]
    monkeypatch.setattr(module, "problems", lambda: both[:1])
    monkeypatch.setattr(module, "reference", lambda problem, error: reference(problem, 1.0, 48))
    monkeypatch.setattr(module, "ERROR", 0.3)
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    threads = torch.get_num_threads()
    made = BENCHES["adjoint"](nfe=[24, 12, 18], rounds=1)
    assert torch.get_num_threads() == threads
    assert {row.method for row in made.rows} == {"ms", "kB", "evaluations", "error, millionths"}
    errors = [row.value for row in made.rows if row.method.startswith("error")]
    assert 0 < max(errors) <= 0.3e6 and made.settings["steps"] == "12, 18, 24"
    assert len(list((tmp_path / "bench-adjoint").glob("*.json"))) == 1
    with pytest.raises(PathlineError, match="comes within 1e-09; give more"):
        monkeypatch.setattr(module, "ERROR", 1e-9)
        BENCHES["adjoint"](nfe=[8, 9], rounds=1)


# --- memory --------------------------------------------------------------------------------------


def test_memory_is_counted_and_held_to_its_law():
    made = memory([4, 8])
    counted = {(row.by, row.method): row.value for row in made.rows}
    assert counted["direct", "8 steps"] > 1.5 * counted["direct", "4 steps"]
    bars = {bar.text.split(":")[0]: bar for bar in made.bars}
    for name in HELD:
        pair = [counted[name, f"{n} steps"] for n in (4, 8)]
        assert bars[name].measured == pytest.approx(max(pair) / min(pair))
        assert bars[name].limit == 1.05 and bars[name].passed
    assert bars["direct"].limit is None
    for counts in ([4], [0, 4], []):
        with pytest.raises(pl.UsageError, match="two numbers of steps"):
            memory(counts)


# --- what is committed ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adjoint", "memory"])
def test_the_committed_table_keeps_the_bars_and_its_page_is_made_from_it(name):
    file = HOME / "benchmarks" / f"{name}.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    committed = Report.from_dict(content)
    assert committed.passed and content["passed"]
    assert file.with_suffix(".md").read_text(encoding="utf-8") == committed.markdown()


def test_the_page_on_gradients_quotes_what_was_counted():
    content = json.loads((HOME / "benchmarks/memory.json").read_text(encoding="utf-8"))
    page = (HOME / "docs/gradients.md").read_text(encoding="utf-8")
    rows = Report.from_dict(content).rows
    for by in dict.fromkeys(row.by for row in rows):
        cells = [f"{row.value:.0f}" for row in rows if row.by == by]
        assert f"| {by} | {' | '.join(cells)} |" in page, by
