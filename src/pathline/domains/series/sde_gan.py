"""An SDE as a generator of paths, and a CDE as their judge: neural SDEs as GANs.

    generator        X_0 = ζ(V), dX = μ(t, X) dt + σ(t, X) ∘ dW, Y = ℓ(X)
    discriminator    H_0 = ξ(t_0, Y_0), dH = F(t, H) d(t, Y), score = m·H at t_0 and at t_1

Both are solved by reversible Heun, whose gradient is exact in the memory of one step. The judge is
of Lipschitz constant 1 or less in each layer: LipSwish, and weights that are clipped. It looks at
the start as well as the end, or nobody would teach ζ.

Paper: Kidger, Foster, Li, Oberhauser & Lyons 2021 (arXiv:2102.03657); Kidger, Foster, Li & Lyons
2021 (arXiv:2105.13493).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.core.progress import track
from pathline.fields import CDE, SDE
from pathline.learn.path_laws import critic_loss, generator_loss
from pathline.nets.vector_fields import LipSwish, NoiseNet, clip_weights, layers
from pathline.paths import controls
from pathline.solvers import solve

__all__ = ["Discriminator", "Game", "Generator", "play"]


class Generator(nn.Module):
    """A neural SDE that makes paths.

    Args:
        channels: of a path.
        initial: numbers of noise at the start.
        noises: Brownian motions.
        hidden: numbers in the state.
        width: of all networks.
        adjoint: how gradients come back.
    """

    def __init__(
        self,
        channels: int,
        *,
        initial: int = 5,
        noises: int = 3,
        hidden: int = 16,
        width: int = 16,
        adjoint: str = "direct",
    ) -> None:
        super().__init__()
        self.noises, self.inputs, self.adjoint = noises, initial, adjoint
        self.initial = layers((initial, width, hidden), LipSwish)
        self.drift = NoiseNet(hidden, width=width)
        self.diffusion = NoiseNet(hidden, noises, width=width)
        self.readout = nn.Linear(hidden, channels)

    def forward(self, times: Tensor, n: int, seed: int = 0) -> Tensor:
        """Return paths at these times, (n, length, channels); path i has seed + i."""
        seeds = range(seed, seed + n)
        dtype = self.readout.weight.dtype
        start = self.initial(noise.normal(seeds, (self.inputs,), dtype=dtype))
        sde = SDE(self.drift, self.diffusion, noise="general", sde_type="stratonovich",
                  channels=self.noises)  # fmt: skip
        made = solve(sde, start, solver="reversible_heun", grid=times.tolist(), seeds=seeds,
                     trajectory=True, adjoint=self.adjoint).trajectory  # fmt: skip
        assert made is not None
        return self.readout(made).transpose(0, 1)


class Discriminator(nn.Module):
    """A neural CDE that scores paths.

    Args:
        channels: of a path, without time.
        hidden: numbers in the state.
        width: of all networks.
        adjoint: how gradients come back.
    """

    def __init__(
        self, channels: int, *, hidden: int = 16, width: int = 16, adjoint: str = "direct"
    ) -> None:
        super().__init__()
        self.channels, self.adjoint = channels, adjoint
        self.initial = layers((1 + channels, width, hidden), LipSwish)
        self.response = NoiseNet(hidden, 1 + channels, width=width)
        self.readout = nn.Linear(hidden, 1, bias=False)

    def forward(self, times: Tensor, paths: Tensor) -> Tensor:
        """Return scores, (n,).

        Args:
            times: (length,).
            paths: (n, length, channels), NaN where nothing was observed; straight in between.
        """
        if paths.shape[2] != self.channels:
            raise UsageError(
                f"the judge reads paths of {self.channels} channels, and was given "
                f"{paths.shape[2]}."
            )
        control = controls.linear(controls.with_time(paths, times), times)
        first = self.initial(control.value(control.start))
        last = solve(CDE(self.response, control), first, solver="reversible_heun",
                     grid=times.tolist(), adjoint=self.adjoint).x  # fmt: skip
        return self.readout(first + last)[:, 0]


@dataclass(frozen=True)
class Game:
    """How both are trained.

    Args:
        iterations: of the game: a step of the judge, a step of the generator.
        batch: paths in each.
        rates: of Adadelta for generator and judge.
        decay: of weights.
        faster: how many times the rate of both initial networks is larger.
        seed: of batches and paths.
    """

    iterations: int = 1500
    batch: int = 256
    rates: tuple[float, float] = (2e-4, 1e-3)
    decay: float = 0.01
    faster: float = 10.0
    seed: int = 0


def play(
    generator: Generator, judge: Discriminator, times: Tensor, real: Tensor,
    game: Game | None = None, *, watch: Callable[[int, float], None] | None = None,
) -> Generator:  # fmt: skip
    """Train a generator against a judge, both in place.

    Args:
        generator, judge: the players.
        times: (length,).
        real: (n, length, channels), NaN where nothing was observed.
        game: steps and rates.
        watch: called with the number of each step and how much higher the judge scores the real.

    Returns:
        The generator whose weights are the mean over the second half.
    """
    game = game or Game()
    made = _optimiser(generator, game.rates[0], game), _optimiser(judge, game.rates[1], game)
    draw = torch.Generator().manual_seed(game.seed)
    mean, counted = copy.deepcopy(generator), 0
    clip_weights(judge)
    for step in track(range(game.iterations), "generator and judge"):
        rows = torch.randint(len(real), (game.batch,), generator=draw)
        first = (game.seed << 44) + 2 * step * game.batch
        with torch.no_grad():
            fake = generator(times, game.batch, first)
        loss = critic_loss(judge(times, real[rows]), judge(times, fake))
        _step(made[1], loss)
        clip_weights(judge)
        _step(made[0], generator_loss(judge(times, generator(times, game.batch,
                                                            first + game.batch))))  # fmt: skip
        if watch is not None:
            watch(step, -float(loss.detach()))
        if step >= game.iterations // 2:
            counted += 1
            _average(mean, generator, counted)
    return mean


def _optimiser(player: Generator | Discriminator, rate: float, game: Game) -> torch.optim.Optimizer:
    first = list(player.initial.parameters())
    ids = set(map(id, first))
    rest = [p for p in player.parameters() if id(p) not in ids]
    groups = [{"params": first, "lr": rate * game.faster}, {"params": rest, "lr": rate}]
    return torch.optim.Adadelta(groups, rate, weight_decay=game.decay)


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


@torch.no_grad()
def _average(mean: nn.Module, player: nn.Module, counted: int) -> None:
    for kept, new in zip(mean.parameters(), player.parameters(), strict=True):
        kept.lerp_(new, 1 / counted)
