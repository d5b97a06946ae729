"""The trainers that a recipe can be written for."""

from __future__ import annotations

import json
from collections.abc import Callable

from rewarm.recipes.huggingface import axolotl, llamafactory, transformers
from rewarm.recipes.megatron import gpt_neox, megatron, nanotron
from rewarm.recipes.pytorch import litgpt, olmo_core, torchtitan
from rewarm.recipes.recipe import Export, Recipe, plain


def as_json(recipe: Recipe) -> Export:
    """Return the recipe itself as JSON, for whatever else is to read it."""
    return Export("rewarm", json.dumps(plain(recipe), indent=1) + "\n", None, comment="")


TRAINERS: dict[str, Callable[[Recipe], Export]] = {
    "transformers": transformers,
    "axolotl": axolotl,
    "llamafactory": llamafactory,
    "torchtitan": torchtitan,
    "olmo-core": olmo_core,
    "gpt-neox": gpt_neox,
    "megatron": megatron,
    "nanotron": nanotron,
    "litgpt": litgpt,
    "json": as_json,
}
