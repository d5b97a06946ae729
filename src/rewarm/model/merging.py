"""Averages of checkpoints: on the line between two models, over the last part of a run, over several runs.

An average of checkpoints theta_0 … theta_k of one run, with weights c_0 … c_k that sum to 1, is the model to which
every update between theta_(j-1) and theta_j has counted with the share c_j + … + c_k. A schedule that decays to 0
gives each update a share too, so that each shape of a decay is a set of weights (WSM, arXiv 2507.17634).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rewarm.errors import CheckpointError, UserError, first_line
from rewarm.runs import checkpoint
from rewarm.storage import fsync_dir, load_object, sealed, storing, write_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 1_000_000_000
"""A larger average is written as several files, of which one is held in memory."""
AREAS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "linear": lambda x: x - x**2 / 2,
    "1-sqrt": lambda x: x - 2 / 3 * x**1.5,
    "cosine": lambda x: x / 2 + np.sin(np.pi * x) / (2 * np.pi),
}
"""The area under each shape of a decay from 1 to 0, from its beginning to the share x of its length."""
SHAPES = ("mean", *AREAS)


@dataclass(frozen=True)
class Part:
    """A model in an average."""

    name: str
    """As it was asked for."""
    folder: Path
    weight: float


def decay_weights(steps: Sequence[int], shape: str) -> list[float]:
    """Return the weight of each checkpoint whose average is a decay of `shape` from the first step to the last one.

    Updates between two checkpoints count with the mean of the shape there; `mean` weighs all checkpoints alike.
    """
    if shape == "mean":
        return [1 / len(steps)] * len(steps)
    at = (np.array(steps, dtype=np.float64) - steps[0]) / (steps[-1] - steps[0])
    shares = np.concatenate([[1.0], np.diff(AREAS[shape](at)) / np.diff(at), [0.0]])
    return [float(weight) for weight in -np.diff(shares)]


def _files(part: Part) -> dict[str, Path]:
    """Return the file of each tensor of a model, by its name. Raises `CheckpointError` where there are none."""
    single, index = part.folder / WEIGHTS, part.folder / INDEX
    try:
        if index.is_file():
            names = json.loads(index.read_text())["weight_map"]
            return {name: part.folder / str(file) for name, file in names.items()}
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{part.name}: has no weights in safetensors ({first_line(error)})") from error


def _json(folder: Path, name: str) -> dict[str, Any]:
    return load_object(folder / name) or {}


def check_alike(parts: Sequence[Part]) -> None:
    """Raise `UserError` where models cannot be averaged: of other types or sizes, or with other tokenizers."""
    first = parts[0]
    config, words = _json(first.folder, "config.json"), _json(first.folder, "tokenizer.json").get("model")
    for part in parts[1:]:
        other = _json(part.folder, "config.json")
        for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
            if config.get(key) != other.get(key):
                what = "an extended vocabulary: " if key == "vocab_size" else ""
                raise UserError(
                    f"{part.name}: cannot be averaged with {first.name}: {what}its {key} is {other.get(key)}, "
                    f"and there it is {config.get(key)}"
                )
        theirs = _json(part.folder, "tokenizer.json").get("model")
        if words and theirs and words != theirs:
            raise UserError(f"{part.name}: has another tokenizer than {first.name}: their weights mean other tokens")


def average(parts: Sequence[Part], tick: Callable[[], object] = lambda: None) -> Callable[[str], Tensor]:
    """Return a function from the name of a tensor to its average, in FP32; what is read is read then.

    What is equal in all models, or not floating point, is taken as the last of them has it. Raises `CheckpointError`
    for a tensor that one of them lacks, or that has another shape there. `tick` is called for each tensor.
    """
    files = [_files(part) for part in parts]
    for part, there in zip(parts, files, strict=True):
        if missing := sorted(set().union(*files) - there.keys()):
            raise CheckpointError(f"{part.name}: lacks {missing[0]}, which another of the models has")

    def merged(name: str) -> Tensor:
        tensors: list[Tensor] = []
        with ExitStack() as open_files:
            for there in files:
                file = open_files.enter_context(safe_open(there[name], framework="pt"))
                tensors.append(file.get_tensor(name))
        for part, tensor in zip(parts, tensors, strict=True):
            if tensor.shape != tensors[0].shape:
                shapes = f"{list(tensor.shape)}, and {list(tensors[0].shape)} in {parts[0].name}"
                raise CheckpointError(f"{part.name}: {name} is of the shape {shapes}")
        tick()
        last = tensors[-1]
        if not last.is_floating_point():
            return last
        if all(torch.equal(tensor, last) for tensor in tensors):
            return last.float()
        total = torch.zeros(last.shape, dtype=torch.float32)
        for part, tensor in zip(parts, tensors, strict=True):
            if part.weight:
                total += part.weight * tensor.float()
        return total

    return merged


def count(part: Part) -> int:
    """Return the number of tensors of a model."""
    return len(_files(part))


def check_free(target: Path) -> None:
    """Raise `UserError` where something lies where an average is to be written."""
    if target.exists():
        raise UserError(f"{target}: is there already; remove it, or give another output=…")


def write(parts: Sequence[Part], target: Path, tick: Callable[[], object] = lambda: None) -> None:
    """Write the average as a folder in Hugging Face's format: FP32 weights, config, tokenizer, and its parts.

    Needs the memory of one file of it and of one tensor of each model. Until all is written there is no `target`.
    Raises `StorageError` where the disk is full, `UserError` where `target` is there already.
    """
    check_free(target)
    merged, names = average(parts, tick), sorted(_files(parts[-1]))
    aside = target.with_name(f".{target.name}.tmp")
    try:
        with storing(target):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            _write_weights(names, merged, aside)
            last = parts[-1].folder
            for path in sorted(last.glob("*.json")):
                if path.name not in (INDEX, checkpoint.MANIFEST):
                    shutil.copyfile(path, aside / path.name)
            for path in aside.glob("*.safetensors"):
                shutil.copymode(aside / "config.json", path)  # safetensors lets only the owner read
            config = {key: v for key, v in _json(last, "config.json").items() if key != "torch_dtype"}
            write_json(aside / "config.json", config | {"dtype": "float32"})
            made_of = [
                {"init": part.name, "weight": part.weight, "identity": checkpoint.identity(part.folder)}
                for part in parts
            ]
            write_json(aside / checkpoint.MANIFEST, sealed({"format": 1, "merged": made_of}))
            aside.rename(target)
            fsync_dir(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _write_weights(names: Sequence[str], merged: Callable[[str], Tensor], folder: Path) -> None:
    """Write tensors into files of at most `SHARD_BYTES` or one tensor, with an index where there are several."""
    shards: list[dict[str, Path]] = []
    held: dict[str, Tensor] = {}

    def flush() -> None:
        path = folder / f"shard-{len(shards)}"
        try:
            save_file(held, path, metadata={"format": "pt"})
        except SafetensorError as error:  # what it makes of an error of the disk
            raise OSError(None, first_line(error)) from error
        shards.append(dict.fromkeys(held, path))
        held.clear()

    total = 0
    for name in names:
        tensor = merged(name).contiguous()
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > SHARD_BYTES:
            flush()
        held[name] = tensor
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        next(iter(shards[0].values())).rename(folder / WEIGHTS)
        return
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        next(iter(shard.values())).rename(folder / file)
        index |= dict.fromkeys(shard, file)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
