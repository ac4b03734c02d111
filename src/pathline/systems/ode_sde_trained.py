"""Two rings, learned as a potential with and without the penalty: what claims read.

`write("benchmarks")` trains what is missing, and writes what came of it as JSON and as a table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pathline.core.files import write_atomically
from pathline.core.progress import track
from pathline.data.fetch import cache_folder
from pathline.fields import Field, FokkerPlanck, potential_of, residuals
from pathline.fields.denoiser import with_network
from pathline.fields.fokker_planck import squared
from pathline.fields.problems import rings
from pathline.learn import Recipe, Watch, load_model, train
from pathline.learn.quality.histogram import Histograms, compare_ways
from pathline.learn.run import Run
from pathline.solvers.gap import fine_end, ode_and_sde

HORIZON = 5.0
"""T of the Ornstein-Uhlenbeck path, in its own clock."""
DIM, BOX = 2, 3.5
WEIGHTS = 0.0, 0.003, 0.03, 0.1
"""w: R is per unit of the path's own clock, and the loss beside it a mean over coordinates."""
SEEDS = 0, 1, 2
SAMPLES = 15_000
HISTOGRAMS = Histograms(bins=32)
INSTANTS = 20
POINTS, PART = 40_000, 2000
"""Places at which R² is averaged in the box, and how many at a time."""


def recipe(weight: float, seed: int = 0) -> Recipe:
    """Return how a potential of the rings is trained with a penalty of this weight.

    By plain Adam, whose rate drops twice; the model has the last weights, not averaged ones.
    """
    penalty: dict[str, Any] = {
        "kind": "fokker_planck",
        "weight": weight / HORIZON**2,  # R is per path time
        "points": 250,
        "warmup": 1000,
        "box": BOX,
        "clip": 1.0,  # of so few points 0.999 would leave out the worst, and rings are no manifold
    }
    return Recipe(
        name="rings",
        steps=8000,
        batch=1000,
        seed=seed,
        rate=1e-3,
        warmup=0,
        drops=((0.5, 0.3), (0.9, 0.3)),
        betas=(0.9, 0.999),
        decay=0.0,
        clip=math.inf,
        ema=0.0,
        data={"source": "rings"},
        network={
            "class": "Potential",
            "dim": DIM,
            "width": 80,
            "depth": 3,
            "sharpness": 5.0,
            "baseline": {"near": 1.1, "far": 0.5, "rate": 2.0},
        },
        objective={
            "path": "ou",
            "path_args": {"horizon": HORIZON},
            "view": "score",
            "error": "eps",
            "label": HORIZON,
            "time_power": 2.0,
        },
        regulariser=penalty if weight else None,
        watch=Watch(every=15.0),
    )


def folder(how: Recipe) -> Path:
    """Return where a training is kept."""
    return cache_folder() / "ode-sde-gap" / how.fingerprint[:16]


def model(how: Recipe) -> Field:
    """Return the trained model, with the weights of its last state: halves are not derived twice.

    A training that was cut short goes on.
    """
    home = folder(how)
    made = load_model(train(how, home))
    run = Run.start(how)
    run.restore(home / "state.pt")
    return with_network(made, run.network_of(run.averaged_state()))


def outcome(weight: float, seed: int) -> Mapping[str, Any]:
    """Return what is measured on a training, from the file beside it if it is there."""
    how = recipe(weight, seed)
    kept = folder(how) / "outcome.json"
    if not kept.is_file():
        write_atomically(kept, json.dumps(measured(model(how), seed)))
    return json.loads(kept.read_text("utf-8"))


def measured(model: Field, turn: int = 0) -> dict[str, Any]:
    """Return residuals and distances of a model.

    Samples and data of another turn are others: the share of each ring among 15 000
    fluctuates by more than what is looked for. Within a turn they are the same for every weight.

    "residual" is E (R − E[R | t])² on noised data at times of the training's law, per unit of the
    path's clock; "residual_box" E R² under the training's law of points, in the box.
    """
    starts = [(20 * turn + n) * 10**6 for n in range(1, 13)]
    drawn, *fresh = (range(k, k + SAMPLES) for k in starts)
    data, *more = map(rings, fresh)
    with torch.no_grad():
        ways = ode_and_sde(model, drawn, fine_end(400))
    gap = compare_ways(*ways, data, more, HISTOGRAMS)
    precise = with_network(model, getattr(model, "network").double())  # noqa: B009 - of a Denoiser
    u = (torch.arange(INSTANTS, dtype=torch.float64) + 0.5) / INSTANTS
    times = (1 - (1 - u).sqrt()).tolist()
    found = residuals(precise, data[:2000], times)
    return {
        "residual": found.total / HORIZON**2,
        "residual_box": _in_box(precise) / HORIZON**2,
        "by_time": [v / HORIZON**2 for v in found.mean_square.tolist()],
        "clock": [HORIZON * t for t in times],
        **gap.to_dict(),
    }


def _in_box(model: Field) -> float:
    """Return E R² at points drawn evenly in the box, at times of the training's law."""
    phi, path = potential_of(model), model.path
    assert phi is not None and path is not None
    generator = torch.Generator().manual_seed(0)
    t = recipe(0.0).matching().draw_times(POINTS, generator)
    x = BOX * (2 * torch.rand(POINTS, DIM, generator=generator, dtype=torch.float64) - 1)
    equation, parts = FokkerPlanck(path), zip(x.split(PART), t.split(PART), strict=True)
    squares = [squared(equation.of_potential(phi, *part).detach()) for part in parts]
    return float(torch.cat(squares).mean())


@dataclass(frozen=True)
class Trained:
    """The means over three trainings of each weight; measured when asked for."""

    seeds: Sequence[int] = SEEDS

    def mean(self, weight: float, name: str) -> float:
        """Return the mean of a number over the seeds."""
        return fmean(
            outcome(weight, seed)[name] for seed in track(self.seeds, f"rings, w = {weight:g}")
        )

    def excess(self, weight: float) -> float:
        """Return how much of the gap is not that of two samples of one law."""
        return self.mean(weight, "ode_sde") - self.mean(weight, "floor")

    def residual_falls(self) -> float:
        """Return how many times smaller E R² is with w = 0.003 than without."""
        return self.mean(0.0, "residual_box") / self.mean(0.003, "residual_box")

    def gap_closes(self) -> float:
        """Return the share of the gap's excess that w = 0.003 takes away."""
        return 1 - self.excess(0.003) / self.excess(0.0)

    def price(self) -> float:
        """Return how much farther from the data the SDE's samples are with w = 0.1."""
        return self.mean(0.1, "sde_data") - self.mean(0.0, "sde_data")


COLUMNS = "residual", "residual_box", "ode_sde", "ode_data", "sde_data", "floor"


def write(folder: str | Path, seeds: Sequence[int] = SEEDS) -> None:
    """Write all outcomes, and their means, as `ode-sde-gap.json` and `.md`."""
    home = Path(folder)
    each = [{"w": w, "seed": s, **outcome(w, s)} for w in WEIGHTS for s in seeds]
    write_atomically(home / "ode-sde-gap.json", json.dumps(each, indent=1) + "\n")
    trained = Trained(seeds)
    rows = [["w", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    rows += [[f"{w:g}", *(f"{trained.mean(w, name):.4g}" for name in COLUMNS)] for w in WEIGHTS]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    told = f"Means of seeds {', '.join(map(str, seeds))}. {ABOUT}"
    write_atomically(home / "ode-sde-gap.md", f"{TITLE}\n\n{told}\n\n{lines}\n")


TITLE = "# Two rings, trained with and without the Fokker-Planck penalty"
ABOUT = f"""`residual` is E (R − E[R | t])² on noised data and `residual_box` E R² in the
box of the training at its law of times, both per unit of the path's own clock; the rest are
Wasserstein-2 distances of {SAMPLES} samples in {HISTOGRAMS.bins} × {HISTOGRAMS.bins} cells, where
two samples of the data have `floor`.

To measure again: `pathline.systems.ode_sde_trained.write("benchmarks")`, which goes on where it was
cut off."""
