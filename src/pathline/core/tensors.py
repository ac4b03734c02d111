"""Tensors: files of them (safetensors, never unpickled), and what a GPU is asked and told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.weak import WeakTensorKeyDictionary

from pathline.core.errors import UsageError
from pathline.core.files import write_atomically

_HEADER = "pathline"


def digest_of(tensors: Iterable[tuple[str, Tensor]], about: str = "") -> str:
    """Return the SHA-256 of named tensors, bit for bit, and of what else is to count."""
    digest = hashlib.sha256(about.encode())
    for name, value in tensors:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> Path:
    """Write tensors and a header of plain JSON values into one file.

    Raises:
        UsageError: the place cannot be written to.
    """
    told = {_HEADER: json.dumps(header, ensure_ascii=False)}
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return write_atomically(path, lambda place: save_file(kept, place, told))


def read_tensors(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a file that `write_tensors` wrote.

    Raises:
        UsageError: the file cannot be read, or has no such header.
    """
    try:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = None if told is None else json.loads(told)
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {error}.") from error
    if not isinstance(header, dict):
        raise UsageError(f"{path} is no table of Pathline's: it has no header of ours.")
    return header, tensors


@contextmanager
def full_float32() -> Generator[None]:
    """Multiply float32 in float32 on a GPU too: no TF32, which keeps three digits.

    Convolutions take TF32 unless they are told not to, and errors of 1e-3 are what is measured.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@contextmanager
def plain_attention() -> Generator[None]:
    """Attend by products of matrices, which can be derived twice, and forwards.

    torch's fused attention has neither derivative. What was computed inside keeps its own.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


_ON_HOST, _ON_DEVICE = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()


def on_host(times: Tensor) -> Tensor:
    """Return times on the CPU, where what depends on them can be decided without waiting.

    A device is asked once for a tensor: a loop that is captured as a CUDA graph, which may not ask,
    knows it from when it was warmed up. Nobody writes into times.
    """
    if times.device.type == "cpu":
        return times
    known: Tensor | None = _ON_HOST.get(times)
    if known is None:
        known = _ON_HOST[times] = times.detach().cpu()
    return known


def on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Return numbers that nobody writes into where they are needed, always in the same tensor.

    They are copied once: a loop that is captured as a CUDA graph may not copy from the CPU, and
    knows them from when it was warmed up.
    """
    if numbers.device == device:
        return numbers
    known: dict[torch.device, Tensor] | None = _ON_DEVICE.get(numbers)
    if known is None:
        known = _ON_DEVICE[numbers] = {}
    if device not in known:
        with torch.inference_mode(False):  # what is kept must also serve a solve with gradients
            known[device] = numbers.detach().to(device)
    return known[device]
