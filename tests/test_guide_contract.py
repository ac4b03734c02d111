"""The contract that every registered guide inherits.

A guide needs data (a mask, a classifier, a second model), so each has a specimen here; the tests
know nothing else of it. The model is a smooth one with a condition, in float64, whose calls and
vector-Jacobian products are counted where they happen.
"""

import dataclasses
import json

import pytest
import torch

import pathline as pl
from pathline import steer
from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.paths import PFGMpp
from pathline.solvers import solvers
from pathline.steer import guides, operators

VP, SHAPE = pl.VPLinear(), (1, 4, 4)
COND = {"shift": torch.full((1, 1, 1, 1), 0.6, dtype=torch.float64)}
FREE = {"shift": torch.zeros(1, 1, 1, 1, dtype=torch.float64)}


class Counted(torch.autograd.Function):
    """The identity, which counts how often a gradient passes."""

    passes = 0

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        Counted.passes += 1
        return gradient


class Network:
    """x̂_0 of data around ±shift, smooth in everything, with gradients that are no constants."""

    def __init__(self, width=0.5):
        self.width, self.rows = width, 0

    def __call__(self, x, t, shift):
        self.rows += len(x)
        alpha, sigma = (f(t.double()).view(-1, 1, 1, 1) for f in (VP.alpha, VP.sigma))
        variance = self.width**2 * alpha**2 + sigma**2
        tilt = torch.tanh(alpha * (x + x.roll(1, 3)) / variance)
        return Counted.apply(shift + (alpha * self.width**2 * x / variance) + 0.3 * tilt)


def model(width=0.5):
    return pl.Denoiser(Network(width), VP, "x0", null=FREE, shape=SHAPE)


def drawn(*seeds):
    return noise.normal(seeds, SHAPE, dtype=torch.float64)


def halves():
    left = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    left[0, ..., :2] = 1
    left[1] = 1 - left[0]
    return left


def logits(x, t):
    heat = x.flatten(1).sum(1) * VP.alpha(t.double())
    return torch.stack((heat, -heat, 0 * heat), 1)


AGAINST = {"shift": -COND["shift"]}
MATRIX = noise.normal(range(3), (16,), stream="probe", dtype=torch.float64)
MEASURES = torch.tensor([[0.4, -0.2, 0.3]], dtype=torch.float64)
POOLED = torch.tensor([[[[0.4, -0.2], [0.3, 0.5]]]], dtype=torch.float64)
KNOWN = halves()[:1]
LINEAR = {"operator": operators.Pooling(2), "y": POOLED}


def squared(x0):
    return (x0 - 0.3).square().flatten(1).sum(1) / 2


def tilted(x0):
    return torch.sin(x0).flatten(1).mean(1)


def nudge(x, t, side):
    return (0.4 * torch.tanh(x) + 0.3 * side) * VP.alpha(t.to(x)).view(-1, 1, 1, 1)


SIDE = {"side": torch.ones(1, 1, 1, 1, dtype=torch.float64)}


CALLS_ALONE = steer.CFG(3.0, interval=(0.3, 0.7))

SPECIMENS = {
    "cfg": (steer.CFG(3.0, rescale=0.7), steer.CFG(1.0)),
    "apg": (steer.APG(3.0, parallel=0.2, radius=2.0), steer.APG(1.0)),
    "autoguidance": (
        steer.Autoguidance(2.0, worse=model(0.8)),
        steer.Autoguidance(1.0, worse=model(0.8)),
    ),
    "regions": (
        steer.Regions(halves(), (COND, AGAINST), weight=2.0),
        steer.Regions(torch.ones(1, *SHAPE), (COND,)),
    ),
    "classifier": (steer.Classifier(logits, 0, 2.0), steer.Classifier(logits, 0, 0.0)),
    "measured": (
        steer.Measured(MATRIX, MEASURES, 0.5),
        steer.Measured(MATRIX, MEASURES, 0.5, weight=0.0),
    ),
    "projection": (steer.Projection(**LINEAR), steer.Projection(**LINEAR, strength=0.0)),
    "inpaint": (steer.Inpaint(KNOWN, drawn(9)), steer.Inpaint(KNOWN, drawn(9), 0.0)),
    "diffpir": (steer.DiffPIR(**LINEAR, std=0.1), steer.DiffPIR(**LINEAR, balance=torch.inf)),
    "dps": (steer.DPS(**LINEAR, std=0.7), steer.DPS(**LINEAR, weight=0.0)),
    "pigdm": (steer.PiGDM(**LINEAR, std=0.1), steer.PiGDM(**LINEAR, weight=0.0)),
    "mmps": (steer.MMPS(**LINEAR, std=0.1), steer.MMPS(**LINEAR, weight=0.0)),
    "loss": (steer.Loss(squared, 2.0), steer.Loss(squared, 0.0)),
    "look_ahead": (steer.LookAhead(tilted, 1.5), steer.LookAhead(tilted, 1.5, weight=0.0)),
    "naive_gradient": (steer.Naive(tilted, 1.5), steer.Naive(tilted, 1.5, weight=0.0)),
    "control": (steer.Control(model(0.8), weight=1.5), steer.Control(model(0.8), weight=0.0)),
    "shift": (steer.Shift(nudge, SIDE, 1.5), steer.Shift(nudge, SIDE, 0.0)),
    "clip": (steer.Clip(-0.4, 0.4), steer.Clip(-torch.inf, torch.inf)),
    "dynamic_threshold": (
        steer.DynamicThreshold(0.9, 0.4),
        steer.DynamicThreshold(0.9, torch.inf),
    ),
    "chain": (steer.CFG(2.0) & steer.Clip(-0.5, 0.5), steer.Chain(())),
}
EDGED = {"clip", "dynamic_threshold", "chain"}
"""What has a kink in x, where finite differences say nothing."""

every = pytest.mark.parametrize("name", [entry.name for entry in guides])


def told(guide):
    """The condition of a solve: regions bring their own."""
    return {} if isinstance(guide, steer.Regions) else COND


def test_every_registered_guide_has_a_specimen():
    assert {entry.name for entry in guides} == set(SPECIMENS)
    assert all(entry.paper for entry in guides if entry.name != "chain")


@every
def test_a_weight_that_means_none_is_the_identity(name):
    _, none = SPECIMENS[name]
    field, x = model(), drawn(1, 2)
    plain = field(x, 0.4, **COND).x0
    assert torch.equal(none(field)(x, 0.4, **told(none)).x0, plain)
    assert none(field).calls == 1 and none(field).vjps == 0


@every
def test_guidance_does_something(name):
    guide, _ = SPECIMENS[name]
    field, x = model(), drawn(1, 2)
    moved = guide(field)(x, 0.4, **told(guide)).x0 - field(x, 0.4, **COND).x0
    assert float(moved.abs().max()) > 1e-2


@every
@pytest.mark.parametrize("view", ["eps", "v", "velocity", "score"])
def test_a_guide_says_the_same_in_every_view(name, view):
    """Only φ of CFG is of the model's own view, as its paper has it."""
    guide, _ = SPECIMENS[name]
    guide = dataclasses.replace(guide, rescale=0.0) if name == "cfg" else guide
    field, x = model(), drawn(1, 2)

    def turned(x, t, shift):
        return pl.Prediction(x, t, field.network(x, t, shift), "x0", VP).of(view)

    other = pl.Denoiser(turned, VP, view, null=FREE, shape=SHAPE)
    made, same = (guide(f)(x, 0.4, **told(guide)).x0 for f in (other, field))
    torch.testing.assert_close(made, same, rtol=1e-10, atol=1e-10)


@every
@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm", "dopri5"])
def test_a_sample_knows_nothing_of_its_batch(name, solver):
    """Under a multistep solver, a stochastic and an adaptive one."""
    guide, _ = SPECIMENS[name]
    how = {"solver": solver, "steps": 1 if solver == "dopri5" else 6, "guide": guide}
    how |= {"dtype": torch.float64, **told(guide)}
    whole = pl.sample(model(), seeds=(3, 4, 5), **how).x
    alone = [pl.sample(model(), seeds=(seed,), **how).x for seed in (3, 4, 5)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-10, atol=1e-10)


@every
def test_solvers_agree_on_where_a_guided_field_leads(name):
    """A guide makes a field, so a multistep and an adaptive solver converge to one flow."""
    guide, _ = SPECIMENS[name]
    how = {"dtype": torch.float64, "guide": guide, "seeds": (3, 4), **told(guide)}
    steps = pl.sample(model(), solver="dpmpp_3m", steps=200, **how).x
    tight = solvers.build("dopri5", rtol=1e-5, atol=1e-6)
    adaptive = pl.sample(model(), solver=tight, steps=1, **how).x
    torch.testing.assert_close(steps, adaptive, rtol=0, atol=2e-3 if name in EDGED else 2e-4)


@every
@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm", "heun"])
def test_the_declared_cost_is_the_counted_cost(name, solver):
    guide, _ = SPECIMENS[name]
    field, counted = model(), []
    other = {"autoguidance": "worse", "control": "model"}.get(name)
    other = None if other is None else getattr(guide, other).network
    if other is not None:
        other.rows = 0
    Counted.passes = 0
    stats = pl.sample(field, 2, solver=solver, steps=4, guide=guide, dtype=torch.float64,
                      **told(guide)).stats  # fmt: skip
    counted = field.network.rows + (other.rows if other is not None else 0)
    assert counted == 2 * stats.network_calls
    assert Counted.passes == stats.vjps


@every
def test_a_guide_describes_itself(name):
    guide, _ = SPECIMENS[name]
    described = json.loads(json.dumps(guide.describe()))
    assert described["name"] == name
    receipt = pl.sample(model(), 1, steps=2, guide=guide, **told(guide)).receipt
    assert receipt.recipe["guide"] == described


@every
def test_composition_is_associative(name):
    guide, _ = SPECIMENS[name]
    second = steer.Classifier(logits, 1, 0.5)
    third = steer.Clip(-1.0, 1.0)
    one, two = (guide & second) & third, guide & (second & third)
    assert one.describe() == two.describe()
    field, x = model(), drawn(1, 2)
    values = [g(field)(x, 0.3, **told(guide)).raw for g in (one, two)]
    nested = third(second(guide(field)))(x, 0.3, **told(guide)).raw
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], nested)


@every
def test_gradients_go_through_a_guide(name):
    if name in EDGED:
        pytest.skip("it has a kink")
    guide, _ = SPECIMENS[name]
    guided, x = guide(model()), drawn(1)[..., :].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: guided(x, 0.4, **told(guide)).raw, (x,), atol=1e-6, rtol=1e-4
    )


@every
def test_the_gradient_mode_is_the_callers(name):
    guide, _ = SPECIMENS[name]
    how = {"steps": 3, "guide": guide, "dtype": torch.float64, **told(guide)}
    free = pl.sample(model(), 2, **how).x
    with torch.no_grad():
        off = pl.sample(model(), 2, **how).x
    with torch.inference_mode():
        inferred = pl.sample(model(), 2, **how).x
    assert not free.requires_grad and not off.requires_grad
    assert torch.equal(free, off) and torch.equal(off, inferred)


# --- what is known of single guides --------------------------------------------------------------


def test_an_interval_saves_the_calls_outside_it():
    field = model()
    sol = pl.sample(field, 2, solver="ddim", grid=pl.grids.uniform(10), guide=CALLS_ALONE, **COND)
    inside = sum(0.3 <= t <= 0.7 for t in sol.receipt.grid[:-1])
    assert 0 < inside < 10
    assert sol.stats.network_calls == 10 + inside == field.network.rows / 2


def test_outside_its_interval_guidance_is_the_model():
    field, x = model(), drawn(1, 2)
    levels = torch.tensor([0.2, 0.5], dtype=torch.float64)
    made = CALLS_ALONE(field)(x, levels, **COND).x0
    plain, guided = field(x, levels, **COND).x0, steer.CFG(3.0)(field)(x, levels, **COND).x0
    assert torch.equal(made[0], plain[0]) and torch.equal(made[1], guided[1])
    by_noise = steer.CFG(3.0, interval=(float(VP.sigma(0.3) / VP.alpha(0.3)), 1e3), of="sigma")
    assert torch.equal(by_noise(field)(x, levels, **COND).x0, made)


def test_guidance_of_gaussians_is_in_closed_form():
    """Two Gaussians of one covariance: guidance w moves the mean of x̂_0's law by w."""
    c, w, t = 0.25, 3.0, 0.4
    field = pl.Denoiser(
        lambda x, t, shift: shift + VP.alpha(t.double()).view(-1, 1, 1, 1) * c
        * (x - VP.alpha(t.double()).view(-1, 1, 1, 1) * shift)
        / (c * VP.alpha(t.double()) ** 2 + VP.sigma(t.double()) ** 2).view(-1, 1, 1, 1),
        VP, "x0", null=FREE, shape=SHAPE,
    )  # fmt: skip
    x = drawn(1)
    moved = {"shift": w * COND["shift"]}
    torch.testing.assert_close(steer.CFG(w)(field)(x, t, **COND).x0, field(x, t, **moved).x0)


def test_rescaling_keeps_the_deviation_of_the_conditional_output():
    field, x = model(), drawn(1, 2)
    made = steer.CFG(5.0, rescale=1.0)(field)(x, 0.4, **COND).raw
    plain = field(x, 0.4, **COND).raw
    torch.testing.assert_close(made.flatten(1).std(1), plain.flatten(1).std(1))


def test_projected_guidance_of_everything_is_guidance_and_of_nothing_is_orthogonal():
    field, x = model(), drawn(1, 2)
    plain = field(x, 0.4, **COND).x0
    whole = steer.APG(3.0, parallel=1.0)(field)(x, 0.4, **COND).x0
    torch.testing.assert_close(whole, steer.CFG(3.0)(field)(x, 0.4, **COND).x0)
    step = steer.APG(3.0, parallel=0.0, radius=0.1)(field)(x, 0.4, **COND).x0 - plain
    assert float((step * plain).flatten(1).sum(1).abs().max()) < 1e-12
    assert float(step.flatten(1).norm(dim=1).max()) <= 2 * 0.1 + 1e-12


def test_regions_hear_their_own_condition():
    field, x = model(), drawn(1, 2)
    made = steer.Regions(halves(), (COND, AGAINST))(field)(x, 0.4).x0
    left, right = (field(x, 0.4, **c).x0 for c in (COND, AGAINST))
    assert torch.equal(made[..., :2], left[..., :2]) and torch.equal(made[..., 2:], right[..., 2:])


def test_thresholds_are_those_of_the_quantile():
    field, x = model(), 3 * drawn(1, 2)
    plain, made = field(x, 0.4, **COND).x0, steer.DynamicThreshold(0.5, 0.2)(field)(
        x, 0.4, **COND
    ).x0  # fmt: skip
    s = plain.abs().flatten(1).quantile(0.5, 1).view(-1, 1, 1, 1)
    torch.testing.assert_close(made, plain.clamp(-s, s) * 0.2 / s, rtol=1e-6, atol=1e-6)
    assert float(made.abs().max()) <= 0.2 + 1e-12


def test_a_control_goes_from_the_model_to_its_own_and_beyond():
    """At weight 1 the controlled model alone is asked; CFG inside acts on both."""
    field, taught, x = model(), model(0.8), drawn(1, 2)
    free, own = (f(x, 0.4, **COND).raw for f in (field, taught))
    taught.network.rows = field.network.rows = 0
    assert torch.equal(steer.Control(taught)(field)(x, 0.4, **COND).raw, own)
    assert (field.network.rows, taught.network.rows) == (0, 2)
    beyond = steer.Control(taught, weight=2.0)(field)(x, 0.4, **COND).raw
    torch.testing.assert_close(beyond, free + 2 * (own - free))
    inside = steer.Control(taught, weight=0.5, inside=steer.CFG(3.0))(field)(x, 0.4, **COND).raw
    each = [steer.CFG(3.0)(f)(x, 0.4, **COND).raw for f in (field, taught)]
    torch.testing.assert_close(inside, (each[0] + each[1]) / 2)


def test_a_shift_moves_the_noise_in_units_of_its_own():
    field, x = model(), drawn(1, 2)
    guide = steer.Shift(nudge, SIDE, 2.0, unit=lambda t: 3.0 + 0 * t)
    moved = guide(field)(x, 0.4, **COND).eps - field(x, 0.4, **COND).eps
    t = torch.full((2,), 0.4)
    torch.testing.assert_close(moved, 6 * nudge(x, t, SIDE["side"]))
    flow = pl.Denoiser(lambda x, t: -x, pl.CondOT(), "velocity")
    at_noise = guide(flow)(x, 1.0).raw  # α = 0: a state says nothing of the data
    assert torch.equal(at_noise, flow(x, 1.0).raw)


def test_every_pair_of_guides_works_or_is_refused_by_name():
    """Refused are those that choose evaluations behind another, and projections that undo one
    another; all other pairs, in both orders, guide together."""
    field, x = model(), drawn(1, 2)
    for first, (a, _) in SPECIMENS.items():
        for second, (b, _) in SPECIMENS.items():
            undoes = {first, second} == {"projection", "inpaint"}
            try:
                both = a & b
                told_of = {} if "regions" in (first, second) else COND
                made = both(field)(x, 0.4, **told_of).x0
            except UsageError as error:
                assert b.chooses_evaluations or undoes, (first, second)
                last = b.members[0] if isinstance(b, steer.Chain) else b
                before = a.members[-1] if isinstance(a, steer.Chain) else a
                for each in (last, before):
                    assert type(each).__name__ in str(error), (first, second)
            else:
                assert not b.chooses_evaluations and not undoes, (first, second)
                assert bool(made.isfinite().all()), (first, second)


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(16)], ids=str)
def test_a_network_of_a_guide_that_is_in_training_is_named(layer):
    """Found in closures, too; a network in evaluation guides."""
    net = torch.nn.Sequential(torch.nn.Flatten(), layer, torch.nn.Linear(16, 3)).double()
    field, x = model(), drawn(1, 2)
    guides_ = (
        steer.Loss(lambda x0: net(x0).square().sum(1)),
        steer.Classifier(lambda x, t: net(x), 0),
        steer.LookAhead(lambda x0: net(x0)[:, 0], 1.0),
    )
    for guide in guides_:
        with pytest.raises(UsageError, match=rf"1 \({type(layer).__name__}\) is in training mode"):
            guide(field)
    net.eval()
    for guide in guides_:
        assert guide(field)(x, 0.4, **COND).x0.isfinite().all()


def test_bad_guides_are_refused_with_the_reason():
    field, x = model(), drawn(1)
    clip, other = steer.Clip(), pl.Denoiser(Network(), pl.CondOT(), "x0")
    cases = (
        (lambda: clip & steer.CFG(2.0), "CFG chooses which evaluations .* Clip comes before it"),
        (lambda: steer.CFG(2.0) & steer.APG(2.0), "alone of its kind"),
        (lambda: steer.CFG(2.0)(clip(field)), "comes first"),
        (lambda: clip & 3.0, "the right side is 3.0"),
        (
            lambda: steer.Classifier(logits)(pl.Denoiser(Network(), PFGMpp(dof=16), "x0")),
            "gradient of log p_t for D=inf alone",
        ),
        (lambda: clip(pl.VectorField(lambda x, t: x)), "a model on a path"),
        (lambda: steer.CFG(2.0, interval=(0.5, 0.2)), "the lower end comes first"),
        (lambda: steer.CFG(2.0, of="lambda"), "unknown measure of noise"),
        (lambda: steer.CFG(2.0, rescale=2.0), "φ is from 0"),
        (lambda: steer.APG(2.0, radius=0.0), "above 0"),
        (lambda: steer.Autoguidance()(field), "needs the worse model"),
        (lambda: steer.Autoguidance(worse=other)(field), "on one path"),
        (lambda: steer.Control()(field), "needs the controlled model"),
        (lambda: steer.Control(other)(field), "on one path"),
        (lambda: steer.Control(field, weight=float("nan")), "a finite number, 1 as trained"),
        (lambda: steer.Control(model(0.8))(clip(field)), "goes inside="),
        (lambda: steer.Control(field, COND)(field)(x, 0.4, **COND), "is said by the control"),
        (lambda: steer.Shift()(field), "needs the network"),
        (lambda: steer.Shift(lambda x, t: x[:, 0])(field)(x, 0.4, **COND), "answers a state"),
        (lambda: steer.Shift(nudge)(pl.VectorField(lambda x, t: x)), "without a path"),
        (lambda: steer.Regions(halves(), (COND,)), "2 masks and 1 conditions"),
        (lambda: steer.Regions(0 * halves(), (COND, COND)), "every place belongs"),
        (lambda: steer.Regions()(field)(x, 0.4), "needs both"),
        (lambda: steer.Regions(halves(), (COND, COND))(field)(x, 0.4, **COND), "besides"),
        (lambda: steer.Regions(torch.ones(1, 3), (COND,))(field)(x, 0.4), "do not fit"),
        (lambda: steer.Regions(weight=2.0)(other), "use weight=1"),
        (lambda: steer.CFG(2.0)(field)(x, 0.4), "nothing to guide to"),
        (lambda: steer.Clip(1.0, 0.0), "the lower end comes first"),
        (lambda: steer.DynamicThreshold(0.0), "a quantile is from 0 to 1"),
    )
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()
