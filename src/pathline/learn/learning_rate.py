"""The rate of every step, a function of the recipe and the step's number."""

from __future__ import annotations

import math

from pathline.learn.recipe import Recipe

__all__ = ["learning_rate"]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the rate of a step: a line up to the peak, then drops, or a way down to zero."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    if recipe.drops is not None:
        made = (factor for share, factor in recipe.drops if step >= share * recipe.steps)
        return recipe.rate * math.prod(made)
    if recipe.cooldown is not None:
        return recipe.rate * min(1.0, (recipe.steps - step) / recipe.cooldown)
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.rate * (1 + math.cos(math.pi * done)) / 2
