"""What a training run is: a frozen value, read from a TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathline.core.errors import UsageError, unknown
from pathline.fields import as_view
from pathline.learn.averages import exponent
from pathline.learn.couplings import Coupling, couplings
from pathline.learn.objectives import (
    EarlyTimes,
    LogitNormalTimes,
    LogNormalLevels,
    Matching,
    Times,
    UniformTimes,
    time_label,
)
from pathline.learn.regularise import Regulariser, regularisers
from pathline.learn.sharding import Strategy
from pathline.learn.sources import SOURCES, Source
from pathline.nets import NETWORKS, Preconditioned
from pathline.paths import GaussianPath, paths

__all__ = ["Recipe", "Watch", "build_network", "read_recipe"]


@dataclass(frozen=True)
class Watch:
    """What is written on the way.

    Args:
        prompts: of the sample sheet.
        guidance: weight of the sheet's samples.
        every: seconds between checkpoints, each with the curve so far.
        export: seconds between exported models, each with a sheet.
    """

    prompts: tuple[str, ...] = ()
    guidance: float = 3.0
    every: float = 180.0
    export: float = 900.0


@dataclass(frozen=True)
class Recipe:
    """One training run; the same recipe gives the same weights on the same kind of machine.

    Args:
        name: of the model.
        steps: how many updates.
        data: the source under "source", and its options.
        network: the class under "class", and its arguments; with "sigma_data", EDM's
            preconditioning around it (view "x0", label "sigma").
        objective: "path" and its "path_args" (for "pfgmpp" with "dof", D), "view", "label" (a
            factor, "sigma", or "table": the path's own labels), "time_mean", "time_std" for
            logit-normal times, "time_power" for Beta(1, power) ones, or "sigma_mean", "sigma_std"
            for log-normal levels, "error", the view in which the error is measured, σ_data for
            EDM's weighting or "likelihood" for g² of the score's, "bridge", the noise around the
            way from source to data, and "reference", how many other data a target is a mean of.
        start: another data source, as `data`, where the flow begins; None is noise.
        coupling: how source and data are paired: "kind" ("independent", "exact_ot", "sinkhorn",
            "gibbs", "balanced_gibbs"), and its options; None is independent.
        regulariser: what is added to the loss: "kind" ("fokker_planck"), "weight", and its options;
            None is nothing.
        batch: samples an update, on all devices together.
        accumulate: parts of a device's batch that go through the network one after the other, to
            save memory; the update is that of the whole.
        seed: of the weights, the data's order, the noise and the times.
        rate: of AdamW at its peak; it rises for `warmup` steps, then falls to zero, or by `drops`.
        warmup: steps until the peak.
        cooldown: steps at the end in which the rate falls as a line, after it stood at the peak:
            until they begin, `steps` decides nothing. None is a cosine over all that remains.
        drops: instead of either, pairs of a share of `steps` and the factor that the rate is
            multiplied with from there on, such as [[0.5, 0.3], [0.9, 0.3]].
        betas: what a step keeps of AdamW's two moments; None is (0.9, 0.99).
        decay: weight decay of the matrices.
        clip: the largest norm of the gradient; inf clips nothing.
        ema: what a step keeps of the averaged weights; 0 makes the model of the last weights.
        averages: widths σ_rel of further averages, such as [0.05, 0.1]: written down every
            `snapshot` steps, they make the average of any width after training.
        snapshot: steps between two snapshots of these; 0 takes one at the end.
        precision: of the network's arithmetic, as Lightning Fabric writes it.
        compiled: whether the network goes through `torch.compile`.
        watch: what is written on the way.
    """

    name: str
    steps: int
    data: Mapping[str, Any]
    network: Mapping[str, Any]
    objective: Mapping[str, Any]
    start: Mapping[str, Any] | None = None
    coupling: Mapping[str, Any] | None = None
    regulariser: Mapping[str, Any] | None = None
    batch: int = 64
    accumulate: int = 1
    seed: int = 0
    rate: float = 1e-3
    warmup: int = 300
    cooldown: int | None = None
    drops: tuple[tuple[float, float], ...] | None = None
    betas: tuple[float, float] | None = None
    decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    averages: tuple[float, ...] = ()
    snapshot: int = 0
    precision: str = "32-true"
    compiled: bool = False
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise UsageError(
                f"training needs steps ≥ 1 and batch ≥ 1; they are {self.steps}, {self.batch}."
            )
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise UsageError(
                f"accumulate = {self.accumulate} parts of one size do not make a batch of "
                f"{self.batch}."
            )
        if not (self.clip > 0 and 0 <= self.ema < 1):
            raise UsageError(
                f"training needs clip > 0 and 0 ≤ ema < 1; they are {self.clip}, {self.ema}."
            )
        object.__setattr__(self, "averages", tuple(self.averages))
        for width in self.averages:
            exponent(width)  # refuses what is no width
        if self.drops is not None:
            pairs = (d if isinstance(d, Sequence) else (d,) for d in self.drops)
            object.__setattr__(self, "drops", tuple(map(tuple, pairs)))
            self._check_drops(self.drops)
        if self.betas is not None:
            object.__setattr__(self, "betas", tuple(self.betas))
            if len(self.betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in self.betas):
                raise UsageError(f"betas are two numbers in [0, 1), not {self.betas}.")

    def _check_drops(self, drops: Sequence[Sequence[float]]) -> None:
        """Refuse drops that cannot be made, or a second rule beside them."""
        if not all(len(d) == 2 and all(_is_number(v) and 0 < v < 1 for v in d) for d in drops):
            raise UsageError(
                "drops are pairs of a share of the steps and a factor of the rate, both between 0 "
                f"and 1, such as [[0.5, 0.3]]; they are {list(drops)}."
            )
        shares = [drop[0] for drop in drops]
        if shares != sorted(set(shares)):
            raise UsageError(f"drops come one after the other, and their shares are {shares}.")
        if self.cooldown is not None:
            raise UsageError(
                f"drops and cooldown = {self.cooldown} are two rules for one rate: leave one out."
            )

    @property
    def fingerprint(self) -> str:
        """A checksum of all that decides the weights: everything but `watch`."""
        table = {k: v for k, v in asdict(self).items() if k != "watch" and v is not None}
        deciding = sorted(table.items())
        return sha256(repr(deciding).encode()).hexdigest()

    def matching(self) -> Matching:
        """Return the regression to minimise.

        Raises:
            UsageError: the table "objective" names no path, or what nobody knows.
        """
        table = self.objective
        path = paths.build(table.get("path", "none"), **table.get("path_args", {}))
        label, error = time_label(path, table.get("label", 1)), table.get("error")
        error = as_view(error) if isinstance(error, str) and error != "likelihood" else error
        view = as_view(table.get("view", "velocity"))
        bridge = table.get("bridge", 0.0)
        return Matching(path, view, _times(table, path), label, error, bridge)

    def source(self) -> Source:
        """Return where batches come from, with its data fetched.

        Raises:
            UsageError: the table "data" names no source, or options it does not have.
        """
        return _build("data source", SOURCES, "source", self.data)

    def start_source(self) -> Source | None:
        """Return where the flow begins, with its data fetched; None is noise.

        Raises:
            UsageError: as `source`.
        """
        return None if self.start is None else _build("data source", SOURCES, "source", self.start)

    def pairing(self) -> Coupling:
        """Return how source and data are paired.

        Raises:
            UsageError: the table "coupling" has no known "kind", or options that cannot work.
        """
        table = dict(self.coupling or {"kind": "independent"})
        return couplings.build(str(table.pop("kind", "none")), **table)

    def penalty(self, parts: int = 1, strategy: Strategy = "ddp") -> Regulariser | None:
        """Return what is added to the loss; None is nothing.

        Args:
            parts: that share its points, on all devices together.
            strategy: by which devices share the work.

        Raises:
            UsageError: the table "regulariser" has no known "kind", options that cannot work, or
                noise whose law the coupling changes.
        """
        if self.regulariser is None:
            return None
        table = dict(self.regulariser)
        made = regularisers.build(str(table.pop("kind", "none")), **table)
        paired = (self.coupling or {}).get("kind", "independent")
        if self.start is not None or paired != "independent":
            what = f"the coupling {paired!r}" if self.start is None else "a start at other data"
            raise UsageError(
                "the densities of a path obey its Fokker-Planck equation where noise knows nothing "
                f"of the data, and {what} changes that: leave [regulariser] out, or the other."
            )
        if strategy == "fsdp":
            raise UsageError(
                "a penalty takes derivatives of the whole network, and strategy 'fsdp' has it in "
                "shards: use 'ddp', or leave [regulariser] out."
            )
        if made.points % parts:
            raise UsageError(
                f"{made.points} points of the regulariser cannot be shared by {parts} parts of a "
                f"batch; take a multiple of {parts}."
            )
        return made


def build_network(table: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Return the network that a table names under "class", built with its other values.

    Its first weights are those of the seed; torch's own generator is left as it was.

    Raises:
        UsageError: nobody knows the class, or it does not take the values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = {k: v for k, v in table.items() if k != "sigma_data"}
        network = _build("network", NETWORKS, "class", options)
    return Preconditioned(network, table["sigma_data"]) if "sigma_data" in table else network


def read_recipe(config: str | Path) -> Recipe:
    """Return the recipe in a TOML file, or a shipped one by its name ("emoji").

    Raises:
        UsageError: there is no such file, it is not TOML, or has an unknown or too few keys.
    """
    try:
        table = tomllib.loads(_text_of(config))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{config} is not a TOML file: {error}.") from error
    _check_types(config, table, Recipe)
    watch = table.pop("watch", {})
    _check_keys(config, watch, Watch)
    _check_types(config, watch, Watch)
    _check_keys(config, table, Recipe)
    watch["prompts"] = tuple(watch.get("prompts", ()))
    return Recipe(**table, watch=Watch(**watch))


_TYPES: Mapping[str, tuple[type[Any] | tuple[type[Any], ...], str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "str": (str, "a text"),
    "bool": (bool, "true or false"),
    "tuple": (list, "a list"),
    "Mapping": (dict, "a table"),
    "Watch": (dict, "a table"),
}
"""What TOML must have given for a field, by the first word of its type."""


def _check_types(config: str | Path, table: Mapping[str, Any], kind: type[Any]) -> None:
    for f in fields(kind):
        if f.name not in table:
            continue
        value, name = table[f.name], re.split(r"\W", str(f.type))[0]
        wanted, said = _TYPES[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and name != "bool"):
            raise UsageError(f"{f.name} in {config} is {said}, not {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _times(table: Mapping[str, Any], path: GaussianPath) -> Times:
    """Return the distribution of training times that an objective's table names."""
    if "sigma_std" in table:
        return LogNormalLevels(path, table.get("sigma_mean", -1.2), table["sigma_std"])
    if "time_power" in table:
        return EarlyTimes(table["time_power"])
    if "time_std" in table:
        return LogitNormalTimes(table.get("time_mean", 0), table["time_std"])
    return UniformTimes()


def _build(
    kind: str, makers: Mapping[str, Callable[..., Any]], key: str, table: Mapping[str, Any]
) -> Any:
    """Call the maker that a table names under `key` with the table's other values."""
    options = {k: v for k, v in table.items() if k != key}
    name = str(table.get(key))
    if name not in makers:
        raise unknown(kind, name, makers)
    try:
        return makers[name](**options)
    except TypeError as error:
        raise UsageError(f"the {kind} {name} does not take these values: {error}.") from error


def _text_of(config: str | Path) -> str:
    path = Path(config)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    shipped = resources.files("pathline.learn") / "configs"
    files = {f.name.removesuffix(".toml"): f for f in shipped.iterdir() if f.name.endswith(".toml")}
    if str(config) not in files:
        raise UsageError(
            f"there is no training configuration {str(config)!r}: give a TOML file, or one of "
            f"{', '.join(sorted(files))}."
        )
    return files[str(config)].read_text(encoding="utf-8")


def _check_keys(config: str | Path, table: Mapping[str, Any], kind: type[Any]) -> None:
    known = {f.name: f for f in fields(kind)}
    for key in table:
        if key not in known:
            raise unknown(f"key in {config}:", key, known)
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in table]:
        raise UsageError(f"{config} lacks {', '.join(missing)}.")
