"""Emoji of three vendors with captions: 32 × 32 RGB, aligned and split by code point.

Noto, Twemoji and Fluent draw the same code points; emojibase names and tags them. The *key* of a
code point drops `FE0F` and leading zeros; its *base key* is that of the emoji it is a skin tone of.
The split hashes the base key, so that neither another vendor's drawing nor a skin tone of a
held-out emoji is ever trained on. (Cutting the tones out of the key would not do: a couple of two
tones is spelled with other code points than its base.)
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pathline.core.files import write_atomically
from pathline.core.progress import track
from pathline.data.fetch import Package, cache_folder, fetch

__all__ = ["FILES", "Emoji", "EmojiData", "build", "describe", "key_of", "load", "split_of"]

SIZE = 32
BACKGROUND = (255, 255, 255)
HELD_OUT = 0.05
FILES = ("images.npy", "index.json")

CAPTIONS = Package(
    "npm",
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)


@dataclass(frozen=True)
class Vendor:
    """One vendor's drawings.

    Args:
        name: what captions call the style.
        package: where they come from.
        images: the pattern of their files in the package.
        licence: of the drawings.
    """

    name: str
    package: Package
    images: str
    licence: str


VENDORS = (
    Vendor(
        "noto",
        Package(
            "npm",
            "emoji-datasource-google",
            "16.0.0",
            "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        ),
        "img/google/64/*.png",
        "Apache-2.0 (Noto Emoji, Google)",
    ),
    Vendor(
        "twemoji",
        Package(
            "npm",
            "emoji-datasource-twitter",
            "16.0.0",
            "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        ),
        "img/twitter/64/*.png",
        "CC-BY-4.0 (Twemoji, Twitter and contributors)",
    ),
    Vendor(
        "fluent",
        Package(
            "npm",
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        ),
        "assets/*.webp",
        "MIT (Fluent Emoji, Microsoft; packaged by LobeHub)",
    ),
)
LICENCES = {vendor.name: vendor.licence for vendor in VENDORS} | {
    "captions": "MIT (emojibase-data, Miles Johnson)"
}


@dataclass(frozen=True)
class Caption:
    """What emojibase says of a code point, and the base it belongs to."""

    base: str
    label: str
    tags: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Emoji:
    """What is known of one image.

    Args:
        key: its code points.
        base: those of the emoji it is a skin tone of; its own key if it is none.
        vendor: noto, twemoji or fluent.
        label: its name.
        tags: words for it.
        group: smileys-emotion, people-body, animals-nature, …
        is_flag: whether it is one.
        is_skin_variant: whether it is one.
        split: train or held_out.
    """

    key: str
    base: str
    vendor: str
    label: str
    tags: tuple[str, ...]
    group: str
    is_flag: bool
    is_skin_variant: bool
    split: str


@dataclass(frozen=True)
class EmojiData:
    """The data set in memory.

    Args:
        images: (n, 32, 32, 3) uint8.
        entries: one an image, in the same order.
    """

    images: np.ndarray
    entries: tuple[Emoji, ...]

    def where(self, split: str) -> np.ndarray:
        """Return the numbers of the images of a split, "train" or "held_out"."""
        return np.flatnonzero([entry.split == split for entry in self.entries])


def key_of(name: str) -> str:
    """Return the code points of a file's name or a hexcode, without `FE0F` and leading zeros.

    >>> key_of("0023-FE0F-20E3")
    '23-20e3'
    """
    return "-".join(part.lstrip("0") for part in name.lower().split("-") if part != "fe0f")


def split_of(base: str) -> str:
    """Return the split of a base key: held_out for a pseudo-random twentieth, else train."""
    digest = hashlib.sha256(f"pathline-emoji:{base}".encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") < HELD_OUT * 2**64 else "train"


def load() -> EmojiData:
    """Return the data set from the cache, built on first use.

    Raises:
        FetchError: a package cannot be fetched.
    """
    folder = build()
    index = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
    entries = (Emoji(tags=tuple(entry.pop("tags")), **entry) for entry in index["entries"])
    return EmojiData(np.load(folder / FILES[0]), tuple(entries))


def build() -> Path:
    """Return the folder with images and index, made from the packages on first use (20 s)."""
    folder = cache_folder() / "emoji-32"
    if not (folder / FILES[1]).is_file():
        captions = _captions(fetch(CAPTIONS))
        drawings = [
            (entry, file) for vendor in VENDORS for entry, file in _drawings(vendor, captions)
        ]
        images = [_render(file) for _, file in track(drawings, "drawing emoji")]
        index = json.dumps(_index([entry for entry, _ in drawings]), ensure_ascii=False, indent=0)
        write_atomically(folder / FILES[0], lambda path: np.save(path, np.stack(images)))
        write_atomically(folder / FILES[1], index + "\n")
    return folder


def describe() -> tuple[Mapping[str, int], Mapping[str, str]]:
    """Return how many images each split, each vendor and each special kind has; the licences."""
    entries = load().entries
    counts = Counter(entry.split for entry in entries) + Counter(entry.vendor for entry in entries)
    kinds = {
        "flags": sum(entry.is_flag for entry in entries),
        "skin_variants": sum(entry.is_skin_variant for entry in entries),
    }
    return {**counts, **kinds}, LICENCES


def _captions(folder: Path) -> dict[str, Caption]:
    """Return what is said of every emoji and each of its skin variants, by key."""
    messages = json.loads((folder / "en/messages.json").read_text(encoding="utf-8"))
    groups = {group["order"]: group["key"] for group in messages["groups"]}
    found: dict[str, Caption] = {}
    for emoji in json.loads((folder / "en/data.json").read_text(encoding="utf-8")):
        base, tags = key_of(emoji["hexcode"]), tuple(emoji.get("tags", ()))
        group = groups.get(emoji.get("group"), "component")
        for drawn in [emoji, *emoji.get("skins", ())]:
            found[key_of(drawn["hexcode"])] = Caption(base, drawn["label"], tags, group)
    return found


def _drawings(vendor: Vendor, captions: Mapping[str, Caption]) -> list[tuple[Emoji, Path]]:
    """Return the vendor's captioned drawings, in the order of their keys."""
    found = sorted(fetch(vendor.package).glob(vendor.images))
    files = {key_of(file.stem): file for file in found}
    known = sorted(files.keys() & captions.keys())
    return [(_entry(key, vendor.name, captions[key]), files[key]) for key in known]


def _entry(key: str, vendor: str, caption: Caption) -> Emoji:
    return Emoji(
        key,
        caption.base,
        vendor,
        caption.label,
        caption.tags,
        caption.group,
        is_flag=caption.group == "flags",
        is_skin_variant=caption.base != key,
        split=split_of(caption.base),
    )


def _index(entries: list[Emoji]) -> dict[str, Any]:
    return {
        "size": SIZE,
        "background": BACKGROUND,
        "held_out": HELD_OUT,
        "licences": LICENCES,
        "packages": [asdict(p) for p in (*(vendor.package for vendor in VENDORS), CAPTIONS)],
        "entries": [asdict(entry) for entry in entries],
    }


def _render(file: Path) -> np.ndarray[Any, Any]:
    """Return a drawing at 32 × 32 on the background, (32, 32, 3) uint8.

    It is composited before the Lanczos filter, so that hidden colours do not bleed into edges.
    """
    with Image.open(file) as opened:
        rgba = np.asarray(opened.convert("RGBA"), dtype=np.float32)
    alpha = rgba[..., 3:] / 255
    flat = rgba[..., :3] * alpha + np.asarray(BACKGROUND, dtype=np.float32) * (1 - alpha)
    planes = [Image.fromarray(np.ascontiguousarray(flat[..., c])) for c in range(3)]
    small = [np.asarray(p.resize((SIZE, SIZE), Image.Resampling.LANCZOS)) for p in planes]
    return np.clip(np.rint(np.stack(small, axis=-1)), 0, 255).astype(np.uint8)
