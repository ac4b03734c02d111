"""Fine-tuning on samples of its own: what `steer.Optimiser` does with a network in Alg. 2.

    L = E ‖F(x_t, t) − (A_t x_0 + B_t ε)‖²   on the newest batch, one step of Adam or a few

The weights move the centre that samples are held to, so the optimum is no longer that of a model
of the first data. Rates are small, for nothing but the optimiser's own samples is learned from.

Paper: Guo et al. 2024 (arXiv:2404.14743), Alg. 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError
from pathline.fields import Field, target
from pathline.fields.denoiser import Denoiser, denoiser_in, null_of, with_network
from pathline.learn.objectives import UniformTimes, drawn_noise, stratified
from pathline.learn.run import step_generator

__all__ = ["FineTuning"]


@dataclass(frozen=True)
class FineTuning:
    """A `Learner`: steps of Adam on score matching of every round's batch.

    Weights and moments are the memory, so a search that is cut short goes on with them.

    Args:
        rate: of Adam.
        steps: of Adam a round.
        repeats: draws of noise and time a sample and step.
        seed: of these.
        cond: keyword arguments of the network; left out, its null condition where it has one.
    """

    rate: float = 1e-6
    steps: int = 1
    repeats: int = 4
    seed: int = 0
    cond: Mapping[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.rate > 0 or self.steps < 1 or self.repeats < 1:
            raise UsageError(
                f"rate={self.rate}, steps={self.steps}, repeats={self.repeats}: the rate is above "
                "0, the others at least 1."
            )

    def begin(self, model: Field) -> Mapping[str, Tensor]:
        """Return the weights, and no moments.

        Raises:
            UsageError: there is no network in the model that could be trained.
        """
        memory = {"steps": torch.zeros((), dtype=torch.float32)}
        for name, weight in self._network(model).named_parameters():
            memory[f"weight/{name}"] = weight.detach().clone()
            for kept in ("exp_avg", "exp_avg_sq"):
                memory[f"{kept}/{name}"] = torch.zeros_like(weight.detach())
        return memory

    def field(self, model: Field, memory: Mapping[str, Tensor]) -> Field:
        """Return the model with the weights in the memory."""
        return with_network(model, self._filled(model, memory).requires_grad_(False))

    def learned(
        self, model: Field, memory: Mapping[str, Tensor], x: Tensor, step: int
    ) -> Mapping[str, Tensor]:
        """Return weights and moments after the batch x, (batch, *state)."""
        network = self._filled(model, memory).requires_grad_()
        tuned = with_network(model, network)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.rate)
        names = dict(network.named_parameters())
        for name, weight in names.items():
            moments = {k: memory[f"{k}/{name}"].clone() for k in ("exp_avg", "exp_avg_sq")}
            optimizer.state[weight] = {"step": memory["steps"].clone(), **moments}
        for k in range(self.steps):
            generator = step_generator(self.seed, step * self.steps + k)
            with torch.inference_mode(False), torch.enable_grad():
                loss = self._loss(tuned, x.repeat_interleave(self.repeats, 0), generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        made = {"steps": memory["steps"] + self.steps}
        for name, weight in names.items():
            made[f"weight/{name}"] = weight.detach()
            for kept in ("exp_avg", "exp_avg_sq"):
                made[f"{kept}/{name}"] = optimizer.state[weight][kept]
        return made

    def _loss(self, model: Field, x: Tensor, generator: torch.Generator) -> Tensor:
        path = model.path
        assert path is not None
        u = UniformTimes().quantile(stratified(len(x), generator))
        t = (path.t_min + (path.t_max - path.t_min) * u).to(x.device)
        eps = drawn_noise(path.kernel, x.shape, generator).to(x)
        told = null_of(model) or {} if self.cond is None else self.cond
        cond = {k: _spread(v, len(x)) for k, v in told.items()}
        said = model.evaluate(path.noised(x, eps, t), t, cond)
        return (said - target(path, model.view, x, eps, t)).square().mean()

    def _filled(self, model: Field, memory: Mapping[str, Tensor]) -> nn.Module:
        """Return a copy of the network with the weights in the memory."""
        network = deepcopy(self._network(model))
        weights = {n: memory[f"weight/{n}"] for n, _ in network.named_parameters()}
        network.load_state_dict(network.state_dict() | weights)
        return network

    def _network(self, model: Field) -> nn.Module:
        denoiser = denoiser_in(model)
        if not isinstance(denoiser, Denoiser) or not isinstance(denoiser.network, nn.Module):
            raise UsageError(
                "FineTuning trains the network of a Denoiser, and this model has none; give a "
                "learner that knows how the model moves."
            )
        return denoiser.network


def _spread(value: Any, batch: int) -> Any:
    """Return a condition of one sample for the whole batch."""
    single = isinstance(value, Tensor) and value.ndim and len(value) == 1
    return value.expand(batch, *value.shape[1:]) if single else value
