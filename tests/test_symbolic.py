"""Formulas on tensors and by algebra; what a search finds; constants through a solver."""

import pytest
import torch

import pathline as pl
from pathline.learn.expression import Expression
from pathline.learn.symbolic import Candidate, Formulas, Search, choose, fine_tune, refine, search

XY = ("x", "y")


def points(n=200):
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(0)).double() * 1.6 - 0.6


def test_a_formula_is_what_python_computes():
    x = points()
    made = Expression("2.5*sin(x) - x*y/(1.5 + y)**2", XY)(x)
    a, b = x.unbind(1)
    torch.testing.assert_close(made, 2.5 * a.sin() - a * b / (1.5 + b) ** 2)


def test_constants_are_learned_and_exponents_are_not():
    f = Expression("2.0*x**2 - 3.0", XY)
    assert f.constants == (2.0, 3.0) and f.nodes == 7
    c = torch.tensor([1.0, 4.0]).double().requires_grad_()
    (found,) = torch.autograd.grad(f(points(), c).sum(), c)
    torch.testing.assert_close(found, torch.stack((points()[:, 0].square().sum(), torch.tensor(
        -200.0).double())))  # fmt: skip


def test_simplification_changes_no_value_and_finds_common_factors():
    for text in ("(1.9*y)/(1.9*y + 1.9)", "1.0 + 340.0*(0.0064/(-2.176*y - 2.176))", "x/(3.0*y)",
                 "(x + y)*(2.0*x - 1.0)", "sin(2.0*x)/(4.0 + y)"):  # fmt: skip
        f = Expression(text, XY)
        torch.testing.assert_close(f.simplified()(points()), f(points()), rtol=1e-9, atol=1e-9)
    assert str(Expression("(1.9*y)/(1.9*y + 1.9)", XY).simplified()) == "y/(y + 1)"


def test_rounding_brings_the_formula_back():
    near = Expression("0.99992 - 4.1148/(4.1144*y + 4.1145)", XY)
    assert near.rounded().same_as("y/(1 + y)") and not near.same_as("y/(1 + y)")
    assert str(Expression("1.004*x + 0.003", XY).rounded()) == "x"


@pytest.mark.parametrize("text", ["__import__('os')", "x.real", "z + 1", "x if y else 1", "x[0]",
                                  "True*x", "exp(x, y)", "x @ y"])  # fmt: skip
def test_what_is_no_arithmetic_is_refused(text):
    with pytest.raises(pl.UsageError, match="is none of"):
        Expression(text, XY)


def test_the_choice_is_the_best_drop_of_log_loss():
    def made(text, loss, score):
        return Candidate(Expression(text, XY), loss, score)

    front = [made("1.0", 1.0, 0.0), made("2.0*x", 0.9, 0.05), made("x*y", 1e-8, 9.0),
             made("x*y + 0.001*x", 0.9e-8, 0.02)]  # fmt: skip
    assert choose(front).expression.text == "x*y"


def test_a_search_finds_the_right_hand_side():
    """Of the public example of diffrax, from noisy values: the noise is 1 % of the deviation."""
    pytest.importorskip("pyoperon", reason='it comes with the extra "pathline[symbolic]"')
    x = points()
    y = x[:, 1] / (1 + x[:, 1])
    y = y + 0.002 * torch.randn(200, generator=torch.Generator().manual_seed(1)).double()
    front = search(x, y, XY, Search(evaluations=6_000))
    losses = [each.loss for each in front]
    assert losses == sorted(losses, reverse=True)
    assert choose(front).expression.rounded().same_as("y/(1 + y)")


def test_refinement_is_least_squares():
    x = points()
    y = 3 * x[:, 0] - 0.5
    found = refine(Expression("1.0*x + 1.0", XY), x, y)
    assert found.constants == pytest.approx((3.0, -0.5), abs=1e-7)


def test_constants_are_tuned_through_a_solver():
    """x' = −a y, y' = b x from (1, 0): the exact flow at t = 1 gives a and b back."""
    rhs = Formulas([Expression("-1.1*y", XY), Expression("0.8*x", XY)])
    start = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    w = torch.tensor(2.0).double().sqrt()  # a = 2, b = 1
    exact = torch.stack((torch.stack((w.cos(), w.sin() / w)),
                         torch.stack((-w * w.sin(), w.cos()))))  # fmt: skip

    def loss(f):
        end = pl.solve(
            pl.VectorField(f), start, solver=pl.RK4(), grid=pl.grids.uniform(10, start=0.0, end=1.0)
        ).x
        return (end - exact).square().mean()

    found = fine_tune(rhs, loss).read()
    assert [c for f in found for c in f.constants] == pytest.approx(
        [2.0, 1.0], abs=1e-4
    )  # RK4's error at h = 0.1


def test_shapes_and_operators_that_do_not_fit_are_refused():
    x = points()
    with pytest.raises(pl.UsageError, match="2 variables"):
        search(x, x, XY)
    with pytest.raises(pl.UsageError, match="finite"):
        search(x, x[:, 0] * float("nan"), XY)
    with pytest.raises(pl.UsageError, match="operator"):
        Search(operators=("+", "gamma"))
    with pytest.raises(pl.UsageError, match="one formula for each"):
        Formulas([Expression("x", XY)])
    with pytest.raises(pl.UsageError, match="has 1 constants"):
        Expression("2.0*x", XY, (1.0, 2.0))
    with pytest.raises(pl.UsageError, match=r"reads \(batch, 2\)"):
        Expression("2.0*x", XY)(x[:, :1])
