"""Executors: the same loop, compiled or captured."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

import pathline as pl
from pathline.core import noise
from pathline.core.tensors import on_device
from pathline.fields.problems import m4
from pathline.nets import DiT
from pathline.solvers import ThinnedGuidance, executors
from pathline.solvers.execute import Sum
from pathline.solvers.executors import Compiled, Graph
from pathline.solvers.heads import Heads
from pathline.solvers.null_start import NullStart
from pathline.speed import SADA, Cadence

VP, OT = pl.VPLinear(), pl.CondOT()


def network(seed=3, dtype=torch.float32):
    net = DiT(channels=1, size=8, patch=4, width=16, depth=1, heads=2, context_width=8)
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2, generator=generator)
    return net.to(dtype).eval().requires_grad_(False)


def model(**rest):
    null = {"context": torch.ones(1, 2, 8)}
    return pl.Denoiser(network(**rest), OT, view="velocity", null=null, shape=(1, 8, 8))


def context(n, seed=0):
    return noise.normal(range(seed, seed + n), (2, 8))


# --- compile -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def compiled(request):
    """One executor, whose code is compiled once for all tests; by gcc only in the slow ones."""
    return Compiled(backend=request.param)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "euler", "dpmpp_2m_sde"])
def test_compiled_is_close_to_eager(compiled, solver):
    """Float32, six steps of a network: fused sums round less often, by 1e-6 of the state a step."""
    how = {"solver": solver, "steps": 6, "guide": pl.CFG(2.0), "context": context(3)}
    eager = pl.sample(model(), 3, **how)
    fast = pl.sample(model(), 3, executor=compiled, **how)
    assert fast.stats == eager.stats and fast.receipt.recipe["executor"] == "compile"
    torch.testing.assert_close(fast.x, eager.x, rtol=1e-4, atol=1e-4)


def test_an_exact_field_is_compiled_as_a_function(compiled):
    eager, fast = (
        pl.sample(m4(VP), 4, steps=6, dtype=torch.float64, executor=e) for e in ("eager", compiled)
    )
    torch.testing.assert_close(fast.x, eager.x, rtol=1e-11, atol=1e-11)


def test_more_steps_compile_nothing_more(compiled):
    law = model()
    how = {"solver": "dpmpp_2m", "executor": compiled, "context": context(3)}
    pl.sample(law, 3, steps=5, **how)
    before = counters["stats"]["unique_graphs"]
    pl.sample(law, 3, steps=12, **how)
    pl.sample(law, 3, steps=7, grid="uniform", seed=5, **how)
    assert counters["stats"]["unique_graphs"] == before > 0


def test_compiled_loops_can_be_watched_and_thinned(compiled):
    """Sub-batches of SADA's samples go through the same network."""
    how = {"steps": 12, "grid": "uniform", "context": context(3)}
    for speed in (SADA(criterion="magnitude", limit=0.5), Cadence(2)):
        eager = pl.sample(model(), 3, speed=speed, **how)
        fast = pl.sample(model(), 3, speed=speed, executor=compiled, trajectory=True, **how)
        assert fast.nfes == eager.nfes
        torch.testing.assert_close(fast.x, eager.x, rtol=1e-4, atol=1e-4)
        assert torch.equal(fast.trajectory[-1], fast.x)


def test_networks_are_remembered_and_forgotten():
    executor = Compiled(keep=2)
    nets = [model(seed=s) for s in range(3)]
    made = [executor.prepared(net).network for net in nets]
    assert executor.prepared(nets[2]).network is made[2]
    assert executor.prepared(nets[0]).network is not made[0]
    assert made[0].network is nets[0].network


def test_nothing_falls_back_where_there_is_much_to_compile():
    """torch gives up after eight programs of one code object; networks share none."""
    made, x = [], torch.arange(3.0)

    def note(graph, _):
        made.append(graph)
        return graph.forward

    executor = Compiled(keep=12, backend=note)
    evaluations = {k: torch.full((3,), float(k)) for k in range(12)}
    for _ in range(2):
        for n in range(12):
            others = tuple(("f", k, 0.1) for k in range(n))
            total = executor.combined(
                Sum(("x", 0, 2.0), False, others), {"x": {0: x}, "f": evaluations}
            )
            torch.testing.assert_close(total, 2 * x + 0.1 * sum(range(n)))
    assert len(made) == 4  # of one to four states
    nets = [model(seed=s) for s in range(10)]
    for _ in range(2):
        for net in nets:
            how = {"steps": 1, "solver": "euler", "context": context(2)}
            fast, eager = (pl.sample(net, 2, executor=e, **how).x for e in (executor, "eager"))
            torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-4)
    assert len(made) == 4 + 10 + 1  # a sum of two has met another shape


def test_no_compiler_is_said_clearly():
    from torch._inductor import config

    torch._dynamo.reset()
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
        pytest.raises(pl.UsageError, match=r"torch\.compile failed .* executor='eager'"),
    ):
        pl.sample(m4(VP), 2, steps=3, executor=Compiled())
    torch._dynamo.reset()


# --- graph, on a CPU: everything but the capture itself -----------------------------------------


@pytest.fixture
def replayed(monkeypatch):
    """Stand in for CUDA: a replay runs the loop again on the buffers. Returns the captures."""
    made = []

    def captured(loop, device):
        out = loop()
        made.append(loop)
        return lambda: out.copy_(loop()), out

    monkeypatch.setattr(executors, "_captured", captured)
    monkeypatch.setattr(executors, "_check_capturable", lambda call, given: None)
    return made


def test_replays_read_state_condition_and_noise_from_the_buffers(replayed):
    law, graph = model(), Graph()
    for seed in (0, 7, 0):
        for solver in ("dpmpp_2m", "dpmpp_2m_sde"):
            how = {"solver": solver, "steps": 5, "guide": pl.CFG(2.0)}
            how |= {"context": context(3, seed), "seed": seed}
            eager, fast = (pl.sample(law, 3, executor=e, **how) for e in ("eager", graph))
            assert torch.equal(fast.x, eager.x) and fast.stats == eager.stats
    assert len(replayed) == 2


def test_what_differs_is_captured_anew_and_the_oldest_is_forgotten(replayed):
    law, graph = model(), Graph(keep=2)

    def captures(n=2, **rest):
        before = len(replayed)
        pl.sample(law, n, executor=graph, **{"steps": 4, "context": context(n), **rest})
        return len(replayed) - before

    assert [captures(), captures(), captures(seed=4)] == [1, 0, 0]
    assert [captures(steps=5), captures(steps=5)] == [1, 0]
    assert [captures(3), captures(), captures(3)] == [1, 1, 0]
    assert captures(guide=pl.CFG(2.0)) == 1 and captures(guide=pl.CFG(2.0)) == 0
    assert captures(guide=pl.CFG(3.0)) == 1
    assert captures(speed=Cadence(2)) == 1 and captures(speed=Cadence(2)) == 0


def test_thinned_guidance_is_captured_with_its_table_and_heads(replayed):
    """Which halves are left out is known beforehand; each policy has a capture of its own."""
    start = NullStart(torch.full((1, 8, 8), 0.3), torch.ones(64, 1), torch.ones(1, 64), 0.1, 1.0)
    heads = Heads("unembed", (16, 16), 2, hidden=4)
    heads.scale({"embed": 16, "unembed": 16}, 3)
    for k, number in enumerate(heads.parameters()):
        torch.nn.init.normal_(number, std=0.1, generator=torch.Generator().manual_seed(k))
    heads = heads.rounded()
    law, graph = replace(model(), details={"null_start": start, "heads": heads}), Graph()
    ratios = (None, None, 0.5, 0.2)
    for seed in (0, 7):
        for speed in (
            ThinnedGuidance(ratios),
            ThinnedGuidance(ratios, null_start=True),
            ThinnedGuidance(ratios, null_start=True, heads=heads.digest),
        ):
            how = {"steps": 4, "guide": pl.CFG(2.0), "context": context(3, seed), "seed": seed}
            eager, fast = (
                pl.sample(law, 3, speed=speed, executor=e, **how) for e in ("eager", graph)
            )
            assert torch.equal(fast.x, eager.x) and fast.stats == eager.stats
    assert len(replayed) == 3


def test_results_do_not_change_when_the_next_one_is_made(replayed):
    law, graph = model(), Graph()
    first = pl.sample(law, 2, steps=4, executor=graph).x
    kept = first.clone()
    pl.sample(law, 2, steps=4, seed=9, executor=graph)
    assert torch.equal(first, kept)


def test_numbers_are_copied_to_a_device_once():
    """What a capture may not do again: the same tensor each time."""
    times, there = torch.linspace(1, 0, 5), torch.device("meta")
    moved = on_device(times, there)
    assert moved.device == there and moved.shape == times.shape
    assert on_device(times, there) is moved and on_device(times, times.device) is times


# --- what is refused ---------------------------------------------------------------------------


def test_a_graph_needs_a_gpu_and_nobody_looking():
    law = model()
    with pytest.raises(pl.UsageError, match="the state is on cpu"):
        pl.sample(law, 2, steps=10, executor="graph")
    for rest in ({"trajectory": True}, {"observe": print}, {"speed": SADA()}, {"solver": "dopri5"}):
        with pytest.raises(pl.UsageError, match="inside the loop"):
            pl.sample(law, 2, steps=10, executor="graph", **rest)
    with pytest.raises(pl.UsageError, match="did you mean graph"):
        pl.sample(law, 2, steps=10, executor="grap")


# --- on a GPU ----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(
    "guide",
    [None, pl.CFG(2.0), pl.CFG(2.0, interval=(0.3, 0.7))],
    ids=["plain", "guided", "guided between"],
)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_2m_sde", "heun"])
def test_a_captured_loop_is_the_eager_one(solver, guide):
    law, graph = model().to("cuda"), Graph()
    for seed in (0, 7):
        how = {"solver": solver, "steps": 6, "guide": guide, "context": context(3, seed)}
        how |= {"seed": seed}
        eager, fast = (pl.sample(law, 3, executor=e, **how) for e in ("eager", graph))
        torch.testing.assert_close(fast.x, eager.x, rtol=1e-5, atol=1e-5)
    assert len(graph._captures) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("nfe", [5, 8])
def test_a_captured_schedule_of_a_shipped_model_is_the_eager_one(nfe):
    """With thinned guidance, what the model says of noise, heads and scales."""
    law, graph = pl.load("emoji").to("cuda"), Graph()
    for seed in (0, 7):
        how = {"solver": "s3_guided", "steps": nfe, "guide": pl.CFG(2.0), "text": "a red apple"}
        eager, fast = (pl.sample(law, 3, seed=seed, executor=e, **how) for e in ("eager", graph))
        torch.testing.assert_close(fast.x, eager.x, rtol=1e-3, atol=1e-3)
    assert len(graph._captures) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_nothing_in_the_loop_waits_for_the_device(solver):
    """CUDA raises at every synchronisation between the first step and the last."""
    law = model().to("cuda")
    seen = []

    def watch(step):
        torch.cuda.set_sync_debug_mode("error" if step.index < 6 else "default")
        seen.append(step.index)

    try:
        for speed in (None, Cadence(2)):
            pl.sample(law, 3, solver=solver, steps=8, observe=watch, context=context(3),
                      guide=pl.CFG(2.0), speed=speed)  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen == [*range(8)] * 2


@pytest.mark.gpu
def test_what_needs_gradients_is_not_captured():
    law = model().to("cuda")
    x = torch.randn(2, 1, 8, 8, device="cuda", requires_grad=True)
    with pytest.raises(pl.UsageError, match="no gradients"):
        pl.solve(law, x, steps=4, executor="graph")
    with torch.no_grad():
        assert pl.solve(law, x, steps=4, executor="graph").ok
