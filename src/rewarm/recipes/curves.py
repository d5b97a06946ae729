"""The pieces that learning rates of other trainers are made of, and what is said of what they cannot express.

Shares are of the maximum LR. `done` counts the updates that a trainer's own counter has when it sets the LR: most
trainers set it before the counter moves, so that update `t` gets the LR of `t - 1`, and the first one after a warm-up
from 0 gets 0.
"""

from __future__ import annotations

import numpy as np

from rewarm.recipes.recipe import Array, Recipe

NO_REPLAY = "replay: not expressed here; mix {share:.3g} of {replayed} into the data yourself"
MICRO = "batch: written for one process with one sequence at a time; keep the product with your own numbers of both"
STOP = "the curve is laid out over {total:,} updates and the run stops at {steps:,}: stop it there by hand"


def warmed(done: Array, warmup: int, after: Array) -> Array:
    """Return shares of the maximum LR: a line from 0 that reaches 1 when `warmup` updates are done, then `after`."""
    return np.where(done < warmup, done / max(1, warmup), after)


def decay_left(shape: str, progress: Array) -> Array:
    """Return the share that a decay leaves (1 to 0) after the share `progress` of it; outside 0..1 it is clipped."""
    p = np.clip(progress, 0.0, 1.0)
    left: Array = {"linear": 1 - p, "cosine": (1 + np.cos(np.pi * p)) / 2, "1-sqrt": 1 - np.sqrt(p)}[shape]
    return left


def decayed(recipe: Recipe, done: Array, shape: str) -> Array:
    """Return shares of the maximum LR for a decay of `shape` that ends at the minimum LR with the horizon."""
    start = recipe.spec.total_steps - recipe.decay_steps
    left = decay_left(shape, (done - start) / max(1, recipe.decay_steps))
    return recipe.min_ratio + (1 - recipe.min_ratio) * left


def nearest_family(recipe: Recipe, known: tuple[str, ...]) -> tuple[str, str, list[str]]:
    """Return the family and the decay shape to write out of those that a trainer knows, and notes on what differs.

    Where the trainer has not the family, a cosine stands for it.
    """
    family, notes = recipe.family, []
    if family not in known:
        family = "cosine"
    if recipe.spec.name not in (family, "no_rewarm"):
        notes.append(f"schedule {recipe.spec.name}: has no counterpart; {family} is the nearest")
    decay = recipe.spec.decay_shape if family == "wsd" else family
    return family, decay, notes


def mixture_notes(recipe: Recipe) -> list[str]:
    """Return the note on replay for a trainer whose settings cannot mix data."""
    if recipe.replayed is None:
        return []
    return [NO_REPLAY.format(share=recipe.replay, replayed=recipe.replayed)]


def stop_notes(recipe: Recipe) -> list[str]:
    """Return the note for a trainer that lays its curve out over all updates, where the run stops before."""
    if recipe.steps >= recipe.spec.total_steps or recipe.family == "constant":
        return []
    return [STOP.format(total=recipe.spec.total_steps, steps=recipe.steps)]
