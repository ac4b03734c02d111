"""Checkpointing of adaptive solves: the steps that were taken are taken again, with a graph.

Of each attempt of which something was taken the states at its start are kept, and how far it went.
On the way back it is repeated with the same steps, so the gradient is that of the steps themselves
(none flows through their sizes), and attempts that were rejected cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError
from pathline.solvers.adjoints.adjoint import Gradients, Pass, through
from pathline.solvers.adjoints.segments import Totals, Walk, autocast
from pathline.solvers.adjoints.sources import (
    check_steady,
    gradients,
    sources,
    transforms_are_active,
)


def taped(walk: Walk, name: str) -> Tensor:
    """Run an adaptive solve, and return the final state, with a gradient if one is asked for.

    Args:
        walk: the solve.
        name: of the adjoint, for messages.

    Raises:
        UsageError: a solver whose steps cannot be taken again alone.
    """
    solver = walk.course.solver
    alone = solver.is_adaptive and not solver.is_stochastic and solver.view == "velocity"
    if not alone or walk.course.denoises:
        raise UsageError(
            f"adjoint={name!r} takes steps again, and {walk.solver} remembers more than its state: "
            "use adjoint='direct', or an adaptive solver in path time that ends with last='stop'."
        )
    if not torch.is_grad_enabled() or transforms_are_active():
        return walk.run()
    check_steady((walk.field, walk.cond), name)
    t = walk.course.instants[0].to(walk.x.device)
    f = walk.field.bind(t[None], walk.x.detach(), walk.cond)(0, walk.x)
    if not f.requires_grad:
        return walk.run()
    found = sources((walk.field, walk.cond), [f], [walk.x])
    del f
    return through(_Taped(walk, found.tensors, found.keeps_graph), (walk.x,), found.tensors)


class _Taped(Pass):
    """An adaptive solve, differentiated by taking its steps again."""

    def __init__(self, walk: Walk, sources: Sequence[Tensor], keeps_graph: bool) -> None:
        self._walk, self._sources, self._keeps_graph = walk, sources, keeps_graph
        self._mode = autocast(walk.x.device)
        self._tape: list[Any] = []

    def forward(self) -> Tensor:
        self._walk.tally.tape = self._tape
        return self._walk.run()

    def backward(self, cotangent: Tensor, result: Tensor) -> Gradients:
        from pathline.solvers.replay import Replay  # which needs this package

        del result
        replay, totals = Replay(self._walk), Totals(self._sources)
        for took in reversed(self._tape):
            rows = torch.from_numpy(took.rows).to(cotangent.device)
            x = took.x.detach().requires_grad_()
            with torch.enable_grad(), self._mode:
                end = replay(x, took)
            part = cotangent[rows]
            here, *found = gradients([end], [x, *self._sources], [part], self._keeps_graph)
            cotangent = cotangent.index_put(
                (rows,), torch.zeros_like(part) if here is None else here
            )
            totals.add(found)
            self._walk.record.nfe += replay.evaluations
            self._walk.record.vjps += replay.evaluations
        return [cotangent], totals.cast()

    def again(self) -> Tensor:
        raise UsageError(
            "adjoint='checkpoint' of an adaptive solve has no derivatives of its gradient: use "
            "adjoint='direct'."
        )
