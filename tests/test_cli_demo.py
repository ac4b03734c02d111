"""The demonstration: a page that needs nothing else, and whose numbers are those of the library."""

import base64
import re
import sys

import pytest
import torch
from PIL import Image
from test_cli import assert_refused, done
from tiny_model import tiny_model

import pathline as pl
from pathline.cli.demo import _hero
from pathline.cli.demo.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart
from pathline.cli.demo.measure import (
    COMPARED,
    CONVERGED,
    FEW,
    PROMPTS,
    SHOWN,
    SOLVERS,
    grid_for,
    measured_flow,
)
from pathline.core.images import read_receipt
from pathline.solvers.solver import solvers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model and the demonstration made of it, once."""
    folder = tmp_path_factory.mktemp("demo")
    done("demo", "--model", tiny_model(folder / "tiny"), "-o", folder / "out")
    return folder


@pytest.fixture
def page(folder):
    return (folder / "out" / "index.html").read_text(encoding="utf-8")


def pictures(page):
    return [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]


def test_the_page_asks_for_nothing_else(page):
    assert re.findall(r"<(?:script|link|iframe)|https?:|@import|url\(", page) == []
    assert set(re.findall(r'(?:src|href)="([^:"]*:[^;"]*)', page)) == {"data:image/png"}
    assert not re.search(r"\$[a-z_]+", page)  # every blank is filled
    assert all(prompt in page for prompt in PROMPTS)


def test_pictures_saved_from_the_page_can_be_replayed(folder, page):
    hero, *others = pictures(page)
    assert len(others) == len(PROMPTS) + len(SOLVERS) * len(SHOWN) + 1
    for number in (0, len(PROMPTS), -1):  # of the gallery, of the comparison, the converged one
        (folder / "saved.png").write_bytes(others[number])
        done("replay", folder / "saved.png", "-o", folder / "again.png")
        assert (folder / "again.png").read_bytes() == others[number]
    assert read_receipt(folder / "saved.png").nfe == CONVERGED[1]
    assert hero == (folder / "out" / "hero.png").read_bytes()
    assert Image.open(folder / "out" / "hero.png").size == (1200, 500)


def test_the_errors_on_the_page_are_those_of_sample(folder, page):
    model = pl.load(folder / "tiny")
    shown = iter(re.findall(r'class="error">([\d.]+)', page))

    def drawn(name, n):
        solver = solvers.build(name)
        grid = pl.grids.focused(n // solver.nfe_per_step, margin=1.0)
        call = {"text": list(COMPARED), "guide": pl.CFG(3.0), "grid": grid}
        return pl.sample(model, 6, solver=solver, **call).x

    with torch.no_grad():
        converged = drawn(*CONVERGED)
        for name in SOLVERS:
            for n in SHOWN:
                error = (drawn(name, n) - converged).square().mean().sqrt()
                assert next(shown) == f"{error:.3f}"
    assert next(shown, None) is None


def test_the_flow_is_measured_right():
    """Euler's steps written out, against paths whose own error is far below what is printed."""
    flow = measured_flow()
    start, x = flow.exact.trajectory[0], flow.exact.trajectory[0]
    grid = pl.grids.focused(FEW, margin=1.0)
    times = torch.tensor(grid.times(flow.law.path), dtype=torch.float64)
    for t, s in zip(times, times[1:], strict=False):
        x0 = flow.law(x, t).x0
        x = x + (s - t) * (x - x0) / t  # CondOT: dx/dt = ε̂ − x̂_0 = (x − x̂_0)/t
    assert torch.allclose(x, flow.paths["euler"].x, atol=1e-12)
    finer = pl.solve(flow.law, start, solver="rk4", grid=pl.grids.log_snr(1600)).x
    assert (finer - flow.exact.x).abs().max() < 1e-5
    assert flow.error("euler") == pytest.approx(float((x - finer).square().mean().sqrt()), rel=1e-3)


def test_a_solver_never_makes_more_evaluations_than_it_may():
    for name in (*SOLVERS, "heun", "rk4"):
        solver = solvers.build(name)
        for n in SHOWN:
            assert n - solver.nfe_per_step < grid_for(solver, n).n * solver.nfe_per_step <= n


def test_a_chart_is_logarithmic_and_fills_its_frame():
    chart = Chart({"a": [(5, 1.0), (10, 0.1), (20, 0.01)]})
    (x0, y0), (x1, y1), (x2, y2) = (chart.place(*point) for point in chart.curves["a"])
    assert (x0, x2) == (LEFT, WIDTH - RIGHT) and (y0, y2) == (TOP, HEIGHT - BOTTOM)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.1)  # equal ratios are equal lengths,
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.1)  # to a rounded tenth of a pixel
    assert chart.svg("a < b").count("<circle") == 3 and "a &lt; b" in chart.svg("a < b")


def test_without_matplotlib_there_is_a_page_but_no_hero(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert _hero(None, None, tmp_path / "hero.png") is None
    assert 'pip install "pathline[plot]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_demonstrated_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(tmp_path / "plain", conditional=False)
    (tmp_path / "file").write_text("a file")
    assert_refused(tmp_path, ["demo", "--model", "plain"], "no null condition")
    assert_refused(tmp_path, ["demo", "--model", "emojy"], "unknown model")
    assert_refused(tmp_path, ["demo", "-o", "file/demo"], "is a file")
