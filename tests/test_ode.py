"""Adaptive differential equations: pairs, control, dense output, events, stiff fields, records."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import pathline as pl
from pathline.core import Status
from pathline.fields import problems
from pathline.solvers import AdaptiveRK, Rodas
from pathline.solvers.events import Event, SteadyState
from pathline.solvers.pace import Control
from pathline.solvers.pairs import PAIRS
from pathline.solvers.rosenbrock_tables import METHODS

F = torch.float64
TIGHT = AdaptiveRK(1e-11, 1e-11, method="tsit5")


def rational(x, t):
    """dx/dt = −x² cos t, whose solution is 1/(1/x₀ + sin t)."""
    return -(x**2) * torch.cos(t)


def solution(x, t):
    return 1 / (1 / x + torch.sin(torch.as_tensor(t, dtype=F)))


def starts(n=4):
    return torch.linspace(0.5, 1.0, n, dtype=F)[:, None]


def fixed(make, h):
    """A solver whose steps are all of length h: no error is too large, and no step grows."""
    still = Control(most=1 + 1e-12, integral=1e-9)
    return make(rtol=1e9, atol=1e9, first=h, control=still)


def van_der_pol(mu):
    def field(x, t):
        a, b = x[:, :1], x[:, 1:]
        return torch.cat((b, mu * (1 - a * a) * b - a), 1)

    return field


class TestMethods:
    @pytest.mark.parametrize("name", PAIRS)
    def test_a_pair_has_its_order_and_so_has_the_inside_of_its_steps(self, name):
        pair = PAIRS[name]
        inside = {"bosh3": 3, "dopri5": 4, "tsit5": 4, "dop853": 7}.get(name, 2)
        t, ends, between = torch.linspace(0, 2, 101, dtype=F)[:, None], [], []
        for n in (8, 16) if pair.order > 5 else (16, 32):
            solver = fixed(lambda **k: AdaptiveRK(method=name, **k), 2 / n)
            sol = pl.solve(rational, starts(), solver=solver, grid=[0.0, 2.0], dense=True)
            assert sol.stats.steps == n
            ends.append(float((sol.x - solution(starts(), 2.0)).abs().max()))
            exact = solution(starts(), t[..., None]).reshape(101, 4, 1)
            between.append(float((sol.at(t) - exact).abs().max()))
        assert math.log2(ends[0] / ends[1]) > pair.order - 0.5
        assert math.log2(between[0] / between[1]) > min(inside, pair.order) - 0.5

    @pytest.mark.parametrize("name", PAIRS)
    def test_an_interpolant_ends_in_the_step_and_keeps_its_order_conditions(self, name):
        """Σ b_i(θ) c_i^(q−1) = θ^q/q, and b(1) = b."""
        pair = PAIRS[name]
        theta = [0.3, 0.8]
        b = np.array(pair.weights(theta))
        c = np.array([*pair.c, *pair.extra_c])
        for q in range(1, {"dopri5": 4, "tsit5": 4, "bosh3": 3, "dop853": 7}.get(name, 2) + 1):
            assert b.T @ c ** (q - 1) == pytest.approx(np.array(theta) ** q / q, abs=1e-12)
        ends = np.array(pair.weights([1.0]))[:, 0]
        assert ends == pytest.approx([*pair.b, *[0.0] * len(pair.extra_c)], abs=1e-13)

    def test_the_error_of_one_step_of_tsit5_falls_by_two_to_the_five(self):
        """|ỹ| on y' = sin y + t: the threshold of solver-heuristic regularisation, ± 15 %."""
        seen, errors = [], []
        for h in (0.1, 0.05, 0.025):
            solver = AdaptiveRK(1e-300, 1.0, first=h, method="tsit5", max_steps=1)
            pl.solve(lambda x, t: torch.sin(x) + t, torch.ones(1, 1, dtype=F), solver=solver,
                     grid=[0.0, h], on_step=seen.append)  # fmt: skip
            errors.append(float(seen[-1].error))
        for a, b in zip(errors, errors[1:], strict=False):
            assert a / b == pytest.approx(32, rel=0.15)

    @pytest.mark.parametrize("name", METHODS)
    def test_a_rosenbrock_method_has_its_order_on_fields_that_know_the_time(self, name):
        ends, between = [], []
        t = torch.linspace(0, 2, 41, dtype=F)[:, None]
        for n in (20, 40):
            solver = fixed(lambda **k: Rodas(method=name, **k), 2 / n)
            sol = pl.solve(rational, starts(2), solver=solver, grid=[0.0, 2.0], dense=True)
            ends.append(float((sol.x - solution(starts(2), 2.0)).abs().max()))
            exact = solution(starts(2), t[..., None]).reshape(41, 2, 1)
            between.append(float((sol.at(t) - exact).abs().max()))
        order = METHODS[name].order
        assert math.log2(ends[0] / ends[1]) > order - 0.5
        assert math.log2(between[0] / between[1]) > order - 1.4  # its interpolant is of order − 1

    def test_robertson_and_stiff_van_der_pol_against_scipy(self):
        def robertson(x, t):
            a, b, c = x.unbind(1)
            r, s, q = 0.04 * a, 1e4 * b * c, 3e7 * b * b
            return torch.stack((s - r, r - s - q, q), 1)

        def theirs(t, y):
            return robertson(torch.from_numpy(y)[None], t)[0].numpy()

        exact = solve_ivp(theirs, (0, 1e3), [1.0, 0, 0], "Radau", rtol=1e-10, atol=1e-13).y[:, -1]
        x = torch.tensor([[1.0, 0.0, 0.0]], dtype=F)
        sol = pl.solve(robertson, x, solver=Rodas(1e-8, 1e-12), grid=[0.0, 1e3])
        assert sol.x[0].numpy() == pytest.approx(exact, rel=1e-6)
        assert sol.stats.steps < 300
        field = van_der_pol(1000.0)
        slope = lambda t, y: field(torch.from_numpy(y)[None], t)[0].numpy()  # noqa: E731
        exact = solve_ivp(slope, (0, 500), [2.0, 0.0], "Radau", rtol=1e-9, atol=1e-12).y[:, -1]
        x = torch.tensor([[2.0, 0.0]], dtype=F)
        sol = pl.solve(field, x, solver=Rodas(1e-7, 1e-9), grid=[0.0, 500.0])
        assert sol.x[0].numpy() == pytest.approx(exact, rel=1e-5) and sol.stats.steps < 200

    def test_a_field_may_bring_its_own_jacobian(self):
        a = torch.tensor([[-1000.0, 1.0], [0.0, -1.0]], dtype=F)
        asked = []

        def jacobian(x, t):
            asked.append(len(x))
            return a.expand(len(x), 2, 2)

        x, solver = torch.ones(3, 2, dtype=F), Rodas(1e-8, 1e-8)
        own = pl.fields.VectorField(lambda x, t: x @ a.T + torch.sin(t), jacobian=jacobian)
        with_own = pl.solve(own, x, solver=solver, grid=[0.0, 1.0])
        made = pl.solve(lambda x, t: x @ a.T + torch.sin(t), x, solver=solver, grid=[0.0, 1.0])
        assert asked and with_own.stats == made.stats
        torch.testing.assert_close(with_own.x, made.x, rtol=1e-10, atol=1e-12)


class TestControl:
    def test_proportional_integral_control_rejects_less_on_van_der_pol(self):
        """The thresholds of neural-differential-equations, claim 5."""
        x, field = torch.tensor([[2.0, 0.0]], dtype=F), van_der_pol(30.0)

        def walked(*gains):
            control = Control(integral=gains[0], proportional=gains[1])
            solver = AdaptiveRK(1e-6, 1e-6, method="tsit5", control=control)
            return pl.solve(field, x, solver=solver, grid=[0.0, 60.0]).stats

        plain, mixed = walked(1.0, 0.0), walked(0.3, 0.4)
        assert mixed.rejected <= 0.4 * plain.rejected and mixed.steps <= 1.1 * plain.steps

    def test_a_sample_is_bitwise_the_same_alone_and_beside_a_stiff_or_failing_one(self):
        rate = torch.tensor([[1.0], [3000.0], [1.0], [0.5]], dtype=F)
        blow = torch.tensor([[0.0], [0.0], [1.0], [0.0]], dtype=F)
        x = torch.tensor([[0.3, 0.1], [1.0, 1.0], [2.0, 2.0], [0.7, -0.2]], dtype=F)

        def field(x, t, rate, blow):
            return -rate * (x - torch.sin(t)) + blow * 5 * x**3

        for solver in (AdaptiveRK(1e-7, 1e-7, method="tsit5"), Rodas(1e-7, 1e-7)):
            how = {"solver": solver, "grid": [0.0, 2.0], "save": [0.3, 1.1], "on_failure": "return"}
            many = pl.solve(field, x, rate=rate, blow=blow, **how)
            assert many.statuses[2] is not Status.OK and many.nfes[1] > many.nfes[0]
            for i in (0, 3):
                part = slice(i, i + 1)
                one = pl.solve(field, x[part], rate=rate[part], blow=blow[part], **how)
                assert torch.equal(one.x[0], many.x[i]) and one.nfes[0] == many.nfes[i]
                assert torch.equal(one.trajectory[:, 0], many.trajectory[:, i])

    def test_one_step_for_the_whole_batch_is_that_of_one_large_state(self):
        """norms="batch" takes the steps of the batch as a single sample."""
        x, field = torch.randn(5, 2, dtype=F, generator=torch.manual_seed(0)), van_der_pol(2.0)
        solver = AdaptiveRK(1e-6, 1e-6, norms="batch")
        shared = pl.solve(field, x, solver=solver, grid=[0.0, 5.0])
        whole = pl.solve(lambda y, t: field(y[0], t)[None], x[None],
                         solver=AdaptiveRK(1e-6, 1e-6), grid=[0.0, 5.0])  # fmt: skip
        assert len(set(shared.nfes)) == 1 and shared.nfes[0] == whole.nfes[0]
        torch.testing.assert_close(shared.x, whole.x[0], rtol=1e-9, atol=1e-9)

    def test_spans_of_each_sample_in_both_directions(self):
        grids = [pl.grids.times(ends) for ends in ([0.0, 2.0], [2.0, 0.5], [1.0, 1.5])]
        x = torch.stack([solution(torch.ones(1, dtype=F), g.values[0]) for g in grids])
        sol = pl.solve(rational, x, solver=TIGHT, grid=grids, dense=True)
        for i, grid in enumerate(grids):
            exact = solution(torch.ones(1, dtype=F), grid.values[1])
            torch.testing.assert_close(sol.x[i], exact, rtol=1e-9, atol=0)
        inside = torch.tensor([0.7, 0.7, 1.2], dtype=F)
        exact = solution(torch.ones(1, dtype=F), inside)[:, None]
        torch.testing.assert_close(sol.at(inside), exact, rtol=1e-7, atol=0)

    def test_a_jump_is_stepped_onto(self):
        """dx/dt = 0 before 1 and 1 behind: exact, in a few steps, from either side."""
        solver = AdaptiveRK(1e-9, 1e-9, jumps=(1.0,))
        x = torch.zeros(1, 1, dtype=F)
        for grid, end in (([0.0, 3.0], 2.0), ([3.0, 0.0], -2.0)):
            sol = pl.solve(lambda x, t: (t >= 1) + 0 * x, x, solver=solver, grid=grid)
            assert float(sol.x) == pytest.approx(end, abs=1e-12) and sol.stats.rejected == 0

    def test_any_shape_of_state(self):
        x = torch.rand(2, 3, 1, 2, dtype=F)
        sol = pl.solve(rational, x, solver=TIGHT, grid=[0.0, 1.0], save=[0.5])
        torch.testing.assert_close(sol.x, solution(x, 1.0), rtol=1e-9, atol=0)
        assert sol.trajectory.shape == (1, *x.shape)


class TestOutput:
    def test_saving_changes_no_step_and_ragged_times_are_each_sample_s_own(self):
        times = [[0.0, 0.4, 2.0], [], [0.1], [1.9]]
        solver = AdaptiveRK(1e-9, 1e-9, method="dop853")
        plain = pl.solve(rational, starts(), solver=solver, grid=[0.0, 2.0])
        sol = pl.solve(rational, starts(), solver=solver, grid=[0.0, 2.0], save=times)
        assert torch.equal(plain.x, sol.x) and plain.stats.walks == sol.stats.walks
        for i, row in enumerate(times):
            t, x = sol.saved(i)
            assert t.tolist() == row
            torch.testing.assert_close(x[:, 0], solution(starts()[i], t), rtol=1e-7, atol=0)

    def test_the_solution_inside_has_gradients(self):
        x = starts(2).requires_grad_()
        sol = pl.solve(rational, x, solver=TIGHT, grid=[0.0, 2.0], dense=True, save=[1.3])
        exact = (1 / (1 + x.detach() * math.sin(1.3))) ** 2  # of 1/(1/x + sin t)
        for value in (sol.at(1.3), sol.trajectory[0]):
            (found,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
            torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)

    def test_dense_output_tells_the_steps_and_what_was_not_passed(self):
        sol = pl.solve(rational, starts(), solver="tsit5", grid=[0.0, 2.0], dense=True)
        for i, walk in enumerate(sol.stats.walks):
            steps = sol.dense.times(i)
            assert len(steps) == walk.steps + 1
            assert float(steps[0]) == 0 and float(steps[-1]) == 2
        with pytest.raises(pl.UsageError, match="sample 0 was solved from t = 0 to 2.*t = 2.5"):
            sol.at(2.5)
        with pytest.raises(pl.UsageError, match="dense=True"):
            pl.solve(rational, starts(), solver="tsit5", grid=[0.0, 2.0]).at(1.0)

    @pytest.mark.parametrize(
        ("save", "message"),
        [
            ([0.5, 0.2], "sample 0: the save time 0.5 is followed by 0.2"),
            ([[0.1], [0.3, 0.3], [], []], "sample 1: the save time 0.3 comes twice"),
            ([0.5, 2.5], "sample 0 is solved from t = 0 to 2, and is to be saved at t = 2.5"),
            ([0.5, math.nan], "sample 0: time 1 is not a number"),
            ([[0.1], [0.2]], "times for 2 samples, and there are 4"),
        ],
    )
    def test_bad_save_times(self, save, message):
        with pytest.raises(pl.UsageError, match=message):
            pl.solve(rational, starts(), solver="tsit5", grid=[0.0, 2.0], save=save)

    def test_what_only_adaptive_solvers_have_says_so(self):
        with pytest.raises(pl.UsageError, match="for adaptive solvers"):
            pl.solve(rational, starts(), solver="rk4", grid=[0.0, 2.0], dense=True)
        with pytest.raises(pl.UsageError, match="clock of a path"):
            pl.solve(problems.m4(pl.VPLinear()), torch.ones(1, 3, dtype=F),
                     solver=AdaptiveRK(view="eps"), save=[0.5])  # fmt: skip

    def test_failures_name_the_sample_and_the_time(self):
        x = torch.tensor([[0.1], [1.0]], dtype=F)
        with pytest.raises(pl.core.errors.SolveError, match=r"sample 1: .*t = 1\.0000"):
            pl.solve(lambda x, t: x**2, x, solver="tsit5", grid=[0.0, 2.0])
        with pytest.raises(pl.core.errors.UnfinishedError, match="samples 0 and 1: given up.*t = "):
            pl.solve(van_der_pol(1e4), x.expand(2, 2), grid=[0.0, 10.0],
                     solver=AdaptiveRK(max_steps=50))  # fmt: skip
        with pytest.raises(pl.NonFiniteError, match="not finite at t = 0"):
            pl.solve(lambda x, t: x / 0, x, solver="tsit5", grid=[0.0, 1.0])


def fall(x, t):
    return torch.stack((x[:, 1], torch.full_like(x[:, 1], -8.0)), 1)


def test_a_jacobian_that_is_not_finite_is_named():
    """√x has no slope at 0 that times 0 is a number; the field itself is finite there."""
    x = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    with pytest.raises(pl.NonFiniteError, match="sample 1: the field's Jacobian is not finite at"):
        pl.solve(lambda x, t: -torch.sqrt(x) * (x > 0), x, solver="rodas5p", grid=(0.0, 0.5))


class TestEvents:
    def test_a_ball_from_ten_metres(self):
        """Time, speed and dt*/dx₀ against their formulas, at the specification's thresholds."""
        x = torch.tensor([[10.0, 0.0], [5.0, 1.0]], dtype=F, requires_grad=True)
        ground = Event(lambda x, t: x[:, 0], direction="down")
        sol = pl.solve(fall, x, solver=TIGHT, grid=[0.0, 5.0], events=ground)
        assert float(sol.t[0]) == pytest.approx(1.5811388300841898, abs=1e-8)
        assert float(sol.x[0, 1]) == pytest.approx(-12.649110640673518, abs=1e-8)
        (slope,) = torch.autograd.grad(sol.t[0], x, retain_graph=True)
        assert float(slope[0, 0]) == pytest.approx(1 / (8 * 1.5811388300841898), abs=1e-6)
        (slope,) = torch.autograd.grad(sol.x[1, 1], x)
        speed = math.sqrt(1 + 80)  # v = −√(v₀² + 2 g x₀)
        assert slope[1].tolist() == pytest.approx([-8 / speed, -1 / speed], abs=1e-6)

    def test_a_bouncing_ball_goes_on_and_its_gradient_crosses_the_bounces(self):
        def reset(x, t):
            return torch.stack((0 * x[:, 0], -0.8 * x[:, 1]), 1)

        ground = Event(lambda x, t: x[:, 0], direction="down", reset=reset)
        x = torch.tensor([[10.0, 0.0], [2.0, 0.0]], dtype=F, requires_grad=True)
        wide = pl.solve(fall, x, solver="tsit5", grid=[0.0, 5.0], events=ground)  # a step a bounce
        sol = pl.solve(fall, x, solver=TIGHT, grid=[0.0, 5.0], events=ground)
        counts = [sum(len(e.samples) for e in s.events) for s in (wide, sol)]
        assert counts[0] == counts[1] > 6
        told = [
            pair for e in sol.events for pair in zip(e.samples.tolist(), e.t.tolist(), strict=True)
        ]
        mine = [t for sample, t in told if not sample]
        first = math.sqrt(2.5)
        assert mine == pytest.approx([first, first + 1.6 * first], abs=1e-8)
        t, v = 5.0 - 2.6 * first, 0.64 * 8 * first
        assert float(sol.x[0, 0]) == pytest.approx(v * t - 4 * t**2, abs=1e-7)
        (slope,) = torch.autograd.grad(sol.x[0, 0], x)
        d_first = 1 / (8 * first)  # dv/dh = 0.64·8·d_first, dt/dh = −2.6·d_first
        exact = 0.64 * 8 * d_first * t + (v - 8 * t) * -2.6 * d_first
        assert float(slope[0, 0]) == pytest.approx(exact, abs=1e-6)

    def test_direction_and_the_first_of_several(self):
        up = Event(lambda x, t: x[:, 0], direction="up", name="up")
        late = Event(lambda x, t: x[:, 0] - 0.5, direction="up", name="half")
        x = torch.tensor([[1.0, 0.0]], dtype=F)
        turn = lambda x, t: torch.stack((x[:, 1], -x[:, 0]), 1)  # noqa: E731 - cos t
        sol = pl.solve(turn, x, solver=TIGHT, grid=[0.0, 9.0], events=[late, up])
        assert float(sol.t) == pytest.approx(1.5 * math.pi, abs=1e-8)
        assert sol.events[0].name == "up"

    def test_a_steady_state_stops_each_sample_where_it_is_reached(self):
        rate = torch.tensor([[1.0], [10.0]], dtype=F)
        sol = pl.solve(lambda x, t: -rate * (x - 3), torch.zeros(2, 1, dtype=F), solver="tsit5",
                       grid=[0.0, 100.0], events=SteadyState(atol=1e-4, rtol=0))  # fmt: skip
        torch.testing.assert_close(sol.x, torch.full((2, 1), 3.0, dtype=F), rtol=0, atol=2e-4)
        assert sol.t[1] < sol.t[0] < 30

    def test_a_boolean_event_stops_at_the_end_of_a_step(self):
        far = Event(lambda x, t: x[:, 0] < 0.5)
        sol = pl.solve(lambda x, t: -x, torch.ones(1, 1, dtype=F), solver="tsit5",
                       grid=[0.0, 5.0], events=far, dense=True)  # fmt: skip
        assert float(sol.x) < 0.5 and float(sol.t) == float(sol.dense.times(0)[-1]) < 5

    def test_a_sample_that_meets_nothing_changes_nothing_for_its_neighbour(self):
        ground = Event(lambda x, t: x[:, 0], direction="down")
        x = torch.tensor([[1.0, 0.0], [1e3, 0.0]], dtype=F)
        both = pl.solve(fall, x, solver="tsit5", grid=[0.0, 1.0], events=ground)
        alone = pl.solve(fall, x[1:], solver="tsit5", grid=[0.0, 1.0])
        assert torch.equal(both.x[1], alone.x[0]) and both.nfes[1] == alone.nfes[0]


class TestRecords:
    @pytest.mark.parametrize("rate", [1.0, 10.0, 100.0])
    def test_stiffness_is_exact_on_linear_fields(self, rate):
        seen = []
        pl.solve(lambda x, t: -rate * x, torch.ones(2, 3, dtype=F), grid=[0.0, 0.1],
                 solver=AdaptiveRK(1e-6, 1e-6, method="tsit5"), on_step=seen.append)  # fmt: skip
        for record in seen:
            assert record.stiffness.tolist() == pytest.approx([rate] * 2, rel=1e-8)

    def test_the_gradient_of_a_record_is_that_of_frozen_steps(self):
        """d/dθ Σ E h against central differences with the same step sequence."""
        sizes = []

        def penalty(theta, replay=None):
            total = []

            def see(r):
                total.append((r.error * r.h.abs() * r.accepted).sum())
                if replay is None and bool(r.accepted.all()):
                    sizes.append(float(r.h[0]))

            field = lambda x, t: torch.tanh(theta * x) + torch.cos(3 * t)  # noqa: E731
            x = torch.ones(1, 2, dtype=F)
            if replay is None:
                pl.solve(field, x, solver=AdaptiveRK(1e-5, 1e-5, method="tsit5"), grid=[0.0, 2.0],
                         on_step=see)  # fmt: skip
                return sum(total)
            t = 0.0
            for h in replay:
                one = AdaptiveRK(1e-5, 1e-5, method="tsit5", first=h)
                x = pl.solve(field, x, solver=one, grid=[t, t + h], on_step=see).x
                t += h
            return sum(total)

        theta = torch.tensor(0.7, dtype=F, requires_grad=True)
        (slope,) = torch.autograd.grad(penalty(theta), theta)
        with torch.no_grad():
            step = 1e-4
            a, b = (float(penalty(theta + s * step, sizes)) for s in (1, -1))
        assert float(slope) == pytest.approx((a - b) / (2 * step), rel=1e-5)

    def test_rejected_attempts_are_told_and_leave_no_trace_in_gradients(self):
        """A trial that meets a NaN is rejected; the gradient is finite all the same."""
        x = torch.tensor([[0.5], [0.2]], dtype=F, requires_grad=True)
        seen = []

        def field(x, t):
            return -torch.sqrt(x + 0.05)  # not defined below −0.05, where a long first step leads

        solver = AdaptiveRK(1e-5, 1e-5, first=3.0)
        sol = pl.solve(field, x, solver=solver, grid=[0.0, 0.4], on_step=seen.append)
        assert not bool(seen[0].accepted.all()) and sol.ok
        (slope,) = torch.autograd.grad(sol.x.sum(), x)
        root = torch.sqrt(x.detach() + 0.05)  # √(x+a) falls by t/2
        torch.testing.assert_close(slope, (root - 0.2) / root, rtol=1e-4, atol=0)


class TestGradients:
    @pytest.mark.parametrize(
        "solver",
        [AdaptiveRK(1e-6, 1e-6, method="tsit5", jumps=(0.5,)), Rodas(1e-6, 1e-6)],
        ids=["tsit5", "rodas5p"],
    )
    def test_checkpoint_is_direct_and_continuous_comes_near(self, solver):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
        net.double()
        x = torch.randn(3, 2, dtype=F, requires_grad=True)

        def gradient(adjoint):
            sol = pl.solve(lambda x, t: net(x) * torch.cos(3 * t), x, solver=solver,
                           grid=[0.0, 1.0, 2.0], adjoint=adjoint)  # fmt: skip
            found = torch.autograd.grad((sol.x**2).sum(), [x, *net.parameters()])
            return torch.cat([g.flatten() for g in found])

        direct = gradient("direct")
        torch.testing.assert_close(gradient("checkpoint"), direct, rtol=1e-12, atol=1e-14)
        if isinstance(solver, AdaptiveRK):
            torch.testing.assert_close(gradient("continuous"), direct, rtol=1e-3, atol=1e-5)

    def test_a_compiled_solve_is_as_exact(self):
        """`backend="eager"` traces the fused attempt, and generates no code."""
        from pathline.solvers.executors import Compiled

        executor = Compiled(backend="eager")
        sol = pl.solve(rational, starts(), solver=TIGHT, grid=[0.0, 2.0], save=[1.0],
                       executor=executor)  # fmt: skip
        torch.testing.assert_close(sol.x, solution(starts(), 2.0), rtol=1e-9, atol=0)
        torch.testing.assert_close(sol.trajectory[0], solution(starts(), 1.0), rtol=1e-7, atol=0)
