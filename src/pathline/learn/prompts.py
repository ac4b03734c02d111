"""Sentences that were read beforehand, for a machine without the text encoder.

The encoder weighs 90 MB, and what `pathline tune` or `pathline bench solvers` asks of it is a few
dozen sentences. `keep` reads them where the encoder is; their states, in the cache, go along.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.core.errors import MissingExtra, UsageError
from pathline.core.tensors import read_tensors, write_tensors
from pathline.data.fetch import cache_folder
from pathline.nets.text import MAX_TOKENS, check_texts, encode_text

__all__ = ["keep", "read"]


def keep(texts: Sequence[str]) -> None:
    """Read sentences and keep their token states in the cache, besides those kept before.

    Raises:
        MissingExtra: the text encoder is not installed.
    """
    known = _kept()
    for text in dict.fromkeys(texts):
        if text not in known:
            states, _ = encode_text(text)
            known[text] = states[0]
    tensors = {str(i): states for i, states in enumerate(known.values())}
    write_tensors(_file(), tensors, {"texts": list(known)})


def read(texts: str | Sequence[str], length: int = MAX_TOKENS) -> tuple[Tensor, Tensor]:
    """Return the token states of sentences; without the encoder, those that were kept.

    Args:
        texts: a sentence or several.
        length: tokens, padding included.

    Returns:
        states (n, length, 384), zero where padded, and mask (n, length), True where real.

    Raises:
        UsageError: as `encode_text`.
        MissingExtra: the encoder is not installed, and a sentence was not kept.
    """
    try:
        return encode_text(texts, length)
    except MissingExtra:
        known, asked = _kept(), check_texts(texts)
        if not known.keys() >= set(asked):
            raise
    rows = [known[text] for text in asked]
    states = torch.stack([F.pad(r, (0, 0, 0, length - len(r))) for r in rows])
    mask = torch.arange(length) < torch.tensor([[len(row)] for row in rows])
    return states, mask


def _file() -> Path:
    return cache_folder() / "text" / "prompts.safetensors"


def _kept() -> dict[str, Tensor]:
    """Return the states of each sentence that was kept, (tokens, 384)."""
    try:
        header, tensors = read_tensors(_file())
    except UsageError:
        return {}
    return {text: tensors[str(i)] for i, text in enumerate(header["texts"])}
