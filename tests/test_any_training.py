"""Any objective, path, network and coupling go together by configuration, and do what they say."""

from itertools import cycle

import pytest
import torch

from pathline.fields import VIEWS, target
from pathline.learn import couplings
from pathline.learn.recipe import Recipe, Watch
from pathline.learn.run import Run
from pathline.paths import bshape, paths

pytest.importorskip("lightning_fabric", reason="it comes with the extra pathline[train]")
pytest.importorskip("ot", reason='it comes with the extra "pathline[ot]"')

OPTIONS = {"sinkhorn": {"eps": 2.0}, "gibbs": {"eps": 4.0}, "balanced_gibbs": {"eps": 4.0}}
NETWORKS = (
    {"class": "MLP", "dim": 2, "width": 8, "depth": 1},
    {"class": "MLP", "dim": 2, "width": 8, "depth": 1, "sharpness": 5.0},
    {"class": "Potential", "dim": 2, "width": 8, "depth": 1},
)
ERRORS = None, "eps", "score", "velocity", "likelihood", 0.5
NAMES = sorted(entry.name for entry in paths)
KINDS = sorted(entry.name for entry in couplings)
MIXED = [
    (path, kind, view, error, network)
    for (path, kind), view, error, network in zip(
        [(path, kind) for path in NAMES for kind in KINDS],
        cycle(VIEWS),
        cycle(ERRORS),
        cycle((0, 1, 2, 1)),
        strict=False,
    )
    if path != "pfgmpp" or (view != "score" and error not in ("score", "likelihood"))  # no score
]


@pytest.mark.filterwarnings("ignore:at eps")
@pytest.mark.parametrize(("path", "kind", "view", "error", "network"), MIXED)
def test_the_loss_of_a_step_is_its_definition(path, kind, view, error, network, monkeypatch):
    """Σ w ‖F(α x_0 + σ x_1, t) − (A x_0 + B x_1)‖²/d, of the very batch, weights of mean one."""
    monkeypatch.setattr("pathline.learn.run.PROBE", 100)  # what a coupling is fitted to
    objective = {"path": path, "view": view, "label": 1.0}
    recipe = Recipe(
        name="any",
        steps=2,
        batch=16,
        warmup=0,
        data={"source": "moons", "n": 64},
        network=NETWORKS[network],
        objective=objective if error is None else objective | {"error": error},
        coupling={"kind": kind, **OPTIONS.get(kind, {})},
        watch=Watch(every=1e9, export=1e9),
    )
    run = Run.start(recipe)
    drawn, law = run.exercises.at(0), recipe.matching().path
    x0, x1, t = drawn.x0, drawn.x1, drawn.t
    x = bshape(law.alpha(t), x0) * x0 + bshape(law.sigma(t), x0) * x1
    wrong = (run.network(x, t.float()) - target(law, view, x0, x1, t)).detach().double()
    g2 = law.diffusion_squared(t) if error == "likelihood" else None
    each = wrong.square().mean(1) * _weight(law, view, error, t, g2)
    if drawn.log_weight is not None:
        each = each * (drawn.log_weight - drawn.log_weight.logsumexp(0)).exp() * len(each)
    before = [p.detach().clone() for p in run.network.parameters()]
    noted = run.advance()
    assert noted is not None
    torch.testing.assert_close(noted[0].double(), each.mean(), rtol=2e-4, atol=1e-5)
    pairs = zip(before, run.network.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def _weight(law, view, error, t, g2):
    """λ of an error of a view, from what each is: a multiple of the error of x_0 at fixed x_t.

    With x_t given, an error e in x_0 is one of −α e/σ in ε, α e/σ² in the score, and
    (α' − α σ'/σ) e in the velocity.
    """
    if error is None:
        return torch.ones_like(t)
    alpha, sigma, rho = law.alpha(t), law.sigma(t), law.sigma(t) / law.alpha(t)
    of = {
        "x0": torch.ones_like(t),
        "eps": alpha / sigma,
        "score": alpha / sigma**2,
        "velocity": law.d_alpha(t) - alpha * law.d_sigma(t) / sigma,
        "v": (alpha**2 + sigma**2) / sigma,
    }
    to_x0 = 1 / of[view].square()
    if error == "likelihood":
        return to_x0 * of["score"].square() * g2
    if isinstance(error, str):
        return to_x0 * of[error].square()
    return to_x0 * (rho**2 + error**2) / (rho * error) ** 2
