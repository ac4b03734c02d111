"""`pathline bench paths`: what a path costs to sample from, each trained with the same network.

One small network, one number of updates, the same batches: what differs is the path that noise
takes. Samples are held against held-out data at several numbers of evaluations, by sliced
Wasserstein distance and by Fréchet distance of the data themselves. Euler's method in path time
shows the path as it is; DPM-Solver++ 2M on a log-SNR grid sees only what the network has learned.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pathline.bench.report import Bar, Report, Reports, Row
from pathline.core.errors import UsageError
from pathline.core.page import page, table
from pathline.core.progress import track
from pathline.data.fetch import cache_folder
from pathline.fields import Denoiser
from pathline.fields.separation import estimate
from pathline.learn.checkpoint import load_model
from pathline.learn.recipe import Recipe, Watch
from pathline.learn.sources import Points, small_fashion_source
from pathline.learn.trainer import train
from pathline.paths import KineticOptimal, paths
from pathline.solvers import Grid, grids, sample
from pathline.speed.metrics import frechet, sliced_wasserstein

COUNTS = 3, 5, 8, 10, 20, 50
"""Evaluations."""

SAMPLES = 4000

STEPS = 3000
"""Updates of each network: a minute on a quiet core."""

WAYS = {"euler, even in t": ("euler", grids.uniform), "dpmpp_2m": ("dpmpp_2m", grids.log_snr)}

EDM = {"view": "x0", "label": "sigma", "error": 1.0, "sigma_mean": -0.4, "sigma_std": 1.4}
"""As EDM trains: levels log-normal, here around 0.7, for data of deviation 1."""

SCALE = 1000.0
"""Distances are told in thousandths."""


def compare(nfe: Sequence[int] | None = None, steps: int = STEPS) -> Reports:
    """Train a network on every path, or take those that were trained before, and compare them.

    The networks are kept in the cache; a training that was cut short goes on.

    Args:
        nfe: evaluations; `COUNTS` if None.
        steps: updates of each network.

    Raises:
        FetchError: the data cannot be fetched.
        UsageError: evaluations below one.

    Cost: nine small networks, a minute each on a quiet core.
    """
    counts = sorted(set(COUNTS if nfe is None else nfe))
    if not counts or counts[0] < 1:
        raise UsageError(f"evaluations are counted from 1, and {counts} were asked for.")
    data = small_fashion_source()
    models = {
        name: _trained(name, table, data, steps)
        for name, table in track(list(objectives(data).items()), "paths")
    }
    found: dict[str, dict[tuple[str, str, int], float]] = {"sliced": {}, "frechet": {}}
    for name, model in track(list(models.items()), "sampling"):
        for way, (solver, grid) in WAYS.items():
            for n in counts:
                x = _samples(model, solver, grid(n))
                for measure, distance in _distances(x, data).items():
                    found[measure][name, way, n] = distance
    floor = _distances(data.points[:SAMPLES], data)
    settings = {
        "data": "Fashion-MNIST, 7 × 7 pixels",
        "network": "MLP 49, 4 × 256",
        "updates": steps,
        "samples": SAMPLES,
    }
    reports = [
        _report(measure, found[measure], floor[measure], counts, settings) for measure in found
    ]
    picture = _picture(found["sliced"], floor["sliced"], counts)
    return Reports("paths", "distance", reports, picture, _page(reports))


def objectives(data: Points) -> Mapping[str, Mapping[str, Any]]:
    """Return what is trained, by name: each path in the view that suits it."""
    known = estimate(data.points[:2000].double())
    kinetic = {floor: KineticOptimal(known.separation, floor, known.scale) for floor in (0.05, 0.3)}
    return {
        "cond_ot": {"path": "cond_ot", "view": "velocity"},
        "vp_linear": {"path": "vp_linear", "view": "v"},
        "vp_cosine": {"path": "vp_cosine", "view": "v"},
        "sub_vp": {"path": "sub_vp", "view": "v"},
        "kinetic_optimal": _described(kinetic[0.05]),
        "kinetic_optimal, floor 0.3": _described(kinetic[0.3]),
        "edm": {"path": "edm", **EDM},
        "pfgmpp, D = 64": {"path": "pfgmpp", "path_args": {"dof": 64.0}, **EDM},
        "pfgmpp, D = 512": {"path": "pfgmpp", "path_args": {"dof": 512.0}, **EDM},
    }


def _described(path: KineticOptimal) -> Mapping[str, Any]:
    told = {k: v for k, v in paths.describe(path).items() if k != "name"}
    return {"path": "kinetic_optimal", "path_args": told, "view": "v"}


def _trained(name: str, objective: Mapping[str, Any], data: Points, steps: int) -> Denoiser:
    network: dict[str, Any] = {"class": "MLP", "dim": 49, "width": 256, "depth": 4}
    if objective["view"] == "x0":
        network["sigma_data"] = 1.0
    recipe = Recipe(
        name,
        steps,
        {"source": "small_fashion"},
        network,
        objective,
        batch=256,
        rate=2e-3,
        ema=0.999,
        watch=Watch(every=60, export=1e9),
    )
    home = cache_folder() / "bench-paths" / recipe.fingerprint[:16]
    if not (home / "model" / "config.json").is_file():
        train(recipe, home, source=data)
    return load_model(home / "model")


@torch.no_grad()
def _samples(model: Denoiser, solver: str, grid: Grid) -> Tensor:
    return sample(model, SAMPLES, solver=solver, grid=grid).x


def _distances(x: Tensor, data: Points) -> dict[str, float]:
    held_out = data.test_points[:SAMPLES]
    return {
        "sliced": SCALE * sliced_wasserstein(x, held_out),
        "frechet": SCALE * frechet(x, held_out),
    }


ABOUT = {
    "sliced": "Sliced Wasserstein distance to held-out data, in thousandths.",
    "frechet": "Fréchet distance to held-out data, of the data themselves, in thousandths.",
}


def _report(
    measure: str,
    found: Mapping[tuple[str, str, int], float],
    floor: float,
    counts: Sequence[int],
    settings: Mapping[str, Any],
) -> Report:
    rows = [Row(f"{n}", f"{name}; {way}", distance) for (name, way, n), distance in found.items()]
    plain = {n: found["cond_ot", "euler, even in t", n] for n in counts}
    bars = [
        Bar(f"{name} over cond_ot, Euler, {n} evaluations", found[name, way, n] / plain[n])
        for (name, way, n) in found
        if way.startswith("euler") and name != "cond_ot" and n in (5, 10)
    ]
    notes = (f"Other data of the training set: {floor:.1f}.",)
    return Report(f"paths-{measure}", ABOUT[measure], rows, bars, settings, notes)


def _page(reports: Sequence[Report]) -> str:
    """Return all distances as one table of a web page."""
    rows = [
        {"measure": r.name, "path": row.by, "with": row.method, "distance": f"{row.value:.1f}"}
        for r in reports
        for row in r.rows
        if row.value is not None
    ]
    return page("pathline bench paths", table(rows))


def _picture(
    found: Mapping[tuple[str, str, int], float], floor: float, counts: Sequence[int]
) -> bytes | None:
    """Return distance against evaluations as PNG; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, way in zip(figure.subplots(1, len(WAYS), sharey=True), WAYS, strict=True):
        for name in dict.fromkeys(name for name, _, _ in found):
            distances = [found[name, way, n] for n in counts]
            axes.plot(counts, distances, marker="o", label=name)
        axes.axhline(floor, ls=":", color="#888", label="other real data")
        axes.set(xscale="log", yscale="log", title=way, xlabel="evaluations")
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.minorticks_off()
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("sliced Wasserstein distance, thousandths")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()
