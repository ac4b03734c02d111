"""The documentation's tables are those of the registry, and what it says of networks is true."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pathline as pl
from pathline.cli.listing import solver_table
from pathline.fields import Denoiser
from pathline.paths import Tabulated
from pathline.solvers import Solver, solvers

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *ROOT.glob("*.md"),
    *DOCS.rglob("*.md"),
    *(ROOT / "benchmarks").glob("*.md"),
    *(ROOT / "src").rglob("*.md"),
]
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
MEAN, STD = 1.5, 0.5


def section(page, title):
    return page.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_table_of_solvers_is_fresh():
    """Otherwise: pathline solvers --markdown, between the two marks."""
    page = (DOCS / "solvers.md").read_text(encoding="utf-8")
    assert page.split("<!-- solvers -->\n")[1].split("\n<!-- /solvers -->")[0] == solver_table()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_number_of_a_page_is_left_to_fill_in(page):
    """Code may have decorators and addresses; prose and tables have neither."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    assert not re.findall(r"(?<![\w.])@[a-z]\w*|\{\{.*?\}\}|\{%.*?%\}", prose)


def denoised(x, alpha, sigma):
    """E[x_0 | x] of data N(MEAN, STD²)."""
    gain = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


def network(predicts, levels):
    """Return the exact network that predicts x0, eps, v, flow or backwards."""

    def net(x, told):
        alpha, sigma = (level[:, None] for level in levels(told))
        x0 = denoised(x, alpha, sigma)
        eps = (x - alpha * x0) / sigma.clamp(min=1e-9)
        said = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0}
        return x0 - eps if predicts == "backwards" else said[predicts]

    return net


def indexed(n):
    """α and σ of a table's index; between two of them ᾱ is taken to be geometric."""
    table = torch.cumprod(1 - BETAS, 0).log()
    low = n.long()
    between = torch.lerp(table[low], table[(low + 1).clamp(max=999)], n - low)
    return (between / 2).exp(), (-between.expm1()).sqrt()


def whole_index(n):
    assert not n.is_floating_point()
    return indexed(n.double())


def continuous(told):
    return pl.VPLinear().alpha(told / 999), pl.VPLinear().sigma(told / 999)


def noise_level(sigma):
    return torch.ones_like(sigma), sigma


def noise_last(t):
    return 1 - t, t


def data_last(t):
    return t, 1 - t


NETWORKS = [  # row by row of the table
    ("eps", indexed, Tabulated.from_betas(BETAS)),
    ("eps", whole_index, Tabulated.from_betas(BETAS)),
    ("eps", continuous, pl.VPLinear()),
    ("v", indexed, Tabulated.from_betas(BETAS)),
    ("x0", indexed, Tabulated.from_betas(BETAS)),
    ("x0", noise_level, pl.EDM()),
    ("flow", noise_last, pl.CondOT()),
    ("backwards", data_last, pl.CondOT()),
]
ROWS = [
    line
    for line in section(DOCS / "paths.md", "Your own network").splitlines()
    if line.startswith("|") and "Denoiser(" in line
]


def sampled(row, net, path):
    """Return mean and deviation of the samples of a network that is wrapped as a row says."""
    code = row.split("|")[-2].strip().strip("`")
    model = eval(code, {"Denoiser": Denoiser, "net": net, "path": path})
    grid = pl.grids.log_snr(40)
    grid = pl.grids.whole(grid, path) if ".long()" in code else grid
    x = pl.sample(model, 2000, shape=(3,), grid=grid, dtype=torch.float64).x
    return float(x.mean()), float(x.std())


def test_every_row_has_its_network():
    assert len(ROWS) == len(NETWORKS)


@pytest.mark.parametrize("number", range(len(NETWORKS)))
def test_a_network_wrapped_as_the_page_says_samples_its_data(number):
    predicts, levels, path = NETWORKS[number]
    mean, std = sampled(ROWS[number], network(predicts, levels), path)
    # of 6000 numbers the mean is good to 0.0065; a path that ends before pure noise, as EDM's and
    # the table's do, shifts it by as much; a wrong sign, view or label by 0.3 and more
    assert mean == pytest.approx(MEAN, abs=0.035)
    assert std == pytest.approx(STD, abs=0.02)


def test_a_flow_wrapped_the_other_way_is_as_wrong_as_the_page_says():
    mean, std = sampled(ROWS[-2], network("backwards", data_last), pl.CondOT())
    text = section(DOCS / "paths.md", "Your own network")
    assert f"mean −{-mean:.1f} and deviation {std:.1f}" in text


def test_the_check_of_ones_own_network_prints_what_it_says(capsys):
    (code,) = blocks(section(DOCS / "paths.md", "Your own network"))
    exec(compile(code, "paths.md", "exec"), {})
    assert capsys.readouterr().out.strip() == code.strip().split("# ")[-1]


@pytest.fixture
def apart(monkeypatch):
    """Registrations of a test end with it."""
    for table in ("_entries", "_names"):
        monkeypatch.setattr(solvers, table, dict(getattr(solvers, table)))


def test_the_solver_of_twenty_lines_runs(apart):
    (code,) = blocks(section(ROOT / "CONTRIBUTING.md", "Add a solver"))
    exec(compile(code, "CONTRIBUTING.md", "exec"), {})
    rule = solvers.build("slopes_2")
    assert isinstance(rule, Solver)
    order = rule.plan(pl.VPLinear(), pl.grids.log_snr(4)).order()
    assert order == pytest.approx(rule.order, abs=0.15)


def test_unregistered_it_samples_and_says_why_its_order_is_not_measured():
    (code,) = blocks(section(ROOT / "CONTRIBUTING.md", "Add a solver"))
    names = {}
    exec(compile(re.sub(r"@solvers.*\n", "", code), "CONTRIBUTING.md", "exec"), names)
    rule = names["TwoSlopes"]()
    law = pl.Gaussian(pl.VPLinear(), torch.ones(2), torch.ones(2))
    assert pl.sample(law, 2, solver=rule, steps=4).x.isfinite().all()
    with pytest.raises(pl.UsageError, match="is not registered"):
        rule.plan(pl.VPLinear(), pl.grids.log_snr(4)).order()


@pytest.mark.parametrize("name", ["emoji", "fashion"])
def test_a_shipped_card_draws_as_its_pictures_were_drawn(name):
    """Its snippet is what `pathline evaluate --card` writes of the model's own defaults."""
    from pathline.learn.checkpoint import load_model
    from pathline.learn.quality.card import _use

    model = load_model(name)
    card = (ROOT / "src/pathline/models" / name / "README.md").read_text(encoding="utf-8")
    told = SimpleNamespace(call=dict(model.defaults))
    assert "\n".join(_use(model, told)) in card
    assert f"{model.defaults['steps']} evaluations with {model.defaults['solver']}," in card
