"""The search: its mechanics on a toy space, mutations, metrics, descent, and tuning a model."""

import itertools
import json
import math
import shutil
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from tiny_model import tiny_model
from typer.testing import CliRunner

import pathline as pl
from pathline.cli.main import app
from pathline.core import MissingExtra, noise
from pathline.fields.problems import m4
from pathline.learn.checkpoint import find_folder, load_model, model_names
from pathline.solvers import DPMv3, EMSTable, SolverSchedule, StepChoice, UniPC, ems, grids, solvers
from pathline.solvers.reference import reference
from pathline.solvers.saved import saved_counts, saved_schedule, schedule_file
from pathline.speed import (
    Endpoint,
    ScheduleSpace,
    Search,
    Settings,
    evolve,
    frechet,
    sliced_wasserstein,
    zoo,
)
from pathline.speed.descent import Descent, Numbers, descend
from pathline.speed.downhill import beginnings, freedoms, guessed
from pathline.speed.fixed import as_schedule, fixed_solvers, race
from pathline.speed.goal import Bench, bench_of
from pathline.speed.mutations import Draft
from pathline.speed.predictor import Predictor, kendall
from pathline.speed.ray_tune import _Queue
from pathline.speed.schedules import mutants
from pathline.speed.tune import REPORT, Tuned, TuneSettings, tries_within, tune

VP = pl.VPLinear()
LAW = m4(VP)


@pytest.fixture(scope="module")
def goals():
    """16 starts to search on and 32 fresh ones, with where they lead."""
    x = noise.normal(range(48), (3,), dtype=torch.float64)
    end = reference(LAW, x, tolerance=1e-9)
    return Endpoint(LAW, x[:16], end[:16]), Endpoint(LAW, x[16:], end[16:])


# --- the engine, on a space that knows nothing of solvers --------------------------------------


@dataclass(frozen=True)
class Points:
    """Pairs of whole numbers; all cost the same."""

    def mutated(self, parent, draw, cost):
        return tuple(int(v + draw.integers(-3, 4)) for v in parent)

    def crossed(self, one, other, draw):
        return (one[0], other[1])

    def cost(self, candidate):
        return 1

    def dump(self, candidate):
        return list(candidate)

    def load(self, content):
        return tuple(content)


def bowl(point):
    return float((point[0] - 7) ** 2 + (point[1] + 4) ** 2)


def begun(seed=0, **rest):
    return Search(Points(), [(30, 30), (-20, 5)], (1,), seed, **rest)


def told(search):
    return [(each.candidate, each.score) for each in search.scored]


def test_it_finds_the_bottom_of_a_bowl():
    assert evolve(begun(), bowl, 400).best(1)[0].candidate == (7, -4)


def mortal_bowl(killed):
    """Return the bowl, which dies at this call, once, and the list of what it is asked."""
    calls = []

    def mortal(point):
        calls.append(point)
        if len(calls) == killed:
            raise KeyboardInterrupt
        return bowl(point)

    return mortal, calls


@pytest.mark.parametrize("killed", [1, 2, 3, 57, 119])
def test_a_killed_search_goes_on_as_if_nothing_had_happened(tmp_path, killed):
    """To the same candidates in the same order, and nothing is scored twice."""
    whole, (mortal, calls) = evolve(begun(), bowl, 120), mortal_bowl(killed)
    with pytest.raises(KeyboardInterrupt):
        evolve(begun(), mortal, 120, file=tmp_path / "s.json")
    again = evolve(begun(), mortal, 120, file=tmp_path / "s.json")
    assert told(again) == told(whole)
    assert len(calls) == 121  # the one that was cut short, and each of the others once


def test_a_score_that_is_no_number_counts_and_is_the_worst():
    search = evolve(begun(), lambda p: math.nan if p[0] < 0 else bowl(p), 60)
    assert len(search.scored) == 60
    assert next(s.score for s in search.scored if s.candidate == (-20, 5)) == math.inf
    assert math.isfinite(search.best(1)[0].score)


def test_what_cannot_be_searched_is_refused(tmp_path):
    with pytest.raises(pl.UsageError, match="does not pay for the 2 candidates"):
        evolve(begun(), bowl, 1)
    with pytest.raises(pl.UsageError, match=r"no candidate of cost \[2\]"):
        Search(Points(), [(1, 1)], (1, 2))
    evolve(begun(), bowl, 5, file=tmp_path / "s.json")
    with pytest.raises(pl.UsageError, match="of another search"):
        evolve(begun(seed=1), bowl, 5, file=tmp_path / "s.json")
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(pl.UsageError, match="cannot read a search"):
        evolve(begun(), bowl, 5, file=tmp_path / "s.json")
    with pytest.raises(pl.UsageError, match="the seed must be at least 0"):
        begun(seed=-1)
    with pytest.raises(pl.UsageError, match="crossover must lie"):
        Settings(crossover=2)


@dataclass(frozen=True)
class Near:
    """A ranker that guesses the distance to the best that it has learned from."""

    weight: float = 1.0
    learned: tuple = field(default=(), repr=False)

    def fitted(self, candidates, scores):
        return replace(self, learned=candidates[int(np.argmin(scores))])

    def __call__(self, candidates):
        return [self.weight * math.dist(each, self.learned) for each in candidates]


@pytest.mark.parametrize("killed", [3, 57, 99])
def test_a_ranker_picks_every_second_child_and_resumes_identically(tmp_path, killed):
    """The child nearest to the best of what was known when it last learned, of sixteen."""
    settings = Settings(relearn=20)

    def made():
        return begun(settings=settings, ranker=Near())

    whole, (mortal, _) = evolve(made(), bowl, 120), mortal_bowl(killed)
    with pytest.raises(KeyboardInterrupt):
        evolve(made(), mortal, 120, file=tmp_path / "s.json")
    assert told(evolve(made(), mortal, 120, file=tmp_path / "s.json")) == told(whole)
    plain, known = begun(settings=settings), whole.scored[:60]
    for i in (60, 61):
        both = [replace(each, scored=known) for each in (whole, plain)]
        ranked, unranked = (each.ask(i) for each in both)
        best = min(known, key=lambda each: each.score).candidate
        assert math.dist(ranked, best) <= math.dist(unranked, best)
        assert (ranked == unranked) == (i % 2 == 1)


def test_a_ranker_waits_for_two_scores():
    search = begun(ranker=Predictor())  # which would refuse to learn from none, and from points
    assert len(evolve(search, lambda p: math.nan, 8).scored) == 8


@pytest.mark.parametrize(
    "other",
    [
        {"space": ScheduleSpace(VP, (0.0, 0.1))},
        {"space": ScheduleSpace(VP, mutations=())},
        {"ranker": Predictor(epochs=3)},
        {"ranker": None},
        {"settings": Settings(parents=3)},
        {"about": {"weights": "others"}},
    ],
)
def test_files_of_searches_that_differ_in_anything_are_of_another(other):
    begin = [zoo(VP, 4)["eps order 3 on quadratic"]]
    one = Search(ScheduleSpace(VP), begin, (4,), ranker=Predictor())
    same = Search(ScheduleSpace(pl.VPLinear()), begin, (4,), ranker=Predictor())
    assert one.fingerprint() == same.fingerprint() != replace(one, **other).fingerprint()


@pytest.mark.parametrize("parents", [1, 15])
def test_parents_are_the_best_of_their_cost(parents):
    """A child without mutation is one of them."""

    class Still(Points):
        def mutated(self, parent, draw, cost):
            return parent

    points = [(i, 0) for i in range(40)]
    search = Search(Still(), points, (1,), settings=Settings(parents=parents, crossover=0))
    for i, point in enumerate(points):
        search.tell(point, float(i))
    found = {search._child(search.scored, 1, np.random.default_rng(s)) for s in range(300)}
    assert found == set(points[:parents])


@pytest.mark.parametrize("order", ["in turn", "backwards"])
def test_workers_that_answer_in_any_order_find_the_same(order):
    """A queue of batches of 4, as Ray's workers see it, against one process with that batch."""
    settings = Settings(batch=4)
    alone = evolve(begun(settings=settings), bowl, 42)
    search = begun(settings=settings)
    queue = _Queue(search, 42, search.tell)
    while not queue.is_done:
        running = {}
        while not queue.is_done and not queue.must_wait and len(running) < 4:
            name = f"trial {queue.next}"
            running[name] = queue.ask(name)
        for name in sorted(running, reverse=order == "backwards"):
            queue.answer(name, bowl(running[name]))
    assert told(search) == told(alone)


@pytest.mark.slow
def test_ray_finds_what_one_process_finds(goals):
    """Schedules on M4, in batches of two: what workers are sent comes from the library alone."""
    pytest.importorskip("ray")

    def search(**how):
        begin = [zoo(VP, 4)["eps order 3 on quadratic"]]
        empty = Search(ScheduleSpace(VP), begin, (4,), settings=Settings(batch=2))
        return told(evolve(empty, goals[0].typical, 5, **how))

    assert search(ray=True) == search()


def test_without_ray_it_says_how_to_get_it():
    try:
        import ray  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match=r"pathline\[ray\]"):
            evolve(begun(), bowl, 5, ray=True)


# --- schedules ---------------------------------------------------------------------------------


def test_mutants_are_schedules_of_their_cost_and_run():
    space, x = ScheduleSpace(VP, (0.0, 0.1)), noise.normal(range(2), (3,), dtype=torch.float64)
    some = mutants(space, 30, range(3, 9))
    assert len(set(some)) == 30
    for made in some:
        assert made.nfe in range(3, 9)
        assert made.times[0] == VP.t_max and made.times[-1] == pytest.approx(VP.t_min)
        assert SolverSchedule.from_dict(json.loads(json.dumps(space.dump(made)))) == made
        assert pl.solve(LAW, x, solver=made).stats.nfe == made.nfe


@pytest.mark.parametrize("path", [pl.CondOT(), pl.EDM()], ids=["flow", "edm"])
def test_other_paths_have_mutants_too(path):
    law, x = m4(path), noise.normal(range(2), (3,), dtype=torch.float64) * path.sigma(1.0)
    for made in mutants(ScheduleSpace(path), 12, (4, 5)):
        assert torch.isfinite(pl.solve(law, x, solver=made).x).all()


def test_a_child_of_two_takes_every_trait_from_one_of_them():
    one = SolverSchedule.of(pl.DPMpp(order=3), VP, grids.log_snr(5))
    other = SolverSchedule.of(UniPC(2, "eps"), VP, grids.karras(5))
    space = ScheduleSpace(VP)
    for seed in range(20):
        child = space.crossed(one, other, np.random.Generator(np.random.Philox(key=seed)))
        assert child.times in (one.times, other.times)
        for choice, a, b in zip(child.choices, one.choices, other.choices, strict=True):
            assert (choice.order, choice.points) in [(p.order, p.points) for p in (a, b)]
            assert choice.prediction in (a.prediction, b.prediction)


def test_drafts_are_repaired():
    """Times in any order and twice, orders without points, a corrector on the last step."""
    wild = StepChoice(order=4, corrector="pseudo")
    draft = Draft([1.0, 0.2, 0.5, 0.5, 0.001], [wild] * 4, None)
    made = ScheduleSpace(VP).repaired(draft)
    assert made.times == (1.0, 0.5, 0.2, 0.001)
    assert [c.order for c in made.choices] == [1, 2, 3]
    assert [c.corrector for c in made.choices] == ["pseudo", "pseudo", "none"]


def test_a_predictor_learns_which_is_better_where_it_is_plain():
    """Schedules whose score is the mean of their orders, ranked when never seen."""
    pool = mutants(ScheduleSpace(VP), 100, (6,))
    scores = [1.0 + float(np.mean([c.order for c in s.choices])) for s in pool]
    learned = Predictor(epochs=40).fitted(pool[:70], scores[:70])
    assert kendall(learned(pool[70:]), scores[70:]) > 0.6
    assert learned(pool[:3]) == pytest.approx(learned(pool[:30])[:3], abs=1e-5)  # padding is unseen


def test_kendalls_tau_is_scipys():
    a, b = np.random.default_rng(3).normal(size=(2, 40))
    assert kendall(a, b) == pytest.approx(kendalltau(a, b).statistic)


def test_a_predictor_needs_something_to_learn_from():
    with pytest.raises(pl.UsageError, match="two scored schedules or more"):
        Predictor().fitted([], [])
    pool = mutants(ScheduleSpace(VP), 3, (4,))
    for bad in (math.inf, math.nan):
        with pytest.raises(pl.UsageError, match="learns from finite scores"):
            Predictor().fitted(pool, [1.0, 2.0, bad])
    with pytest.raises(pl.UsageError, match="has not learned"):
        Predictor()([])


# --- metrics -----------------------------------------------------------------------------------


def test_the_endpoint_is_the_distance_that_solve_measures(goals):
    bench, made = goals[0], SolverSchedule.of(pl.DPMpp(), VP, grids.log_snr(5))
    apart = pl.solve(LAW, bench.starts, solver=made).x - bench.ends
    assert bench(made) == pytest.approx(float(apart.square().mean().sqrt()))
    assert bench.typical(made) == pytest.approx(float(apart.square().mean(1).sqrt().mean()))
    assert bench.residuals(made).numpy() == pytest.approx(apart.numpy())
    parts = torch.cat([part.errors(made) for part in bench.parts(5)])
    torch.testing.assert_close(parts, bench.errors(made))
    assert bench.mean() == pytest.approx(bench.ends.mean(0).tolist())


def test_memory_changes_no_bit_and_saves_what_begins_alike(goals):
    calls = []

    @dataclass(frozen=True)
    class Counted(type(LAW)):
        def evaluate(self, x, t, cond):
            calls.append(float(t.flatten()[0]))
            return super().evaluate(x, t, cond)

    counted = Counted(*(getattr(LAW, name) for name in LAW.__dataclass_fields__))
    bench = replace(goals[0], field=counted)
    made = SolverSchedule.of(pl.DPMpp(order=3), VP, grids.log_snr(6))
    times = list(made.times)
    times[4] *= 1.01
    late = replace(made, times=tuple(times))
    memory = bench.remembering()
    for each in (made, late, made):
        assert torch.equal(memory.samples(each), bench.samples(each))
    assert len(calls) == 3 * 6 + 6 + 2  # the late one differs in its last two evaluations


def test_distances_between_sets():
    """A shift s: Fréchet's is |s|², the sliced one the mean of (θ·s)²; order plays no role."""
    x = noise.normal(range(400), (3,), dtype=torch.float64)
    shift = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    assert frechet(x, x + shift) == pytest.approx(float(shift.square().sum()), abs=1e-9)
    many = sliced_wasserstein(x, x + shift, directions=4000)
    assert many**2 == pytest.approx(float(shift.square().sum()) / 3, rel=0.05)
    assert sliced_wasserstein(x, x.flip(0)) == 0
    scaled = 2 * x
    exact = sum((np.sqrt(np.linalg.eigvalsh(np.cov(x.T.numpy())))) ** 2) + float(
        (scaled.mean(0) - x.mean(0)).square().sum()
    )
    assert frechet(x, scaled) == pytest.approx(exact, abs=1e-9)
    for wrong in (x[:1], x[:, :2]):
        with pytest.raises(pl.UsageError):
            frechet(x, wrong)
    with pytest.raises(pl.UsageError, match="cannot be compared"):
        sliced_wasserstein(x, x[:, :2])


# --- descent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.07, "bh1", "bh2", "exp+"])
@pytest.mark.parametrize("view", ["x0", "eps"])
def test_numbers_that_do_not_move_change_nothing(view, scale):
    """A named slope becomes the number that it stands for; bars to 1e-12."""
    choices = [StepChoice(view, min(i, 3), scale=scale if i == 2 else 0.0) for i in range(1, 6)]
    made = SolverSchedule(VP, grids.karras(5).times(VP), tuple(choices))
    numbers = Numbers.of(made)
    same = numbers.moved(torch.zeros(numbers.n, dtype=torch.float64))
    assert numbers.n == 4 + 4 and same.times == made.times
    x = noise.normal(range(4), (3,), dtype=torch.float64)
    ends = [pl.solve(LAW, x, solver=each).x for each in (made, same)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


def test_times_stay_in_order():
    made = SolverSchedule.of(pl.DPMpp(), VP, grids.log_snr(4))
    numbers = Numbers.of(made)
    gap = numbers.levels[1] - numbers.levels[0]
    move = torch.zeros(numbers.n, dtype=torch.float64)
    for step, stays in ((-0.9 * gap, True), (-1.1 * gap, False), (1.1 * gap, False)):
        move[0] = step
        assert (numbers.moved(move) is not None) == stays


@pytest.mark.parametrize("freedom,near", [("slopes", 1e-8), ("weights", 1e-4)])
def test_a_descent_finds_the_schedule_that_made_the_goal(goals, freedom, near):
    """Ends that a hidden schedule reaches; weights that do nearly the same are told apart late."""
    usual = zoo(VP, 5)["eps order 2 taylor on quadratic"]
    numbers = Numbers.of(usual, freedom)
    far = 0.15 if freedom == "slopes" else 0.05
    hidden = numbers.moved(far * torch.cos(2 * torch.arange(numbers.n).double()))
    bench = replace(goals[0], ends=goals[0].samples(hidden))
    found = descend(bench, Descent(usual), 800, freedom)
    assert bench.typical(found.schedule) == pytest.approx(found.score)
    assert found.score < near < 1e-3 * bench.typical(usual)
    if freedom == "slopes":
        assert found.schedule.times == pytest.approx(hidden.times, abs=1e-7)
        slopes = [[c.scale for c in each.choices] for each in (found.schedule, hidden)]
        assert slopes[0] == pytest.approx(slopes[1], abs=1e-7)


def test_a_descent_only_goes_down(goals):
    at = Descent(zoo(VP, 6)["eps order 3 on quadratic"])
    begin, scores = goals[1](at.schedule), [goals[0].typical(at.schedule)]
    while not at.is_done:
        at = descend(goals[0], at, at.tries + 1)
        scores.append(goals[0].typical(at.schedule))
    assert all(b <= a for a, b in itertools.pairwise(scores)) and at.score == scores[-1]
    assert goals[1](at.schedule) < 0.25 * begin


def test_least_squares_proper_is_a_power_of_two(goals):
    """Its score is the root mean square over all samples, and falls."""
    begin = zoo(VP, 4)["eps order 3 on quadratic"]
    down = descend(goals[0], Descent(begin, power=2.0), 60)
    assert down.rounds > 1 and down.score == pytest.approx(goals[0](down.schedule))
    assert down.score < 0.5 * goals[0](begin)


def test_a_first_point_that_is_known_pays_for_a_step():
    made = zoo(VP, 5)["x0 order 2 taylor on quadratic"]
    known = guessed(made, 0.0)
    assert known.nfe == made.nfe == 5 and len(known.choices) == 6
    assert (known.times[0], known.times[-1]) == (made.times[0], made.times[-1])
    assert known.times[2] > made.times[2] and known.times[1] < made.times[0]


def test_descents_begin_where_their_tries_allow():
    known = [zoo(VP, 4)[f"x0 order {order} on quadratic"] for order in ("1", "3")]
    assert freedoms(4) == Numbers.of(known[0], "weights").n
    assert beginnings(known, 0.0, 40) == (known, "slopes")
    assert beginnings(known, 0.0, 100) == ([known[0], guessed(known[0], 0.0)], "weights")
    four, freedom = beginnings(known, 0.0, 400)
    assert four == [each for k in known for each in (k, guessed(k, 0.0))] and freedom == "weights"


def test_a_killed_descent_goes_on_as_if_nothing_had_happened(goals, tmp_path, monkeypatch):
    begin = Descent(zoo(VP, 4)["eps order 3 on quadratic"])
    whole, file = descend(goals[0], begin, 40), tmp_path / "down.json"
    dying(monkeypatch, 27)
    with pytest.raises(KeyboardInterrupt):
        descend(goals[0], begin, 40, file=file)
    assert 0 < Descent.from_dict(json.loads(file.read_text())).tries < 27
    monkeypatch.undo()
    assert descend(goals[0], begin, 40, file=file) == whole


def dying(monkeypatch, after):
    """Let `Endpoint.samples` be interrupted at its n-th call; return the count of calls."""
    calls, samples = [], Endpoint.samples

    def mortal(self, how):
        calls.append(how)
        if len(calls) == after:
            raise KeyboardInterrupt
        return samples(self, how)

    monkeypatch.setattr(Endpoint, "samples", mortal)
    return calls


# --- tuning ------------------------------------------------------------------------------------


def test_what_is_found_is_better_on_fresh_noise_and_says_so(goals, tmp_path):
    settings = TuneSettings(budget=250, n_train=16, n_test=32)
    (four, five) = tune(Bench(*goals), (5, 4), settings, out=tmp_path)
    assert (four.nfe, five.nfe) == (4, 5)
    for found in (four, five):
        saved = SolverSchedule.load(schedule_file(tmp_path, found.nfe))
        assert saved == found.schedule and saved.nfe == found.nfe
        assert goals[1](saved) == pytest.approx(found.found) == saved.about["error"]
        assert goals[1](pl.DDIM().plan(VP, grids.log_snr(found.nfe))) == pytest.approx(found.ddim)
        assert found.found < 0.7 * found.fixed_error < found.ddim
    report = json.loads((tmp_path / "schedules" / REPORT).read_text())
    assert [each["found"] for each in report["tuned"]] == [four.found, five.found]
    less = TuneSettings(budget=10, n_train=16, n_test=32)
    (three,) = tune(Bench(*goals), [3], less, out=tmp_path)  # beside what was found before
    report = json.loads((tmp_path / "schedules" / REPORT).read_text())
    assert [each["found"] for each in report["tuned"]] == [three.found, four.found, five.found]
    assert [each["budget"] for each in report["tuned"]] == [10, 250, 250]
    (three,) = tune(Bench(*goals, about={"weights": "others"}), [3], less, out=tmp_path)
    report = json.loads((tmp_path / "schedules" / REPORT).read_text())
    assert [each["nfe"] for each in report["tuned"]] == [3]


@pytest.mark.parametrize("left", [187, 45, 12, 3])
def test_a_killed_tune_goes_on(goals, tmp_path, monkeypatch, left):
    """In the race, the descent, the search, or the measurement: to the same schedule."""
    settings, bench = TuneSettings(budget=40, n_train=16, n_test=32), Bench(*goals)
    calls = dying(monkeypatch, 10**9)
    (whole,) = tune(bench, [4], settings, work=tmp_path / "other")
    total = len(calls)
    calls.clear()
    monkeypatch.undo()
    dying(monkeypatch, total - left)
    with pytest.raises(KeyboardInterrupt):
        tune(bench, [4], settings, work=tmp_path / "work")
    monkeypatch.undo()
    calls = dying(monkeypatch, 10**9)
    (again,) = tune(bench, [4], settings, work=tmp_path / "work")
    assert again == whole
    assert len(calls) <= total
    calls.clear()
    assert tune(bench, [4], settings, work=tmp_path / "work") == [whole]
    assert not calls  # what is done is read


def with_two_noises_to_choose(path, n=24):
    """Starts to search on, to choose with and to measure on, and where they lead."""
    law = m4(path)
    x = noise.normal(range(n), (3,), dtype=torch.float64) * float(path.sigma(path.t_max))
    end = reference(law, x, tolerance=1e-9)
    parts = [Endpoint(law, x[i:j], end[i:j]) for i, j in ((0, 4), (4, n // 2), (n // 2, n))]
    return Bench(parts[0], parts[1], valid=parts[2])


def test_what_is_saved_is_never_behind_a_fixed_way_that_can_be_saved():
    """On the straight path Adams' predictor and corrector wins, which is no exponential solver."""
    bench = with_two_noises_to_choose(pl.CondOT())
    (found,) = tune(bench, [16], TuneSettings(budget=10, n_train=4))
    assert found.fixed.startswith("adams_pc on") and not found.is_behind
    way = fixed_solvers(bench.train, 16)[found.fixed]
    assert isinstance(way, SolverSchedule)
    assert bench.judge(found.schedule) <= bench.judge(way)


@pytest.mark.parametrize("path", [VP, pl.CondOT(), pl.EDM()], ids=["vp", "flow", "edm"])
def test_plans_that_are_schedules_become_one(path):
    """To rounding, at σ up to 80; two evaluations at a time, two starts and noise do not."""
    law = m4(path)
    x = noise.normal(range(4), (3,), dtype=torch.float64) * float(path.sigma(path.t_max))
    bench = Endpoint(law, x, x)
    for name in ("adams_pc", "adams_2", "bdia", "midpoint"):
        plan = solvers.build(name).plan(path, grids.uniform(5))
        made = as_schedule(plan)
        assert made.nfe == plan.nfe and SolverSchedule.from_dict(made.to_dict()) == made
        apart = (bench.samples(made) - bench.samples(plan)).abs().max()
        assert float(apart) < 1e-11
    for name in ("heun", "rk4", "sde_dpmpp_2m"):
        assert as_schedule(solvers.build(name).plan(path, grids.log_snr(4))) is None
    table = replace(EMSTable.gaussian(path, torch.ones(3)), weights="")
    assert as_schedule(DPMv3(table=table).plan(path, grids.log_snr(4))) is None


def test_a_fixed_way_that_cannot_be_saved_is_told(monkeypatch):
    """Two evaluations at a time: what is saved is behind it, and says so."""
    bench = with_two_noises_to_choose(VP)
    ways = {"rk4 on log_snr": solvers.build("rk4").plan(VP, grids.log_snr(4))}
    ways["ddim on uniform"] = SolverSchedule.of(pl.DDIM(), VP, grids.uniform(16))
    monkeypatch.setattr("pathline.speed.tune.fixed_solvers", lambda *_: ways)
    monkeypatch.setattr("pathline.speed.tune._Task._search", lambda *_: searched(ways))
    (found,) = tune(bench, [16], TuneSettings(budget=10, n_train=4))
    assert found.is_behind and found.found > found.fixed_error
    assert found.row()["which"] == "rk4 on log_snr (not a schedule)"
    assert found.schedule == ways["ddim on uniform"]


def searched(ways):
    """What a search finds that scores nothing but where it begins."""
    space, begin = ScheduleSpace(VP), [ways["ddim on uniform"]]
    return evolve(Search(space, begin, (16,)), lambda _: 1.0, 1), []


def test_a_killed_race_goes_on(goals, tmp_path, monkeypatch):
    """To the same order, and no way is measured twice on as many noises."""
    fixed = fixed_solvers(goals[0], 4)
    whole, file = race(goals[0], fixed, 4), tmp_path / "race.json"
    calls = dying(monkeypatch, 60)
    with pytest.raises(KeyboardInterrupt):
        race(goals[0], fixed, 4, file)
    monkeypatch.undo()
    again = dying(monkeypatch, 10**9)
    assert race(goals[0], fixed, 4, file) == whole
    both = len(calls) - 1 + len(again)
    again.clear()
    assert race(goals[0], fixed, 4, file) == whole and not again
    assert race(goals[0], fixed, 4) == whole and len(again) == both


def own_model(scale):
    """A model of one's own, without a file of weights."""
    network = torch.nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        network.weight.copy_(scale * torch.eye(3))

    class Timeless(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, t):
            return self.inner(x)

    return pl.Denoiser(Timeless(), VP, view="x0", shape=(3,), name="own")


def test_no_work_on_another_network_is_taken_for_this_one_s(tmp_path):
    """References and searches of an own module are told apart by its weights."""
    settings, found = TuneSettings(budget=10, n_train=4, n_test=4), {}
    for scale in (0.5, 0.9):
        for work in (tmp_path, None):
            keep = None if work is None else work / "own.safetensors"
            bench = bench_of(own_model(scale), None, {}, {}, (4, 4), 8, keep)
            (found[scale, work],) = tune(bench, [2], settings, work=work)
    for scale in (0.5, 0.9):
        assert found[scale, tmp_path] == found[scale, None]
    assert found[0.5, None].found != found[0.9, None].found
    opaque = pl.Denoiser(lambda x, t: 0.5 * x, VP, view="x0", shape=(3,))
    with pytest.raises(pl.UsageError, match="leave keep out"):
        bench_of(opaque, None, {}, {}, (4, 4), 8, tmp_path / "k.safetensors")
    bench = bench_of(opaque, None, {}, {}, (4, 4), 8)
    with pytest.raises(pl.UsageError, match="leave work out"):
        tune(bench, [2], settings, work=tmp_path)


def test_minutes_become_schedules_once(goals, tmp_path):
    bench = Bench(*goals, about={"n": 1})
    tries = tries_within(bench, (4, 5), 1000.0, work=tmp_path)
    assert tries >= 10
    assert tries_within(bench, (4, 5), 1000.0, spent=900.0, work=tmp_path) == tries
    with pytest.raises(pl.UsageError, match="minutes are too few: fixed solvers and 10 schedules"):
        tries_within(bench, (4, 5), 1e-9)


def test_tunings_that_cannot_be_are_refused(goals):
    with pytest.raises(pl.UsageError, match="numbers of evaluations are 2 or more"):
        tune(Bench(*goals), (1, 4), TuneSettings())
    with pytest.raises(pl.UsageError, match="a budget of 3 schedules is too small"):
        TuneSettings(budget=3)
    with pytest.raises(pl.UsageError, match="n_train must be at least 1"):
        TuneSettings(n_train=0)
    with pytest.raises(pl.UsageError, match="the seed must be at least 0"):
        TuneSettings(seed=-1)


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    tiny_model(tmp_path / "plain", conditional=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATHLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


FEW = ("tune", "plain", "--budget", 10, "-n", 2, "--reference", 6)


def test_a_model_is_tuned_and_sampled_with_what_was_found(here):
    outcome = run(*FEW, "--nfe", "2,3", "--json")
    assert outcome.exit_code == 0, outcome.output
    told = json.loads(outcome.stdout)
    assert [each["nfe"] for each in told] == [2, 3]
    names = {f.name for f in (here / "plain").iterdir()} | {
        f.name for f in (here / "plain" / "schedules").iterdir()
    }
    assert {"ems.safetensors", "nfe-02.json", "nfe-03.json", "report.json"} <= names
    for words in (("s3", 2), ("s3", 3), ("dpm_v3", 3)):
        sampled = run("sample", "plain", "--solver", words[0], "--steps", words[1], "-n", 1)
        assert sampled.exit_code == 0, sampled.output
    again = run(*FEW, "--nfe", "2,3")
    assert again.exit_code == 0 and "pathline sample plain --solver s3 --steps 2" in again.stdout


def test_it_writes_where_it_is_told(here):
    outcome = run(*FEW, "--nfe", "2", "-o", here / "found", "--no-statistics")
    assert outcome.exit_code == 0, outcome.output
    assert sorted(f.name for f in (here / "found").rglob("*")) == [
        "nfe-02.json", "report.json", "schedules",
    ]  # fmt: skip
    assert not (here / "plain" / "schedules").exists()
    assert "copy what" in outcome.stdout and "pathline sample" not in outcome.stdout
    shutil.copytree(here / "found", here / "plain", dirs_exist_ok=True)
    sampled = run("sample", "plain", "--solver", "s3", "--steps", 2, "-n", 1)
    assert sampled.exit_code == 0, sampled.output


def test_a_fixed_way_that_is_better_and_cannot_be_saved_is_told_of(here, monkeypatch):
    made = SolverSchedule.of(pl.DDIM(), pl.CondOT(), grids.uniform(4))
    errors = {"found": 2.0, "seen": 2.0, "fixed_error": 1.0, "default": 3.0, "ddim": 3.0}
    found = Tuned(4, made, fixed="heun on karras", evaluations=3, is_behind=True, **errors)
    monkeypatch.setattr("pathline.speed.tune.tune", lambda *_, **__: [found])
    told = run(*FEW, "--nfe", 4, "--no-statistics").stdout.replace("\n", " ")
    assert "4 evaluations: heun on karras is better than what is saved" in told
    assert json.loads(run(*FEW, "--nfe", 4, "--no-statistics", "--json").stdout)[0]["is_behind"]


def test_statistics_of_fewer_samples_are_measured_again(here):
    """A quick trial does not fix them; more are kept."""
    for n, kept in ((2, 2), (4, 4), (2, 4)):
        outcome = run("tune", "plain", "--budget", 10, "-n", n, "--reference", 4, "--nfe", 2)
        assert outcome.exit_code == 0, outcome.output
        assert EMSTable.load(here / "plain" / ems.FILE).n_samples == kept


@pytest.mark.parametrize(
    "words,says",
    [
        (("--budget", "much"), "write schedules, 150, or minutes, 12m"),
        (("--budget", "5"), "a budget of 5 schedules is too small"),
        (("--nfe", "1"), "numbers of evaluations are 2 or more"),
        (("--nfe", "four"), "--nfe 'four' cannot be read; write numbers as 4-6,8,10"),
        (("--nfe", "3-"), "--nfe '3-' cannot be read"),
        (("--seed", "-1"), "the seed must be at least 0, and is -1"),
        (("-n", "1"), "-n 2 at least, or --no-statistics"),
        (("--prompts", "none.txt"), "takes no condition"),
        (("--budget", "0.0001m", "--nfe", "2"), "minutes are too few"),
        (("-n", "0"), "n_train must be at least 1"),
    ],
)
def test_wrong_words_are_refused(here, words, says):
    outcome = run("tune", "plain", "-n", 2, "--reference", 4, *words)
    assert outcome.exit_code == 2, outcome.output
    assert says in outcome.output.replace("\n", " ")
    assert not (here / "plain" / "schedules").exists()


# --- what is shipped -----------------------------------------------------------------------------


def tuned_models():
    return [name for name in model_names() if saved_counts(find_folder(name))]


@pytest.mark.parametrize("name", tuned_models())
def test_shipped_schedules_are_of_the_shipped_weights_and_no_worse_than_what_is_fixed(name):
    folder, model = find_folder(name), load_model(name)
    report = json.loads((folder / "schedules" / REPORT).read_text(encoding="utf-8"))
    assert report["weights"] == model.details["weights"]["sha256"]
    assert EMSTable.load(folder / ems.FILE).weights == report["weights"]
    assert [each["nfe"] for each in report["tuned"]] == list(saved_counts(folder))
    for each in report["tuned"]:
        schedule = saved_schedule(model, each["nfe"])
        assert schedule.path == model.path and schedule.about["error"] == each["found"]
        assert each["found"] <= each["fixed_error"]


@pytest.mark.parametrize("name", tuned_models()[:1])
def test_a_shipped_schedule_samples_and_replays(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        ("sample", name, "--solver", "s3", "--steps", 5, "-n", 2, "-o", "a.png"),
        ("replay", "a.png", "-o", "b.png"),
    ):
        outcome = run(*words)
        assert outcome.exit_code == 0, outcome.output
    assert "identical" in outcome.output
