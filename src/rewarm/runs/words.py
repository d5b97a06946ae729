"""The words behind `rewarm train` that make a run like one that was made: with its data, its start and its model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from rewarm.config.command_line import CommandLine, parse
from rewarm.config.compose import from_hydra
from rewarm.config.differences import differing, flat
from rewarm.config.schema import Config
from rewarm.config.values import quoted
from rewarm.errors import RewarmError
from rewarm.runs.run import Run

ITS_OWN = (
    "run_dir",
    "seed",
    "seeds",
    "experiment",
    "arm",
    "dry_run",
    "extend",
    "allow_lost_metrics",
    "sweep",
    "fork",
    "hydra",
)
"""Keys and groups that make a run the one that it is, or say how it was started."""
RECIPE = ("schedule", "max_lr", "min_lr_ratio", "warmup", "budget", "horizon", "stop", "replay")
"""Keys and groups that a recipe gives."""
ANY_BUDGET = 10**10
"""Tokens that are some steps, whatever the default step is."""


def own_words(run: Run) -> list[str]:
    """Return the words that a run was started with, after `rewarm train`; none where its manifest has them not."""
    argv = [str(word) for word in run.manifest.other.get("argv") or []]
    words = shlex.split(argv[0]) + argv[1:] if argv else []
    return words[words.index("train") + 1 :] if "train" in words[:2] else []


def own_command(run: Run) -> str:
    """Return the command that a run was started with; nothing where its manifest has it not."""
    words = own_words(run)
    return "rewarm train " + shlex.join(words) if words else ""


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def _among(key: str, keys: Sequence[str]) -> bool:
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in keys)


def words_like(run: Run, free: Sequence[str] = RECIPE) -> list[str]:
    """Return the words that make a run like this one, but for its own keys and those of `free`.

    They are the words that it was started with, and whatever else its config has that they do not give.
    """
    try:
        line = parse(own_words(run))
    except RewarmError:  # a folder or a file that is gone
        line = CommandLine(())
    kept = tuple(word for word in line.overrides if not _among(_key(word), (*ITS_OWN, *free)))
    folders = tuple(folder for folder in line.folders if folder.is_dir())
    values: dict[str, Any] = {key: getattr(run.config, key) for key in free if hasattr(run.config, key)}
    line = CommandLine(kept, folders)
    budget = f"budget={run.config.budget}"
    composed = _composed(line, budget)
    if composed is None:  # words of another version, or that lead to what is gone: its config says it all
        kept, line = (), CommandLine((), folders)
        composed = _composed(line, budget) or _composed(line, f"budget={ANY_BUDGET}")
    assert composed is not None, "the defaults alone are a config"
    alone = _composed(line)
    values |= {"seed": run.config.seed, "budget": run.config.budget}
    found = differing(replace(composed, **values), run.config)
    there = flat(asdict(run.config))
    more = [
        f"++{key}={quoted(was)}" if key in there else f"~{key}"
        for key, (_, was) in found.items()
        if not _among(key, free)
    ]
    if not _among("budget", free) and (alone is None or alone.budget != run.config.budget):
        more.append(budget)
    return [*(f"--config-dir={folder}" for folder in folders), *kept, *more]


def _composed(line: CommandLine, *more: str) -> Config | None:
    """Return the config of these words and some more; None where they have a mistake."""
    try:
        return from_hydra(line.compose("run_dir=unused", *more))
    except RewarmError:
        return None


def sweep_words(runs: Sequence[Run]) -> list[str] | None:
    """Return the words of the sweep that has these runs, but for its seeds; None where they are not all of one."""
    begun = own_words(runs[0])
    if "-m" in begun or "--multirun" in begun:  # of a version whose runs had the words of their sweep
        return None if any(word.startswith(("seed=", "seeds=")) for word in begun) else begun
    given = [{_key(word): word for word in parse(own_words(run)).overrides} for run in runs]
    if not all(given):
        return None
    own = ("run_dir", "seed", "seeds", "fork")
    keys = [key for key in dict.fromkeys(key for words in given for key in words) if not _among(key, own)]
    if not all(key in words for words in given for key in keys):
        return None
    values = {key: list(dict.fromkeys(words[key].partition("=")[2] for words in given)) for key in keys}
    several = {key: found for key, found in values.items() if len(found) > 1}
    combined = {tuple(words[key].partition("=")[2] for key in several) for words in given}
    if not several or set(product(*several.values())) != combined:
        return None
    folders = {run.path.parent for run in runs}
    if len(folders) > 1:
        return None
    places = [f"--config-dir={folder}" for folder in parse(own_words(runs[0])).folders]
    swept = [f"{given[0][key].partition('=')[0]}={','.join(found)}" for key, found in values.items()]
    return ["-m", *places, *swept, f"run_dir={quoted_path(folders.pop())}"]


def experiment_words(run: Run, experiment: str) -> list[str]:
    """Return the words that run an experiment on the data, the model and the start of a run, beside it."""
    words = words_like(run, (*RECIPE, "data.train"))
    words += [word for word in own_words(run) if _key(word) == "budget"]
    return ["-m", *words, f"experiment={experiment}", f"run_dir={quoted_path(run.path.parent)}", "seeds=3"]


def quoted_path(path: Path) -> str:
    """Return a path as Hydra takes it, as it is where nothing in it needs quotes."""
    text = str(path)
    return quoted(text) if set(text) & set(",=()[]{}' \"\\:") else text
