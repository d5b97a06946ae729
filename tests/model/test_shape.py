"""Parameters, windows and FLOPs of a shape: counted from a config alone, and equal to what transformers builds."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from rewarm.data.tokenizers import ASSETS
from rewarm.model.shape import FAMILIES, Family, Shape, shape_from

SIZES = {
    "vocab_size": 72,
    "hidden_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "gpt_neox": [{"num_key_value_heads": None, "attention_bias": False}, {"num_key_value_heads": 6}],
    "llama": [{"attention_bias": True, "mlp_bias": True, "head_dim": 12}, {"tie_word_embeddings": True}],
    "mistral": [{"sliding_window": None, "head_dim": 16}, {}],
    "qwen2": [{"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}],
    "qwen3": [{"attention_bias": True, "head_dim": 8}, {"use_sliding_window": True, "max_window_layers": 2}],
    "gemma": [{"head_dim": 8}],
    "gemma2": [{"head_dim": 8, "sliding_window": 5, "tie_word_embeddings": False}],
    "gemma3_text": [{"head_dim": 8, "sliding_window": 5, "sliding_window_pattern": 3}, {"head_dim": 8}],
    "olmo": [{"attention_bias": True}],
    "olmo2": [{"attention_bias": True, "num_key_value_heads": None}],
}
PUBLISHED = sorted(path.relative_to(ASSETS / "models").as_posix() for path in (ASSETS / "models").glob("*/*"))


def built(config: dict[str, Any]) -> Any:
    """Return transformers' own model of a config, without memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


def check(config: dict[str, Any]) -> None:
    shape, model = shape_from(config), built(config)
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    layers = getattr(model.config, "layer_types", None) or []
    if config["model_type"] == "mistral" and model.config.sliding_window:
        layers = ["sliding_attention"] * shape.layers
    assert shape.windowed_layers == list(layers).count("sliding_attention")
    assert shape.window == (model.config.sliding_window if shape.windowed_layers else 0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_known_type_is_counted_to_the_last_parameter(kind: str) -> None:
    for options in OPTIONS[kind]:
        check({"model_type": kind} | SIZES | options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_counted_to_the_last_parameter(name: str) -> None:
    check(json.loads((ASSETS / "models" / name / "config.json").read_text()))


def test_flops_of_a_token_are_those_of_the_formula() -> None:
    neox = Family(gated=False, norm_parameters=2)
    shape = Shape(
        50_304, 1024, 24, 4096, 16, 16, 64, family=neox, attention_bias=True, feed_forward_bias=True
    )  # Pythia-410M
    assert shape.blocks == 302_311_424
    assert shape.flops(2048) == 6 * (302_311_424 + 50_304 * 1024) + 12 * 24 * 1024 * 2048


def test_a_window_shortens_what_a_token_looks_at_and_query_heads_do_what_key_heads_do_not() -> None:
    shape = Shape(100, 8, 3, 16, heads=4, key_value_heads=1, head_size=4, windowed_layers=2, window=10)
    products = 6 * (shape.blocks + 100 * 8)
    assert shape.flops(10) == products + 12 * 16 * 3 * 10
    assert shape.flops(30) == products + 12 * 16 * (30 + 2 * 10)


@pytest.mark.parametrize("config", [{}, {"model_type": "mixtral"}, {"model_type": "llama", "hidden_size": 8}])
def test_what_is_not_known_has_no_shape(config: dict[str, Any]) -> None:
    assert shape_from(config) is None
