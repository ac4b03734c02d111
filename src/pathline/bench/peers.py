"""Other libraries' loops over the same methods, each in the way its own pipelines call them.

A peer that is not installed is told from one that lacks a method: `Absent` has the reason.
diffusers steps an ε (or flow) network on its table; azula and k-diffusion are asked for x̂_0, which
is what their samplers work with.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.bench.timing import Run
from pathline.paths import VE

PATH = VE(0.01, 50.0)
"""The path of azula and k-diffusion here."""


class Absent(Exception):
    """A peer that cannot take part, and why."""


class Case(NamedTuple):
    """What everybody is given: a state, a network that ignores the time, and how many steps."""

    x: Tensor
    network: Callable[[Tensor], Tensor]
    steps: int
    weight: float | None = None


Peer = Callable[[Case], Run]


def installed(name: str) -> Any:
    """Return a module, or raise `Absent`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Absent(f"not installed here ({error})") from error


# diffusers


def diffusers_steps(name: str, *, prepares: bool = False, **config: Any) -> Peer:
    """Return a loop over scheduler.step; `set_timesteps` is timed too if it `prepares` in it."""

    def build(case: Case) -> Run:
        scheduler = getattr(installed("diffusers"), name)(**config)

        def prepare() -> None:
            scheduler.set_timesteps(case.steps)

        def loop() -> Tensor:
            x = case.x
            for t in scheduler.timesteps:
                x = scheduler.step(_guided(case, x), t, x, return_dict=False)[0]
            return x

        def both() -> Tensor:
            prepare()
            return loop()

        return Run(both) if prepares else Run(loop, prepare)

    return build


def _guided(case: Case, x: Tensor) -> Tensor:
    """Call the network, with classifier-free guidance as the pipelines write it."""
    if case.weight is None:
        return case.network(x)
    free, bound = case.network(torch.cat([x] * 2)).chunk(2)
    return free + case.weight * (bound - free)


# azula


def azula(name: str, **arguments: Any) -> Peer:
    """Return a sampler of azula, from t = 1 to t = 0 on the variance-exploding schedule."""

    def build(case: Case) -> Run:
        denoise, noise = installed("azula.denoise"), installed("azula.noise")

        class Denoiser(denoise.Denoiser):
            schedule = noise.VESchedule(PATH.sigma_min, PATH.sigma_max)

            def forward(self, x: Tensor, t: Tensor) -> Any:
                return denoise.DiracPosterior(mean=case.network(x))

        made = getattr(installed("azula.sample"), name)
        sampler = made(Denoiser(), steps=case.steps, silent=True, **arguments)
        return Run(lambda: sampler(case.x))

    return build


# k-diffusion


def k_diffusion(name: str) -> Peer:
    """Return a sampler of k-diffusion on the noise levels that azula's schedule has."""

    def build(case: Case) -> Run:
        sampler = getattr(k_diffusion_sampling(), name)
        times = torch.linspace(1, 0, case.steps + 1, dtype=torch.float64)
        sigmas = PATH.sigma(times).to(case.x)
        return Run(lambda: sampler(lambda x, sigma: case.network(x), case.x, sigmas, disable=True))

    return build


def k_diffusion_sampling() -> Any:
    """Import the samplers alone: their package also wants CLIP, scikit-image and torchvision."""
    package = find_spec("k_diffusion")
    if package is None:
        raise Absent("not installed here")
    with _stand_ins(package):
        return installed("k_diffusion.sampling")


@contextmanager
def _stand_ins(package: ModuleSpec) -> Generator[None]:
    """Let submodules of a package be imported without the package, and without torchvision."""
    functional = ModuleType("torchvision.transforms.functional")
    transforms = ModuleType("torchvision.transforms")
    transforms.functional = functional  # pyright: ignore[reportAttributeAccessIssue]
    bare = ModuleType(package.name)
    bare.__path__ = list(package.submodule_search_locations or ())
    stand_ins = {
        "torchvision": ModuleType("torchvision"),
        "torchvision.transforms": transforms,
        "torchvision.transforms.functional": functional,
        package.name: bare,
    }
    stand_ins = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


# deepinv


@cache
def deepinv() -> Any:
    """Import deepinv without torchvision, natsort and h5py, which its samplers never call."""
    if find_spec("deepinv") is None:
        raise Absent("not installed here")
    finder = _Hollow(("torchvision", "natsort", "h5py"))
    sys.meta_path.append(finder)
    try:
        package = importlib.import_module("deepinv")
        for name in ("sampling", "physics", "optim", "models"):
            importlib.import_module(f"deepinv.{name}")
    except Exception as error:  # whatever its many imports run into
        raise Absent(f"cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in finder.names]:
            if isinstance(sys.modules[name], _Stand):
                del sys.modules[name]
    return package


class _Stand(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Hollow(MetaPathFinder, Loader):
    """Finds packages that are not installed, with nothing in them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        del path, target
        mine = fullname.partition(".")[0] in self.names
        return ModuleSpec(fullname, self, is_package=True) if mine else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        made = _Stand(spec.name)
        made.__path__ = []  # what makes a package
        return made

    def exec_module(self, module: ModuleType) -> None:
        del module
