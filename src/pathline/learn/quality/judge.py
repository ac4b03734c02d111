"""A judge of captions: whether a picture shows what its caption says.

Two linear heads, on frozen EfficientNet-Lite0 features of the picture and on the frozen MiniLM
embedding of the caption, map both to one sphere; the cosine there is how well they agree. The heads
are trained on one vendor's drawings, so how well the judge reads another vendor's, which it has
never seen, tells how far its verdict can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core.errors import CheckpointError
from pathline.core.progress import track
from pathline.learn.checkpoint import find_folder, read_folder
from pathline.learn.quality.features import Lite0, embed
from pathline.nets.text import WIDTH, encode_text

__all__ = ["FORMAT", "SHIPPED", "Heads", "Judge", "among", "embed_texts", "load_judge"]

FORMAT = "pathline-judge-1"
SHIPPED = "emoji-captions"
SIGHT = Lite0.WIDTH + Lite0.num_features


class Heads(nn.Module):
    """Two linear maps to one sphere.

    Args:
        width: of the sphere's space.
        dropout: shares of what is seen and of what is read that are hidden in training.
    """

    def __init__(self, width: int = 256, dropout: tuple[float, float] = (0.5, 0.1)) -> None:
        super().__init__()
        self.mean, self.std = nn.Buffer(torch.zeros(SIGHT)), nn.Buffer(torch.ones(SIGHT))
        self.see, self.read = nn.Linear(SIGHT, width), nn.Linear(WIDTH, width)
        self.dropout = dropout
        self.sharpness = nn.Parameter(torch.tensor(2.5))

    def seen(self, features: Tensor) -> Tensor:
        """Return where pictures lie, (n, width) of length one, from all levels of `Lite0`."""
        x = (features.float() - self.mean) / self.std
        return F.normalize(self.see(F.dropout(x, self.dropout[0], self.training)), dim=1)

    def said(self, embeddings: Tensor) -> Tensor:
        """Return where captions lie, (n, width) of length one, from `embed_texts`."""
        x = F.dropout(embeddings, self.dropout[1], self.training)
        return F.normalize(self.read(x), dim=1)


class _AllLevels(nn.Module):
    """Lite0, with all its levels as features of pixels."""

    num_features = SIGHT

    def __init__(self, network: Lite0) -> None:
        super().__init__()
        self.network, self.size = network, network.size

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.levels(self.network.enlarged(pixels))


@dataclass(frozen=True)
class Judge:
    """The heads, and what they look with.

    Args:
        heads: trained.
        sight: the feature network.
        about: how the heads were trained, and how well they read vendors they have not seen.
    """

    heads: Heads
    sight: Lite0
    about: dict[str, object]

    def see(self, pixels: Tensor) -> Tensor:
        """Return where pictures lie on the sphere, (n, width)."""
        return self.heads.seen(embed(_AllLevels(self.sight), pixels, "pictures as the judge"))

    def scores(self, pixels: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the cosine of every picture and every caption, (n, m) in [−1, 1]."""
        return self.see(pixels) @ self.heads.said(embed_texts(captions)).T


def load_judge(name: str | Path = SHIPPED, sight: Lite0 | None = None) -> Judge:
    """Return a judge.

    Args:
        name: the shipped one's, or a folder that `train_judge` wrote.
        sight: the feature network, if it is loaded already.

    Raises:
        UsageError: there is no such folder.
        CheckpointError: it is damaged, or not a judge's.
        MissingExtra: EfficientNet-Lite0 is not installed.
    """
    folder = find_folder(name)
    config, weights = read_folder(folder, FORMAT, {"width", "size"})
    heads = Heads(config["width"])
    try:
        heads.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: the weights do not fit the heads.") from error
    sight = sight or Lite0(config["size"])
    return Judge(heads.eval().requires_grad_(False), sight, config)


def embed_texts(texts: Sequence[str], chunk: int = 256) -> Tensor:
    """Return sentence embeddings, the mean of MiniLM's token states, (n, 384) of length one."""
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    parts = [unique[i : i + chunk] for i in range(0, len(unique), chunk)]
    rows: list[Tensor] = []
    for part in track(parts, "reading captions") if len(parts) > 1 else parts:
        states, mask = encode_text(part)
        rows.append(F.normalize(states.sum(1) / mask.sum(1, keepdim=True), dim=1))
    number = {text: i for i, text in enumerate(unique)}
    return torch.cat(rows)[[number[text] for text in texts]]


def among(scores: Tensor, own: Tensor, best: int = 1, choices: int = 100) -> float:
    """Return how often the own caption is among the best of `choices`, the others being random.

    With b of the m others scoring no higher, the number of better ones among the choices − 1 that
    are drawn is hypergeometric; its distribution is summed, so nothing is drawn.

    Args:
        scores: of all other captions, (n, m); a picture's own caption, if there, as −∞.
        own: of each picture's own caption, (n,).
        best: how many of the choices count as found.
        choices: how many captions there are to choose from.
    """
    others = torch.isfinite(scores)
    better = ((scores > own[:, None]) & others).sum(1).double()
    total = others.sum(1).double()
    drawn = torch.full_like(total, choices - 1).minimum(total)
    found = torch.zeros_like(total)
    for k in range(best):
        log = _choose(better, k) + _choose(total - better, drawn - k) - _choose(total, drawn)
        found += log.exp()
    return found.mean().item()


def _choose(n: Tensor, k: Tensor | int) -> Tensor:
    """Return log C(n, k); −∞ where k is not between 0 and n."""
    k = torch.as_tensor(k, dtype=n.dtype)
    inside = (k >= 0) & (k <= n)
    log = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp_min(0) + 1)
    return torch.where(inside, log, -torch.inf)
