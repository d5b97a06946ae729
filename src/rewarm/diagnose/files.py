"""What the files around a run tell of it: the run it goes on from, tokenizer, text and weights, runs beside it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rewarm.config.differences import differing
from rewarm.config.schema import SIDES
from rewarm.data.layout import completed_tokens
from rewarm.errors import RewarmError
from rewarm.runs import checkpoint
from rewarm.runs.run import Run, is_run, open_run
from rewarm.runs.words import quoted_path, words_like
from rewarm.storage import cache_dir

EMBEDDINGS = ("embed_in.weight", "embed_tokens.weight", "wte.weight", "word_embeddings.weight")
"""How the names of input embeddings end, in GPT-NeoX, Llama and its like, GPT-2, and Bloom and Falcon."""


@dataclass(frozen=True)
class Files:
    """Empty where there is nothing to tell."""

    before: Mapping[str, float] = field(default_factory=dict)
    """By side, the last loss of the run that this one goes on from, at the checkpoint that it starts with."""
    differs: tuple[str, ...] = ()
    """What of the settings that a loss depends on is not what it was there."""
    begins_with: str | None = None
    """The token that the start checkpoint's tokenizer puts before every text."""
    epochs: float | None = None
    """How often the text that is trained on was read; None where its length is not known."""
    frozen: str | None = None
    """Name of an input embedding that has not changed though other weights have."""
    same_data: float | None = None
    """How far the old data's loss rose in a run beside this one that differs by training on the old data alone."""
    same_data_command: str = ""
    """The command for such a run, where there is none."""


def look(run: Run) -> Files:
    """Return What the files around a run of ours tell."""
    start = Path(run.manifest.init.folder) if run.manifest.init and run.manifest.init.folder else None
    before = _predecessor(start)
    same = _same_data(run)
    return Files(
        before=_losses_before(run, before),
        differs=_differs(run, before) if before else (),
        begins_with=_begin_token(start) if start else None,
        epochs=_epochs(run),
        frozen=_frozen(start, run),
        same_data=same,
        same_data_command=_same_data_command(run) if same is None else "",
    )


def _predecessor(start: Path | None) -> Run | None:
    folder = checkpoint.run_of(start) if start else None
    try:
        return open_run(folder) if folder is not None and is_run(folder) else None
    except RewarmError:
        return None  # what is damaged there is no evidence here


def _losses_before(run: Run, before: Run | None) -> dict[str, float]:
    """Return the losses of a run at the checkpoint that another one starts with, of text that both score."""
    found: dict[str, float] = {}
    if before is None or run.manifest.init is None:
        return found
    for side in SIDES:
        if run.config.data.source(side) == before.config.data.source(side):
            steps, losses = before.loss(side, against="step")
            found.update((side, float(loss)) for loss in losses[steps == run.manifest.init.step])
    return found


def _differs(run: Run, before: Run) -> tuple[str, ...]:
    pairs: dict[str, tuple[Any, Any]] = {
        "tokenizer": (before.manifest.data.get("tokenizer"), run.manifest.data.get("tokenizer")),
        "train.context": (before.config.train.context, run.config.train.context),
        "data.validation_tokens": (before.config.data.validation_tokens, run.config.data.validation_tokens),
        "data.text_field": (before.config.data.text_field, run.config.data.text_field),
    }
    told = {key: "another" if key == "tokenizer" else f"{was} -> {now}" for key, (was, now) in pairs.items()}
    return tuple(f"{key}: {told[key]}" for key, (was, now) in pairs.items() if was != now)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _begin_token(start: Path) -> str | None:
    """Return the token that a tokenizer begins texts with, by its own config or the template of its fast file."""
    config = _json(start / "tokenizer_config.json")
    if config.get("add_bos_token") is True:
        token = config.get("bos_token")
        return str(token.get("content") if isinstance(token, dict) else token)
    processor = _json(start / "tokenizer.json").get("post_processor") or {}
    steps = processor.get("processors", [processor])
    first: dict[str, Any] = next(
        (step["single"][0] for step in steps if step.get("type") == "TemplateProcessing"), {}
    )
    token = first.get("SpecialToken", {}).get("id")
    return None if token is None else str(token)


def _epochs(run: Run) -> float | None:
    digest = run.manifest.data.get(run.config.data.train, "")
    stored = completed_tokens(cache_dir() / "stores" / digest) if digest else None
    read = max(run.trained, 0) * run.plan.tokens_per_step * (1 - run.config.replay)
    return read / stored if stored else None


def _frozen(start: Path | None, run: Run) -> str | None:
    """Return the input embedding that is the same in the start checkpoint and the last one, where others are not."""
    last = run.checkpoints[-1:]
    files = [folder / "model.safetensors" for folder in (start, *map(run.checkpoint, last)) if folder is not None]
    if len(files) < 2 or not all(file.is_file() for file in files):
        return None
    from safetensors import safe_open

    with safe_open(files[0], framework="pt") as old, safe_open(files[1], framework="pt") as new:
        names = set(old.keys()) & set(new.keys())
        # Rounding to the type of the file is no training.
        same = {n for n in names if old.get_tensor(n).float().equal(new.get_tensor(n).float())}
    kept = sorted(name for name in same if name.endswith(EMBEDDINGS))
    return kept[0] if kept and same != names else None


def _same_data(run: Run) -> float | None:
    if run.config.data.train == "upstream":
        return None
    for path in sorted(run.path.resolve().parent.iterdir()):
        if path.resolve() == run.path.resolve() or not is_run(path):
            continue
        try:
            other = open_run(path)
            keys = differing(run.config, other.config).keys()
        except RewarmError:
            continue  # what is damaged, or of another size altogether
        if "data.train" in keys and keys <= {"data.train", "replay"} and other.finished:
            losses = other.loss("upstream")[1]
            return float(losses[-1] - losses[0]) if len(losses) and np.isfinite(losses).all() else None
    return None


def _same_data_command(run: Run) -> str:
    words = [*words_like(run, ("data.train", "replay")), "data.train=upstream"]
    words += [f"seed={run.seed}"] if run.seed else []
    folder = quoted_path(run.path.parent / f"{run.name}-same-data")
    return "rewarm train " + shlex.join([*words, f"run_dir={folder}"])
