"""What a gradient costs, said beforehand; loops over noise, condition and weights; LoRA."""

import math

import pytest
import torch
from torch import nn

import pathline as pl
from pathline.core import noise
from pathline.fields import Denoiser
from pathline.learn.lora import adapted, adapters_of
from pathline.solvers import solve
from pathline.solvers.adjoints import Checkpoint, Continuous
from pathline.solvers.adjoints.meter import peak_bytes, saved
from pathline.steer import CFG, Adam, Loss, Steepest, descend

VP = pl.VPLinear()


def law():
    means = torch.tensor([[-0.5, 0.3], [0.6, -0.2]], dtype=torch.float64).requires_grad_()
    return pl.Mixture(
        VP, means, torch.full((2, 2), 0.3).double(), torch.tensor([0.4, 0.6]).double()
    )


def starts(n=6, dim=2):
    return noise.normal(range(n), (dim,), dtype=torch.float64)


class Net(nn.Module):
    """A network with a condition that is a vector, whose activations outweigh its state."""

    def __init__(self, width=64):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(5, width), nn.Linear(width, 2)
        self.double()

    def forward(self, x, t, c):
        return self.two(torch.tanh(self.one(torch.cat((x, c, t[:, None]), 1))))


def model():
    return Denoiser(Net(), VP, "eps", null={"c": torch.zeros(1, 2).double()}, shape=(2,))


C = torch.tensor([[0.4, -0.7]], dtype=torch.float64)


# --- explain ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "adjoint", ["direct", None, Checkpoint(3), Checkpoint(together=4), "continuous"], ids=str
)
@pytest.mark.parametrize("solver", ["rk4", "dpmpp_3m", "heun"])
def test_explain_counts_what_then_happens(adjoint, solver):
    told = pl.explain(model(), starts(), solver=solver, steps=9, adjoint=adjoint, c=C)
    x = starts().requires_grad_()
    sol = solve(model(), x, solver=solver, steps=9, adjoint=adjoint, c=C)
    sol.x.sum().backward()
    assert (told.nfe, told.network_calls) == (sol.stats.nfe, sol.stats.network_calls)
    if adjoint != "direct":
        assert (told.back.nfe, told.back.vjps) == (sol.backward.nfe, sol.backward.vjps)


@pytest.mark.parametrize(
    ("adjoint", "solver"), [("direct", "heun"), ("checkpoint", "heun"), ("checkpoint", "dpmpp_3m")]
)
def test_the_memory_that_explain_tells_is_what_is_kept(adjoint, solver):
    """Activations by the meter of saved tensors: all that is besides is a cotangent or two."""
    net, x = model(), starts(64)
    told = pl.explain(net, x, solver=solver, steps=12, adjoint=adjoint, c=C)
    with saved(net) as gauge:
        sol = solve(net, x.clone().requires_grad_(), solver=solver, steps=12, adjoint=adjoint, c=C)
        sol.x.sum().backward()
    activations = told.back.evaluations * told.activation_bytes
    assert gauge.peak == pytest.approx(activations, rel=0.1)
    # heun: one state a step. ++3M remembers two slopes, and in ε̂ the states that belong to them.
    states = {"heun": 12, "dpmpp_3m": 1 + 3 + 10 * 5}[solver]
    assert told.back.states == (2 if adjoint == "direct" else states)


def test_explain_knows_guides_and_samples_and_says_it():
    guide = CFG(2.0) & Loss(lambda x: x.square().sum(1), weight=0.1)
    told = pl.explain(model(), 4, steps=5, guide=guide, dtype=torch.float64, c=C)
    assert (told.nfe, told.network_calls, told.vjps) == (5, 10, 5)
    assert told.adjoint == "checkpoint" and told.state_bytes == 4 * 2 * 8
    assert str(told).splitlines()[1] == "  out   5 evaluations, 10 network calls, 5 products"
    with pytest.raises(pl.UsageError, match="while it runs"):
        pl.explain(model(), 4, solver="dopri5", dtype=torch.float64, c=C)
    with pytest.raises(pl.UsageError, match=r"explain\(f, x\)"):
        pl.explain(lambda x, t: x)


def test_meters_count_what_they_say():
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    with saved() as gauge:
        y = x.exp()
        now = gauge.now
        del y
    assert (now, gauge.now, gauge.peak) == (8000, 0, 8000)
    kept = []
    assert peak_bytes(lambda: [kept.append(torch.ones(125).double()) for _ in range(3)]) >= 3000


# --- loops --------------------------------------------------------------------------------------


def test_noise_is_found_that_ends_where_it_should():
    field, target = law(), torch.tensor([0.2, 0.1], dtype=torch.float64)
    found = descend(field, starts(), lambda x: (x - target).square().sum(), iterations=60,
                     update=Adam(0.1), solver="heun", steps=8)  # fmt: skip
    again = solve(field, found.noise, solver="heun", steps=8)
    assert torch.equal(again.x.detach(), found.x) and len(found.losses) == 61
    assert found.losses[-1] < 0.05 * found.losses[0]
    assert found.losses[-1] == pytest.approx(float((found.x - target).square().sum()))


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_steepest_steps_have_their_length_and_stay_within(p):
    """Sample by sample ‖Δ‖_p = rate; after enough steps the bound holds in every coordinate."""
    field, x = law(), starts()
    one = descend(field, x, lambda x: -x.square().sum(), iterations=1, update=Steepest(0.03, p),
                   solver="euler", steps=4)  # fmt: skip
    lengths = (one.noise - x).norm(p, dim=1)
    torch.testing.assert_close(lengths, torch.full((6,), 0.03).double())
    far = descend(field, x, lambda x: -x.square().sum(), iterations=9, update=Steepest(0.03, p),
                   within=0.05, solver="euler", steps=4)  # fmt: skip
    assert (
        float((far.noise - x).abs().max()) == pytest.approx(0.05) and far.losses[-1] < far.losses[0]
    )


def test_a_condition_is_found_from_what_it_made():
    """A model that says x̂_0 = c, guided by 2: samples end at 2c, so c is half of what they show.

    Of several noises, gradients added up; what is told is not changed behind the user's back.
    """
    net = Denoiser(lambda x, t, c: c.expand_as(x), VP, "x0", null={"c": torch.zeros(1, 2).double()})
    noises, before = [starts(4), starts(8)[4:]], torch.zeros(1, 2, dtype=torch.float64)
    grid = pl.grids.log_snr(5, last="denoise")

    def loss(x):
        return (x - 2 * C).square().sum()

    found = descend(net, noises, loss, wrt="condition", iterations=150, update=Adam(0.1),
                     grid=grid, guide=CFG(2.0), c=before)  # fmt: skip
    assert float(before.abs().max()) == 0 and found.losses[0] == pytest.approx(
        16 * float((C**2).sum())
    )
    torch.testing.assert_close(found.condition["c"], C, rtol=0, atol=1e-3)  # Adam's last steps


def test_the_continuous_adjoint_is_probed_once_in_a_loop():
    seen = []
    found = descend(
        law(), starts(), lambda x: x.square().sum(), iterations=3, solver="rk4", steps=10,
        adjoint=Continuous(), watch=lambda *told: seen.append(told),
    )  # fmt: skip
    assert [told[:2] for told in seen] == list(enumerate(found.losses[:3]))


def test_a_loop_says_what_it_needs():
    for how, said in (
        ({"iterations": 0}, "at least one update"),
        ({"within": 0.0}, "distance above 0"),
        ({"wrt": "weights"}, r"needs? network.requires_grad_|nothing to differentiate"),
    ):
        net = model()
        net.network.requires_grad_(False)
        with pytest.raises(pl.UsageError, match=said):
            descend(net, starts(), lambda x: x.sum(), steps=3, c=C, **how)
    with pytest.raises(pl.UsageError, match="one is optimised"):
        descend(law(), [starts(), starts()], lambda x: x.sum())
    for make in (lambda: Adam(0.0), lambda: Steepest(-1.0), lambda: Steepest(p=0.0)):
        with pytest.raises(pl.UsageError):
            make()


# --- LoRA ---------------------------------------------------------------------------------------


def test_lora_begins_as_the_model_was_and_moves_nothing_else():
    pytest.importorskip("peft", reason='it comes with the extra "pathline[lora]"')
    net = model()
    small = adapted(net, rank=2)
    with torch.no_grad():
        before = solve(net, starts(), steps=4, c=C).x
        assert torch.equal(solve(small, starts(), steps=4, c=C).x, before)
    assert {tuple(p.shape) for p in adapters_of(small).values()} == {
        (2, 5),
        (64, 2),
        (2, 64),
        (2, 2),
    }
    frozen = {n: p.clone() for n, p in small.network.named_parameters() if not p.requires_grad}
    found = descend(small, starts(), lambda x: (x - 1).square().sum(), wrt="weights",
                     iterations=8, update=Adam(0.02), steps=4, c=C)  # fmt: skip
    assert found.losses[-1] < found.losses[0]
    after = dict(small.network.named_parameters())
    assert all(torch.equal(after[name], p) for name, p in frozen.items())
    with torch.no_grad():
        assert torch.equal(solve(net, starts(), steps=4, c=C).x, before)


def test_lora_says_what_it_needs():
    pytest.importorskip("peft", reason='it comes with the extra "pathline[lora]"')
    with pytest.raises(pl.UsageError, match="no layer of this network is called query"):
        adapted(model(), layers=["query"])
    with pytest.raises(pl.UsageError, match="rank=0"):
        adapted(model(), rank=0)
    with pytest.raises(pl.UsageError, match="plain function"):
        adapted(Denoiser(lambda x, t: x, VP))
    assert set(adapters_of(adapted(model(), layers=["two"]))) == {
        f"two.lora_{letter}.default.weight" for letter in "AB"
    }
