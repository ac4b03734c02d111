"""A probe: the gradient of the solver itself for a few samples, beside another one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pathline.solvers.adjoints.checkpoint import Retaken
from pathline.solvers.adjoints.segments import Found, Loop, Record
from pathline.solvers.evaluate import Call, Evaluator

KEPT = 16
"""States of these samples that are kept at a time: a probe of more steps takes some of them again,
and what it keeps does not grow with their number."""


def cosine(found: Found, cotangent: Tensor, gradient: Tensor, n: int) -> float:
    """Return the least cosine of a few samples' gradients and those of the solver itself.

    Args:
        found: a solve from one state, without noise.
        cotangent: the gradient of the loss in the final state, (batch, *state).
        gradient: the one to judge, in the state at the start.
        n: how many samples, the first ones; all, if the field knows no parts of its condition.

    Cost: the solve again, and its checkpointed backward pass, of these samples.
    """
    loop, call = found.loop, found.loop.call
    x = loop.given[0].detach()
    rows = torch.arange(min(n, len(x)))
    cond = call.field.part(call.cond, rows)
    if cond is None:
        rows, cond = torch.arange(len(x)), call.cond
    at = rows.to(x.device)
    part = x[at]
    with torch.no_grad():
        evaluator = Evaluator(call.field, call.plan, part, cond)
        few = Loop(Call(call.field, call.plan, part, cond), (part,), evaluator,
                   loop.executor, Record())  # fmt: skip
        taken = Retaken(Found(few, (), found.keeps_graph, is_all=False), KEPT)
        result = taken.forward()
        (own,), _ = taken.backward(cotangent[at], result)
    own = torch.zeros_like(part) if own is None else own
    both = own.flatten(1).double(), gradient[at].flatten(1).double()
    still = (both[0].norm(dim=1) == 0) & (both[1].norm(dim=1) == 0)  # nothing to compare
    alike = cosine_similarity(*both, dim=1, eps=1e-30)
    return float(torch.where(still, 1.0, alike).min())
