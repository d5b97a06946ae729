"""Averages of checkpoints: their weights, what is written, and what cannot be averaged."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rewarm.errors import CheckpointError, RewarmError, StorageError, UserError
from rewarm.model import merging
from rewarm.model.merging import SHAPES, Part, check_alike, decay_weights, write

KINDS = {
    "gpt_neox": {"model_type": "gpt_neox", "tie_word_embeddings": False},
    "llama": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 2},
}


def model(folder: Path, kind: str, seed: int, **more: object) -> Part:
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model(**{"vocab_size": 32, **size, **KINDS[kind], **more})
    torch.manual_seed(seed)
    place = folder / f"{kind}-{seed}"
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return Part(f"{kind}-{seed}", place, 1.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_weights_of_checkpoints_are_those_of_a_decay(shape: str) -> None:
    steps = [100, 110, 130, 160, 200]
    weights = decay_weights(steps, shape)
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    assert all(weight >= 0 for weight in weights)
    shares = np.cumsum(weights[::-1])[::-1][1:]  # of the updates between two checkpoints
    if shape == "mean":
        np.testing.assert_allclose(shares, [0.8, 0.6, 0.4, 0.2])
        return
    curve = {
        "linear": lambda x: 1 - x,
        "1-sqrt": lambda x: 1 - np.sqrt(x),
        "cosine": lambda x: (1 + np.cos(np.pi * x)) / 2,
    }
    for (first, last), share in zip(pairwise(steps), shares, strict=True):
        at = (np.linspace(first, last, 20001)[:-1] + (last - first) / 40000 - 100) / 100
        assert share == pytest.approx(curve[shape](at).mean(), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_is_that_of_all_weights_in_fp32(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, end = model(tmp_path, kind, 0), model(tmp_path, kind, 1)
    half = {name: tensor.bfloat16() for name, tensor in load_file(start.folder / "model.safetensors").items()}
    save_file(half, start.folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(merging, "SHARD_BYTES", 4000)
    parts = [Part("start", start.folder, 0.75), Part("end", end.folder, 0.25)]
    write(parts, tmp_path / "merged")
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 2
    first, last, mean = (
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).state_dict()
        for place in (start.folder, end.folder, tmp_path / "merged")
    )
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.75 * first[name] + 0.25 * last[name], rtol=1e-6, atol=1e-7)
    made_of = json.loads((tmp_path / "merged" / "manifest.json").read_text())["merged"]
    assert [(part["init"], part["weight"]) for part in made_of] == [("start", 0.75), ("end", 0.25)]
    with pytest.raises(UserError, match="is there already"):
        write(parts, tmp_path / "merged")
    # What was written in several files can be averaged again; ends are themselves to the last bit.
    write([Part("merged", tmp_path / "merged", 0.0), Part("end", end.folder, 1.0)], tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in last.items())


def average_of(one: Part, other: Part, target: Path) -> None:
    check_alike([one, other])
    write([one, other], target)


def test_what_cannot_be_averaged_is_refused_in_one_line(tmp_path: Path) -> None:
    one = model(tmp_path / "a", "llama", 0)
    others = {
        "model_type": model(tmp_path / "b", "gpt_neox", 0),
        "an extended vocabulary": model(tmp_path / "c", "llama", 0, vocab_size=40),
        "hidden_size": model(tmp_path / "d", "llama", 0, hidden_size=32),
        "is of the shape": model(tmp_path / "e", "llama", 0, intermediate_size=64),
        "another tokenizer": model(tmp_path / "f", "llama", 0),
        "lacks model.norm.weight": model(tmp_path / "g", "llama", 0),
        "has no weights in safetensors": Part("nothing", tmp_path, 0.5),
    }
    for place, token in ((one.folder, "a"), (others["another tokenizer"].folder, "b")):
        (place / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {token: 0}}}))
    file = others["lacks model.norm.weight"].folder / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != "model.norm.weight"}, file)
    (tmp_path / "config.json").write_text((one.folder / "config.json").read_text())
    for message, other in others.items():
        with pytest.raises(RewarmError, match=message) as said:
            average_of(one, other, tmp_path / "merged")
        assert isinstance(said.value, UserError | CheckpointError)
        assert not list(tmp_path.glob("*merged*")), message


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [model(tmp_path, "llama", 0), model(tmp_path, "llama", 1)]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "save_file", full)
    with pytest.raises(StorageError, match="merged"):
        write(parts, tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))
