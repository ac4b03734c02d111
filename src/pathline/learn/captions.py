"""Captions of emoji, and the token states of all captions, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pathline.core.files import write_atomically
from pathline.core.progress import track
from pathline.data.emoji import Emoji
from pathline.data.fetch import cache_folder
from pathline.nets.text import encode_text

__all__ = ["Captions", "TextTable", "captions_of", "text_table"]


@dataclass(frozen=True)
class Captions:
    """The ways to say what an image shows: by its names, or by words for it."""

    names: tuple[str, ...]
    tags: tuple[str, ...] = ()

    def pick(self, kind: float, which: float, tag_share: float) -> str:
        """Return the caption of two coins in [0, 1): the first decides between names and tags."""
        tells = self.tags if self.tags and kind < tag_share else self.names
        return tells[int(which * len(tells))]


def captions_of(emoji: Emoji) -> Captions:
    """Return an emoji's name and tags, each alone and with the vendor's; a skin tone's name alone.

    >>> captions_of(Emoji("1f415", "1f415", "noto", "dog", ("pet",), "", False, False, "train"))
    Captions(names=('dog', 'dog, noto', 'a dog', 'a dog, noto'), tags=('pet', 'pet, noto'))
    """
    if emoji.is_skin_variant:  # its name is long as it is, and it is rarely drawn
        return Captions((emoji.label,))
    article = "an" if emoji.label[0].lower() in "aeiou" else "a"
    names = _with_vendor((emoji.label, f"{article} {emoji.label}"), emoji.vendor)
    return Captions(names, _with_vendor([t for t in emoji.tags if len(t) > 1], emoji.vendor))


def _with_vendor(texts: Sequence[str], vendor: str) -> tuple[str, ...]:
    return tuple(text for plain in texts for text in (plain, f"{plain}, {vendor}"))


@dataclass(frozen=True)
class TextTable:
    """Token states of many captions; those of caption i are states[start[i] : start[i + 1]].

    Args:
        rows: the number of each caption.
        states: (tokens of all captions, width) float16.
        start: (captions + 1,) int64.
    """

    rows: dict[str, int]
    states: Tensor
    start: Tensor

    def padded(self, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Return states (n, length, width) float32 and mask (n, length); longer ones are cut."""
        rows = torch.tensor([self.rows[caption] for caption in captions])
        places = self.start[rows, None] + torch.arange(length)
        mask = places < self.start[rows + 1, None]
        states = self.states[places.clamp(max=len(self.states) - 1)]
        return states.masked_fill(~mask[..., None], 0).float(), mask


def text_table(captions: Sequence[str], chunk: int = 256) -> TextTable:
    """Return the table of these captions, from the cache, or encoded now (3 ms each, one core)."""
    captions = sorted(set(captions), key=lambda text: (len(text), text))
    name = hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16]
    path = cache_folder() / "text" / f"minilm-{name}.safetensors"
    if not path.is_file():
        tensors = _encode(captions, chunk)
        write_atomically(path, lambda temporary: save_file(tensors, temporary))
    tensors = load_file(path)
    rows = {text: i for i, text in enumerate(captions)}
    return TextTable(rows, tensors["states"], tensors["start"])


def _encode(captions: Sequence[str], chunk: int) -> dict[str, Tensor]:
    states: list[Tensor] = []
    lengths: list[Tensor] = [torch.zeros(1, dtype=torch.int64)]
    parts = [captions[i : i + chunk] for i in range(0, len(captions), chunk)]
    for part in track(parts, "reading captions"):
        context, mask = encode_text(part)
        states.append(context[mask].half())
        lengths.append(mask.sum(1))
    return {"states": torch.cat(states), "start": torch.cat(lengths).cumsum(0)}
