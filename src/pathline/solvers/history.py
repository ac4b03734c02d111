"""What a plan remembers: evaluations of earlier steps, and whether they are of the same field.

A multistep solver puts a polynomial through its last evaluations, and one with a corrector looks
back, too. Guidance that is switched on or off on the way makes another field of the model, and a
polynomial through values of both is of neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from pathline.fields import Field
from pathline.solvers.plan import Plan, told_time


def remembered(plan: Plan) -> Iterator[list[int]]:
    """Yield what each row uses that uses an evaluation from before its step, oldest first."""
    times = plan.instants.reshape(len(plan.times), -1)
    onwards = (times[-1] - times[0]).sign()
    here = len(plan.start) - 1
    for number, row in enumerate(plan.rows, len(plan.start)):
        earlier = [k for k in row.f if k < here]  # a prediction of where the step starts is not
        if any(bool(((times[k] - times[here]) * onwards < 0).any()) for k in earlier):
            yield sorted(row.f)
        here = number if row.lands else here


def warn_of_jumps(field: Field, plan: Plan) -> None:
    """Warn where steps use evaluations from before the field jumped (`Field.piece`)."""
    piece = field.piece(plan.instants)
    if bool((piece == piece[:1]).all()):
        return
    for used in remembered(plan):
        if bool((piece[used] != piece[used[:1]]).any()):
            name = plan.recipe.get("solver", {}).get("name", "this solver")
            warnings.warn(
                f"the guidance is switched on or off between t = {told_time(plan.times[used[0]])} "
                f"and t = {told_time(plan.times[used[-1]])}, and {name} goes on from evaluations "
                "before that, which are of another field. With few steps that costs little; with "
                "many its error falls with order one alone, and dpmpp_2s with a grid point at each "
                "switch keeps its order (so does any solver where guidance is never switched).",
                stacklevel=2,
            )
            return
