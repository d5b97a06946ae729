from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewarm.commands import dry_run
from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.errors import UserError
from rewarm.model.shape import shape_of
from tests.conftest import make_config
from tests.hub import Hub

PYTHIA = {  # parameters in total and without embeddings, as EleutherAI publishes them
    "14m": (14_067_712, 1_189_888),
    "31m": (30_494_720, 4_739_072),
    "70m": (70_426_624, 18_915_328),
    "160m": (162_322_944, 85_056_000),
    "410m": (405_334_016, 302_311_424),
    "1b": (1_011_781_632, 805_736_448),
    "1.4b": (1_414_647_808, 1_208_602_624),
    "2.8b": (2_775_208_960, 2_517_652_480),
    "6.9b": (6_857_302_016, 6_444_163_072),
    "12b": (11_846_072_320, 11_327_027_200),
}


def describe(config: Config) -> str:
    return dry_run.describe(config, make_plan(config))


@pytest.mark.parametrize("size", list(PYTHIA))
def test_the_sizes_of_pythia_are_those_published(size: str) -> None:
    shape = shape_of(make_config(f"model=pythia-{size}", "init=scratch").model)
    assert shape is not None
    assert (shape.parameters, shape.blocks) == PYTHIA[size]


def test_the_papers_run_is_described_without_a_network(hub: Hub) -> None:
    text = describe(make_config("scale=paper", "train.tokens_per_second=140000"))
    for fact in (
        "405,334,016 parameters",
        "131,296 steps of 2,260,992",
        "0.0003 (step 1,313,",
        "3e-05 (step 131,296,",
        "593.7 GB in the cache",
        "90.4 MB in the cache",
        "4.9 GB each, 2 kept: 9.7 GB",
        "8.1e+20 to train",
        "at 140,000 tokens/s",
        "589.0 hours",
    ):
        assert fact in text
    assert hub.requests == []


PUBLISHED = {  # as their makers' weights have them, counted by transformers
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "gemma-3-1b": 999_885_952,
    "mistral-7b": 7_248_023_552,
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_models_are_described_without_a_network(model: str, hub: Hub) -> None:
    config = make_config(f"model={model}", "model.peak_lr=3e-4", "train.context=2048")
    assert f"{model}: {PUBLISHED[model]:,} parameters" in describe(config)
    assert hub.requests == []


def test_a_model_whose_learning_rate_was_never_published_asks_for_it() -> None:
    with pytest.raises(UserError, match=r"model\.peak_lr: needs a value; give model\.peak_lr="):
        make_config("model=qwen3-8b")


def test_a_model_is_sized_where_its_config_is_at_hand_and_its_type_known(tmp_path: Path) -> None:
    sizes = {"vocab_size": 100, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 16}
    overrides = ("model=hf", "model.peak_lr=1e-3", f"model.id={tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_attention_heads": 2} | sizes))
    # Embedding and output, and in each of two blocks: four matrices of attention, three that are gated, two norms.
    count = 2 * 100 * 8 + 2 * (4 * 8 * 8 + 3 * 8 * 16 + 2 * 8) + 8
    assert f": {count:,} parameters" in describe(make_config(*overrides))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"} | sizes))
    assert "its size is not known before it is loaded" in describe(make_config(*overrides))
    overrides = ("model=hf", "model.peak_lr=1e-3", "model.id=owner/unknown")
    assert "its size is not known before it is loaded" in describe(make_config(*overrides))
