"""The kinetic optimal path with trained networks: M9, one small network for each path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pathline.core.progress import track
from pathline.data.fetch import cache_folder
from pathline.fields import Denoiser, Field, retimed
from pathline.fields.problems import m9
from pathline.learn import Recipe, Watch, load_model, train
from pathline.learn.couplings import wasserstein
from pathline.paths import GaussianPath, paths
from pathline.solvers import Heun, grids, sample

FINE = 64


def recipe(path: GaussianPath) -> Recipe:
    """Return how the network of a path is trained: only the path differs."""
    told = path.describe()
    name = str(told.pop("name"))
    return Recipe(
        name=name,
        steps=5000,
        batch=256,
        rate=2e-3,
        warmup=100,
        decay=0.0,
        data={"source": "nine_gaussians"},
        network={"class": "MLP", "dim": 2, "width": 128, "depth": 3},
        objective={"path": name, "path_args": told, "view": "v"},
        watch=Watch(every=15.0),
    )


@dataclass(frozen=True)
class Trained:
    """What becomes of the same starts, for networks on some paths; measured when asked for.

    Args:
        paths: by name.
        starts: seeds.
        exact: where the exact flow takes them, (n, 2).
    """

    paths: Mapping[str, GaussianPath]
    starts: Sequence[int]
    exact: Tensor
    models: dict[str, Denoiser] = field(default_factory=dict)

    def model(self, name: str) -> Denoiser:
        """Return the network of a path, trained on first use; one that was cut short goes on."""
        if name not in self.models:
            how = recipe(self.paths[name])
            folder = cache_folder() / "kinetic-optimal" / how.fingerprint[:16]
            self.models[name] = load_model(train(how, folder))
        return self.models[name]

    def end(self, model: Field, n: int) -> Tensor:
        """Return where n Euler steps lead, even in path time."""
        assert model.path is not None
        grid = grids.uniform(n, model.path.t_max, model.path.t_min)
        with torch.no_grad():
            return sample(
                model, seeds=self.starts, solver="euler", grid=grid, dtype=torch.float64
            ).x

    def fine(self, model: Field) -> Tensor:
        """Return where the model's own flow leads."""
        with torch.no_grad():
            grid = grids.uniform(FINE)
            return sample(model, seeds=self.starts, solver=Heun(), grid=grid, dtype=torch.float64).x

    def off(self, name: str, n: int) -> float:
        """Return the W2 distance of n steps on a network's own path to the exact flow's end."""
        return wasserstein(self.end(self.model(name), n), self.exact)

    def ratio(self, name: str, n: int) -> float:
        """Return that distance for one path over that of the best other one."""
        off = {each: self.off(each, n) for each in track(list(self.paths), "paths")}
        return off.pop(name) / min(off.values())

    def moved(self, trained: str, to: str) -> Field:
        """Return the network of one path on another one."""
        return retimed(self.model(trained), self.paths[to], beyond="trim")

    def gain(self, trained: str, to: str, n: int) -> float:
        """Return how far n steps end from the network's own flow, over what they do on its path."""
        model = self.model(trained)
        steps = (self.end(each, n) for each in (self.moved(trained, to), model))
        moved, own = (wasserstein(x, self.fine(model)) for x in steps)
        return moved / own

    def mass_off(self, trained: str, to: str) -> float:
        """Return how far modes' masses differ between the other path and the network's own."""
        shares = [_shares(self.fine(m)) for m in (self.moved(trained, to), self.model(trained))]
        return float((shares[0] - shares[1]).abs().max())


def _shares(x: Tensor) -> Tensor:
    """Return how many of the samples are nearest to each mode, over all."""
    means = m9(paths.build("cond_ot")).means
    return torch.cdist(x, means).argmin(1).bincount(minlength=len(means)) / len(x)
