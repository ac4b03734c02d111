"""How the judge of captions is trained: a contrast between captions, on one vendor's drawings.

    L = ½ (cross-entropy of each picture's caption + of each caption's picture) in a batch

The pictures are looked at once, as they are and in eight altered versions (moved, turned, zoomed,
recoloured, blurred), because a feature network's eyes are what differs between vendors' styles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pathline.core.progress import track
from pathline.data import emoji
from pathline.learn.checkpoint import write_folder
from pathline.learn.quality.features import Lite0
from pathline.learn.quality.judge import FORMAT, SHIPPED, Heads, Judge, among, embed_texts
from pathline.learn.sources import is_plain

__all__ = ["Schooling", "reading", "train_judge"]


@dataclass(frozen=True)
class Schooling:
    """How the judge is trained; the same schooling gives the same heads.

    Args:
        vendor: whose drawings it sees.
        size: pixels a side that pictures are enlarged to.
        altered: versions of each picture beside itself.
        width: of the sphere's space.
        epochs: passes over the pictures, each in a version drawn anew.
        batch: pictures that are told apart at once.
        rate: of AdamW at its peak.
        decay: weight decay.
        smoothing: of the labels.
        tag_share: how many captions are a tag instead of the name.
        seed: of everything random.
    """

    vendor: str = "noto"
    size: int = 96
    altered: int = 8
    width: int = 256
    epochs: int = 120
    batch: int = 256
    rate: float = 2e-3
    decay: float = 0.5
    smoothing: float = 0.2
    tag_share: float = 0.3
    seed: int = 0


def train_judge(out: str | Path, schooling: Schooling | None = None) -> Path:
    """Train the judge on one vendor's training pictures, and write its folder (six minutes).

    Raises:
        FetchError: a package of data cannot be fetched.
        MissingExtra: EfficientNet-Lite0 or the text encoder is not installed.
        UsageError: the output cannot be written.
    """
    how, data = schooling or Schooling(), emoji.load()
    where = [e.split == "train" and e.vendor == how.vendor for e in data.entries]
    pupils = [i for i, e in enumerate(data.entries) if where[i] and is_plain(e)]
    sight = Lite0(how.size)
    pixels = torch.from_numpy(data.images[pupils]).permute(0, 3, 1, 2)
    views = _views(sight, pixels, how)
    texts = [_texts(data.entries[i]) for i in pupils]
    heads = _fit(views, texts, how)
    about = {
        "format": FORMAT,
        "name": SHIPPED,
        "width": how.width,
        "size": how.size,
        "reads": _reading_of_all(Judge(heads, sight, {}), data),
        "training": {
            "schooling": asdict(how),
            "licences": dict(emoji.LICENCES),
            "torch": torch.__version__,
        },
    }
    return write_folder(out, heads.state_dict(), about, torch.float16)


def reading(judge: Judge, pixels: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Return how well a judge reads pictures: how often their caption is first, and among five.

    Each caption stands beside 99 random ones of the others (beside all, if there are fewer).
    """
    scores = judge.scores(pixels, captions)
    own = scores.diagonal().clone()
    same = torch.tensor([[a == b for b in captions] for a in captions])
    others = scores.masked_fill(same, -torch.inf)
    return {
        "pictures": len(captions),
        "choices": min(100, len(captions)),
        "first": round(among(others, own, 1), 4),
        "among_five": round(among(others, own, 5), 4),
    }


def _reading_of_all(judge: Judge, data: emoji.EmojiData) -> dict[str, dict[str, float]]:
    """Return how well the judge reads each vendor, on seen and on held-out code points."""
    found: dict[str, dict[str, float]] = {}
    for split in ("train", "held_out"):
        for vendor in (v.name for v in emoji.VENDORS):
            chosen = [
                i
                for i, e in enumerate(data.entries)
                if (e.split, e.vendor) == (split, vendor) and is_plain(e)
            ]
            pixels = torch.from_numpy(data.images[chosen]).permute(0, 3, 1, 2)
            labels = [data.entries[i].label for i in chosen]
            found[f"{vendor}, {split}"] = reading(judge, pixels, labels)
    return found


def _texts(entry: emoji.Emoji) -> list[str]:
    """Return a drawing's name, then its tags."""
    return [entry.label, *(tag for tag in entry.tags if len(tag) > 1)]


def _views(sight: Lite0, pixels: Tensor, how: Schooling) -> Tensor:
    """Return the features of each picture and of its altered versions, (versions, n, SIGHT)."""
    generator = torch.Generator().manual_seed(how.seed)
    versions: list[Callable[[Tensor], Tensor]] = [sight.enlarged]
    versions += [lambda part: _altered(part, how.size, generator)] * how.altered
    views: list[Tensor] = []
    with torch.no_grad():
        for version in track(versions, "looking at versions"):
            views.append(torch.cat([sight.levels(version(part)) for part in pixels.split(64)]))
    return torch.stack(views)


def _altered(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return pictures in [0, 1] on white, moved, turned, zoomed, recoloured and blurred."""
    n = len(pixels)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    def wide(x: Tensor) -> Tensor:
        return x[:, None, None, None]

    zoom, stretch, turn = draw(0.85, 1.3), draw(-0.12, 0.12).exp(), draw(-0.25, 0.25)
    flip = torch.where(draw(0, 1) < 0.3, -1.0, 1.0)
    across = torch.stack(
        [flip * zoom * stretch * turn.cos(), -zoom * turn.sin(), draw(-0.12, 0.12)]
    )
    down = torch.stack([flip * zoom * turn.sin(), zoom / stretch * turn.cos(), draw(-0.12, 0.12)])
    where = torch.stack([across, down]).permute(2, 0, 1)
    grid = F.affine_grid(where, [n, 3, size, size], align_corners=False)
    x = 1 + F.grid_sample(pixels.float() / 255 - 1, grid, mode="bicubic", align_corners=False)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * wide(draw(0.5, 1.5))
    x = (1 - (1 - x) * wide(draw(0.6, 1.15))).clamp(0, 1) ** wide(draw(-0.4, 0.4).exp())
    blurred = F.interpolate(F.avg_pool2d(x, 4), size=(size, size), mode="bilinear")
    return x.lerp(blurred, wide(draw(-0.3, 0.9)).clamp_min(0)).clamp(0, 1)


def _fit(views: Tensor, texts: Sequence[Sequence[str]], how: Schooling) -> Heads:
    """Return the heads that tell the captions of pictures apart."""
    flat = [text for own in texts for text in own]
    starts = torch.tensor([0, *map(len, texts)]).cumsum(0)
    captions, n = embed_texts(flat), len(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        heads = Heads(how.width)
        heads.mean.copy_(views.flatten(0, 1).mean(0))
        heads.std.copy_(views.flatten(0, 1).std(0) + 1e-3)
        steps = how.epochs * n // how.batch
        optimizer = torch.optim.AdamW(heads.parameters(), lr=how.rate, weight_decay=how.decay)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.rate, steps, pct_start=0.1)
        for _ in track(range(steps), "training the judge"):
            chosen = torch.randperm(n)[: how.batch]
            seen = heads.seen(views[_version(len(views), len(chosen)), chosen])
            said = heads.said(captions[_caption(starts, chosen, how.tag_share)])
            loss = _contrast(seen @ said.T * heads.sharpness.exp(), how.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return heads.eval().requires_grad_(False)


def _version(versions: int, n: int) -> Tensor:
    """Draw a version for each picture; the picture itself is drawn twice as often as another."""
    return (torch.randint(-1, versions, (n,))).clamp_min(0)


def _caption(starts: Tensor, chosen: Tensor, tag_share: float) -> Tensor:
    """Draw a caption for each picture: its name, or one of its tags."""
    first, count = starts[chosen], starts[chosen + 1] - starts[chosen]
    tag = first + 1 + (torch.rand(len(chosen)) * (count - 1)).long()
    return torch.where((torch.rand(len(chosen)) < tag_share) & (count > 1), tag, first)


def _contrast(logits: Tensor, smoothing: float) -> Tensor:
    own = torch.arange(len(logits))
    pictures, captions = (
        F.cross_entropy(each, own, label_smoothing=smoothing) for each in (logits, logits.T)
    )
    return (pictures + captions) / 2
