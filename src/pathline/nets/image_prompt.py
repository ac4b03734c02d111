"""Image prompts: tokens made of a picture's features, attended to beside those of the text.

    y = Attn(Q, K_text, V_text) + ρ Attn(Q, K_image, V_image)

The second pair of projections is the only thing that a network needs to learn in order to hear
pictures; values start at zero, so an untrained prompt changes nothing. A resampler turns any number
of features into a few tokens: learned queries attend to the features and to themselves.

Papers: Ye et al. 2023 (IP-Adapter, arXiv:2308.06721); Alayrac et al. 2022 (Perceiver resampler,
arXiv:2204.14198); Mou et al. 2024 (arXiv:2402.02583), Sec. 3.1.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.nets.attention import Attending, attending, checked_attentions, cross_attentions

__all__ = ["ImagePrompt", "Resampler"]


class Resampler(nn.Module):
    """Any number of a picture's features to a few tokens.

        queries ← queries + Attn(norm queries, [features; queries])
        queries ← queries + MLP(norm queries)          `depth` times

    Args:
        width: of the features that come in.
        out: width of the tokens.
        inner: width in between, a multiple of `heads`.
        depth: layers.
        tokens: how many come out.
        heads: of each attention.

    Raises:
        UsageError: sizes that do not divide each other.

    Example:
        >>> made = Resampler(width=6, out=8, inner=16, depth=1, tokens=4, heads=2)
        >>> made(torch.randn(3, 10, 6)).shape
        torch.Size([3, 4, 8])
    """

    def __init__(
        self,
        width: int,
        out: int,
        inner: int = 768,
        depth: int = 4,
        tokens: int = 64,
        heads: int = 12,
    ) -> None:
        super().__init__()
        if inner % heads or min(width, out, inner, depth, tokens, heads) < 1:
            raise UsageError(
                "a resampler's sizes are 1 at least, and its inner width is a multiple of its "
                f"heads; inner={inner}, heads={heads}, depth={depth}, tokens={tokens}."
            )
        self.width = width
        self.queries = nn.Parameter(torch.randn(1, tokens, inner) * inner**-0.5)
        self.enter = nn.Linear(width, inner)
        self.layers = nn.ModuleList(_Layer(inner, heads) for _ in range(depth))
        self.leave = nn.Sequential(nn.Linear(inner, out), nn.LayerNorm(out))

    def forward(self, features: Tensor) -> Tensor:
        """Return tokens, (batch, tokens, out), of features, (batch, n, width)."""
        if features.ndim != 3 or features.shape[2] != self.width:
            raise UsageError(
                f"this resampler takes features (batch, n, {self.width}), not "
                f"{tuple(features.shape)}."
            )
        features = self.enter(features)
        tokens = self.queries.expand(len(features), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, features)
        return self.leave(tokens)


class _Layer(nn.Module):
    """Queries attend to features and to each other, then think alone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_features = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        asked = self.norm(tokens)
        seen = torch.cat((self.norm_features(features), asked), 1)
        k, v = self.key_value(seen).chunk(2, dim=-1)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for each in (self.query(asked), k, v))  # fmt: skip
        said = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(said)
        return tokens + self.mlp(tokens)


class ImagePrompt(nn.Module):
    """What lets the cross-attentions of a network hear tokens of a picture.

    It holds its own projections alone; the network is neither changed nor kept.

    Args:
        widths: of keys and values of each layer, by its name, as `widths_of` reads them off a
            network.
        tokens: width of a token.

    Raises:
        UsageError: the network has no cross-attention.
    """

    def __init__(self, widths: dict[str, int], tokens: int) -> None:
        super().__init__()
        if not widths:
            raise UsageError("an image prompt needs cross-attentions, and was told of none.")
        self.names = tuple(widths)
        self.tokens = tokens
        self.key = nn.ModuleList(nn.Linear(tokens, w, bias=False) for w in widths.values())
        self.value = nn.ModuleList(nn.Linear(tokens, w, bias=False) for w in widths.values())
        for layer in self.value:
            nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]

    @classmethod
    def of(
        cls, network: nn.Module, tokens: int, layers: Sequence[str] | None = None
    ) -> ImagePrompt:
        """Return a prompt for a network's cross-attentions, or for those of these names.

        Raises:
            UsageError: there are none, or their width cannot be seen.
        """
        names = checked_attentions(network, layers, cross_attentions(network))
        return cls({name: _width(network, name) for name in names}, tokens)

    @contextmanager
    def heard(self, network: nn.Module, tokens: Tensor, share: float = 1.0) -> Generator[None]:
        """Let the network hear the tokens inside the `with` block.

        Args:
            network: the one that it was made for.
            tokens: (batch, n, tokens); one picture's serve a batch, and a pass of a multiple of
                them (guidance) hears them repeated.
            share: ρ; 0 is silence.

        Raises:
            UsageError: tokens of another width, or number.
        """
        if tokens.ndim != 3 or tokens.shape[2] != self.tokens:
            raise UsageError(
                f"this prompt takes tokens (batch, n, {self.tokens}), not {tuple(tokens.shape)}."
            )
        known = checked_attentions(network, self.names, cross_attentions(network))
        places = {name: i for i, name in enumerate(self.names)}

        def answer(call: Attending) -> Tensor:
            said = call()
            if share == 0:
                return said
            i, heads = places[call.name], call.q.shape[1]
            times, rest = divmod(len(call.q), len(tokens))
            if rest:
                raise UsageError(f"{len(tokens)} pictures do not serve a batch of {len(call.q)}.")
            told = tokens.to(next(self.key[i].parameters())).repeat(times, 1, 1)
            k, v = (
                layer(told).unflatten(-1, (heads, -1)).transpose(1, 2).to(call.q)
                for layer in (self.key[i], self.value[i])
            )
            return said + share * call.to(k, v)()

        with attending(network, known, answer):
            yield


def _width(network: nn.Module, name: str) -> int:
    """Return the width of a layer's queries, all heads together."""
    layer = network.get_submodule(name)
    for query in ("query", "to_q", "q_proj"):
        found = getattr(layer, query, None)
        if isinstance(found, nn.Linear):
            return found.out_features
    raise UsageError(
        f"the width of {name!r} ({type(layer).__name__}) cannot be seen: it has no projection "
        "called query, to_q or q_proj; make ImagePrompt(widths={...}) yourself."
    )
