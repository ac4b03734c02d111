"""Model folders: `model.safetensors` and `config.json`, written whole, loaded by name or place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pathline.core.errors import CheckpointError, UsageError, unknown
from pathline.core.files import write_atomically
from pathline.data.fetch import sha256_of
from pathline.fields import Denoiser
from pathline.learn import prompts
from pathline.learn.labels import encode_label, encode_value
from pathline.learn.objectives import time_label
from pathline.learn.recipe import build_network
from pathline.nets import DiT, Preconditioned, SubspaceScore, UNet
from pathline.nets.text import MAX_TOKENS
from pathline.paths import paths
from pathline.solvers import ems

__all__ = [
    "FORMAT",
    "assemble",
    "find_folder",
    "load_model",
    "model_names",
    "read_folder",
    "save_model",
    "write_folder",
]

FORMAT = "pathline-model-1"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_NEEDED = {"name", "network", "path", "view", "label", "condition", "shape"}


def save_model(
    folder: str | Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a model folder, and return it.

    Args:
        folder: made if it is missing.
        weights: the network's state.
        config: "name", "network" (its class and arguments), "path" (as `paths.describe` says it),
            "view", "label" (a factor, or "table"), "condition" ("text", "label" with the names of
            "classes", "y" (a number) and whether it was "dropped", or None), "shape", and whatever
            else is worth recording.
        dtype: of the weights on disk; float16 halves the file and keeps three digits.

    Raises:
        UsageError: the place cannot be written to.
    """
    return write_folder(folder, weights, {"format": FORMAT, **config}, dtype)


def write_folder(
    folder: str | Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write weights and a configuration that says their "format", and return the folder.

    Raises:
        UsageError: the place cannot be written to.
    """
    folder = Path(folder)
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in weights.items()}
    file = write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, path))
    about = {"file": WEIGHTS, "dtype": str(dtype).removeprefix("torch."), "sha256": sha256_of(file)}
    text = json.dumps({**config, "weights": about}, indent=1, ensure_ascii=False)
    write_atomically(folder / CONFIG, text + "\n")
    return folder


def load_model(name: str | Path) -> Denoiser:
    """Return a model, on the CPU in float32, ready to be sampled.

    Statistics that were saved beside the weights (`ems.safetensors`) are told of under "ems" in its
    details, and read when a solver asks for them.

    Args:
        name: of a shipped model ("emoji"), or a model folder.

    Raises:
        UsageError: there is no such model or folder; the message has the nearest names.
        CheckpointError: a folder that is not a model's, is damaged, or is from another Pathline.
    """
    folder = find_folder(name)
    config, weights = read_folder(folder, FORMAT, _NEEDED)
    if config["condition"] not in _CONDITIONS:
        raise CheckpointError(f"{folder} wants a condition unknown here: {config['condition']!r}.")
    if (folder / ems.FILE).is_file():
        config["ems"] = str(folder / ems.FILE)
    config["folder"] = str(folder)
    return assemble(_fill(folder, config, weights), config)


def read_folder(
    folder: Path, format: str, needed: Set[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration in a folder, and its weights in float32.

    Args:
        folder: what `write_folder` wrote.
        format: that the configuration must have.
        needed: the keys that it must have.

    Raises:
        CheckpointError: the folder is not of this format, or is damaged.
    """
    config = _read_config(folder, format, needed | {"weights"})
    return config, _read_weights(folder, config)


def assemble(network: nn.Module, config: Mapping[str, Any]) -> Denoiser:
    """Return the denoiser that a network and its configuration make."""
    bare = network.network if isinstance(network, Preconditioned) else network
    null, encode = _CONDITIONS[config["condition"]](bare, config)
    path = paths.rebuild(config["path"])
    return Denoiser(
        network,
        path,
        view=config["view"],
        label=time_label(path, config["label"]),
        null=null,
        encode=encode,
        shape=tuple(config["shape"]),
        name=config["name"],
        details=config,
    )


def model_names() -> list[str]:
    """Return the names of the shipped models, which `load_model` knows."""
    return sorted(name for name, config in _shipped().items() if config.get("format") == FORMAT)


def _shipped() -> dict[str, Mapping[str, Any]]:
    """Return the configurations of all that is shipped: models, and what judges them."""
    home = resources.files("pathline") / "models"
    files = [entry / CONFIG for entry in home.iterdir()] if home.is_dir() else []
    found = [file for file in files if file.is_file()]
    return {Path(str(file)).parent.name: json.loads(file.read_text("utf-8")) for file in found}


_Told = tuple[Mapping[str, Any] | None, Callable[..., Mapping[str, Any]]]
"""The arguments of a network that mean "no condition", and what makes a user's into such."""


def _told_text(network: nn.Module, config: Mapping[str, Any]) -> _Told:
    if not isinstance(network, DiT):
        raise CheckpointError(f"a {type(network).__name__} cannot be conditioned on text.")
    context, mask = network.null_context(1, MAX_TOKENS)
    return {"context": context.detach(), "mask": mask}, _encode_text


def _encode_text(text: str | Sequence[str] | None = None, **other: Any) -> dict[str, Tensor]:
    """Return the network's arguments; of one length, so that samples do not see their mates."""
    if other or text is None:
        given = ", ".join(sorted(other)) or "no text"
        raise UsageError(f"this model is told a text, as in text='a red apple', and got {given}.")
    context, mask = prompts.read(text, MAX_TOKENS)
    return {"context": context, "mask": mask}


def _told_class(network: nn.Module, config: Mapping[str, Any]) -> _Told:
    names = config.get("classes")
    if not isinstance(network, UNet) or not isinstance(names, list):
        raise CheckpointError(f"a {type(network).__name__} cannot be told these classes: {names}.")
    encode = partial(encode_label, tuple(names))
    return {"label": torch.tensor([len(names)])}, encode


def _told_value(network: nn.Module, config: Mapping[str, Any]) -> _Told:
    if not isinstance(network, SubspaceScore):
        raise CheckpointError(f"a {type(network).__name__} cannot be told a value.")
    null = {"y": torch.tensor([math.nan])} if config.get("dropped") else None
    return null, encode_value


def _told_nothing(network: nn.Module, config: Mapping[str, Any]) -> _Told:
    return None, _encode_nothing


def _encode_nothing(**cond: Any) -> dict[str, Tensor]:
    raise UsageError(f"this model takes no condition, and got {', '.join(sorted(cond))}.")


_CONDITIONS: dict[str | None, Callable[[nn.Module, Mapping[str, Any]], _Told]] = {
    "text": _told_text,
    "label": _told_class,
    "y": _told_value,
    None: _told_nothing,
}


def find_folder(name: str | Path) -> Path:
    """Return the folder of something shipped, or the user's own.

    Raises:
        UsageError: there is no such folder; the message has the nearest names.
    """
    folder = Path(name)
    if str(name) in _shipped():
        return Path(str(resources.files("pathline") / "models" / str(name)))
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UsageError(f"{folder} is a file; give the folder with {WEIGHTS} and {CONFIG}.")
    if len(folder.parts) > 1:
        raise UsageError(f"there is no model folder {folder}.")
    raise unknown("model", str(name), model_names())


def _read_config(folder: Path, format: str, needed: Set[str]) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not a Pathline model: it has no {CONFIG}.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}.") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != format:
        raise CheckpointError(
            f"{folder} is not a model of this Pathline: its format is {found}, not {format}."
        )
    if missing := sorted(needed - set(config)):
        raise CheckpointError(f"{folder / CONFIG} lacks {', '.join(missing)}.")
    return config


def _read_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    file = folder / WEIGHTS
    try:
        weights = load_file(file)
        checksum = sha256_of(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}.") from error
    if checksum != config["weights"].get("sha256"):
        raise CheckpointError(f"{file} is damaged: its checksum is not the one in {CONFIG}.")
    return {k: v.float() for k, v in weights.items()}


def _fill(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the network of a configuration, with these weights."""
    network = build_network(config["network"])
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        file = folder / WEIGHTS
        raise CheckpointError(f"{file} does not fit the network in {CONFIG}: {reason}…") from error
    return network.eval().requires_grad_(False)
