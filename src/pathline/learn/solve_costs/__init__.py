"""What a solve costs, as a number that can be trained.

The price of a neural differential equation is the number of steps that an adaptive solver takes,
and training drifts towards fields that are expensive. Each of these solves a field and returns its
solution with a differentiable cost, to be added to the loss:

    made = Heuristics().solve(f, x, solver=AdaptiveRK(method="tsit5"), grid=(0.0, 1.0))
    loss = task(made.solution.x) + Decay(10.0, 1.0, 400)(step) * made.cost
"""

from pathline.learn.solve_costs.baselines import Plain, RandomEnd, Taylor
from pathline.learn.solve_costs.cost import Costed, Decay, Estimate, SolveCost
from pathline.learn.solve_costs.heuristics import Heuristics
from pathline.learn.solve_costs.local import Local

__all__ = [
    "Costed",
    "Decay",
    "Estimate",
    "Heuristics",
    "Local",
    "Plain",
    "RandomEnd",
    "SolveCost",
    "Taylor",
]
