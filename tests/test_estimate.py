from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewarm.estimate import Shape, describe, shape_of
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


@pytest.mark.parametrize("size", list(PYTHIA))
def test_the_sizes_of_pythia_are_those_published(size: str) -> None:
    shape = shape_of(make_config(f"model=pythia-{size}", "init=scratch").model)
    assert shape is not None
    assert (shape.blocks + shape.embeddings, shape.blocks) == PYTHIA[size]


def test_flops_of_a_token_are_those_of_the_formula() -> None:
    shape = Shape(50_304, 1024, 24, 4096)
    assert shape.flops(2048) == 6 * (302_311_424 + 50_304 * 1024) + 12 * 24 * 1024 * 2048


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


def test_a_model_of_another_architecture_is_sized_where_its_config_is_at_hand(tmp_path: Path) -> None:
    config = {"vocab_size": 100, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    overrides = ("model=hf", "model.peak_lr=1e-3")
    assert shape_of(make_config(*overrides, f"model.id={tmp_path}").model) == Shape(100, 8, 2, 16)
    assert "known once it has been downloaded" in describe(make_config(*overrides, "model.id=owner/unknown"))
