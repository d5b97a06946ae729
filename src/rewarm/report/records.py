"""Run records: what the report knows of a run, read from its folder, and runs that are seeds of one arm."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rewarm.checks import parse_tokens
from rewarm.config import SIDES
from rewarm.errors import DataError, UserError
from rewarm.rundir import RunFolder

Values = NDArray[np.float64]

COLUMNS = ("step", "tokens", "lr", "train/loss", "loss_scale", "skipped", "upstream/loss", "downstream/loss")
CURVE_POINTS = 400
"""A drawn curve has about this many points at most; its first, last, highest and lowest are always among them."""
DENSE = 64
"""Points at the start of a curve that are never thinned: there the loss moves fastest."""


def read_columns(path: Path) -> dict[str, Values]:
    """Return the columns of a `metrics.jsonl` in order of steps, each step once; NaN where a line has no value.

    The whole file goes through Arrow's parser. Where a killed process left half a line, line after line is read,
    and what cannot be is passed over.
    """
    from pyarrow import json as arrow_json

    content = path.read_bytes() if path.is_file() else b""
    if not content.strip():
        return {name: np.empty(0) for name in COLUMNS}
    schema = pa.schema([(name, pa.float64()) for name in COLUMNS])
    try:
        table = arrow_json.read_json(
            BytesIO(content),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=max(len(content), 1)),
            parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        columns = {name: table[name].to_numpy().astype(np.float64) for name in COLUMNS}
    except pa.ArrowInvalid:
        columns = _read_lines(content)
    # Of a step that was logged twice the later line counts: np.unique finds the first of the reversed.
    steps = columns["step"][::-1]
    _, first = np.unique(steps, return_index=True)
    kept = len(steps) - 1 - first[np.isfinite(steps[first])]
    return {name: values[kept] for name, values in columns.items()}


def _read_lines(content: bytes) -> dict[str, Values]:
    rows = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
            rows.append([math.nan if row.get(name) is None else float(row[name]) for name in COLUMNS])
        except (ValueError, TypeError, AttributeError):
            continue
    table = np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS))
    return {name: table[:, i] for i, name in enumerate(COLUMNS)}


@dataclass(frozen=True)
class Run:
    """One run: its config as plain values, and its curves."""

    name: str
    path: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    """None while the run has not finished."""
    columns: Mapping[str, Values]

    def curve(self, key: str) -> tuple[Values, Values]:
        """Return tokens and values where `key` has been logged and is finite."""
        values = self.columns[key]
        there = np.isfinite(values)
        return self.columns["tokens"][there], values[there]

    def loss(self, side: str) -> tuple[Values, Values]:
        """Return tokens and loss, nats a token, of one side."""
        return self.curve(f"{side}/loss")

    @property
    def seed(self) -> int:
        """Return the seed."""
        return int(self.config["seed"])

    @cached_property
    def horizon(self) -> int:
        """Return the horizon in tokens."""
        config = self.config
        name = "budget" if config.get("horizon") is None else "horizon"
        return parse_tokens(name, config[name])

    @property
    def warmup_tokens(self) -> float:
        """Return the tokens after which the warm-up ends."""
        return float(self.config["warmup"]) * self.horizon

    @property
    def rewarmed(self) -> bool:
        """Return whether the LR rises above that of the end of pre-training and then decays along a cosine."""
        config = self.config
        schedule = config["schedule"]["name"]
        return schedule in ("cosine", "cosine_neox") and config["max_lr"] > 1.01 * config["model"]["final_lr"]

    @property
    def constant(self) -> bool:
        """Return whether the run stays at the LR at which pre-training ended."""
        config = self.config
        return config["schedule"]["name"] == "constant" and math.isclose(
            config["max_lr"], config["model"]["final_lr"], rel_tol=0.01
        )

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Return everything that makes a run's numbers but its seed and its budget, as flat plain values."""
        c, data = self.config, self.config["data"]
        return {
            "max_lr": float(c["max_lr"]),
            "min_lr_ratio": float(c["min_lr_ratio"]),
            "warmup": float(c["warmup"]),
            "horizon": self.horizon,
            "replay": float(c["replay"]),
            "init": c["init"],
            "schedule": {key: value for key, value in c["schedule"].items() if value is not None},
            "train": data["train"],
            "data": [data["upstream"], data["downstream"], data["tokenizer"]],
            "model": {key: value for key, value in c["model"].items() if key not in ("init", "earlier")},
            "optimizer": c["optimizer"],
            "batch": [c["train"]["batch_size"], c["train"]["context"]],
        }


def key_of(recipe: Mapping[str, Any], *without: str) -> str:
    """Return what identifies a recipe when `without` are left out of sight."""
    return json.dumps({k: v for k, v in recipe.items() if k not in without}, sort_keys=True, default=str)


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone, in order of it."""

    runs: tuple[Run, ...]

    @property
    def one(self) -> Run:
        """Return the first run; what all have in common can be read from it."""
        return self.runs[0]

    @property
    def name(self) -> str:
        """Return the arm's name: as configured, or the run's folder without the seed."""
        return str(self.one.config["arm"]["name"] or self.one.name.split(",seed=")[0])

    @cached_property
    def setting(self) -> str:
        """Return what runs must share to be compared at all: model, data pair, horizon and batch."""
        return key_of(self.one.recipe, "max_lr", "min_lr_ratio", "warmup", "replay", "init", "schedule", "train")

    def grid(self, side: str) -> tuple[Values, NDArray[np.float64]]:
        """Return the tokens at which every seed was scored, and the losses there, of shape (seeds, points)."""
        curves = [run.loss(side) for run in self.runs]
        tokens = curves[0][0]
        for other, _ in curves[1:]:
            tokens = np.intersect1d(tokens, other)
        losses = [values[np.isin(at, tokens)] for at, values in curves]
        return tokens, np.array(losses, dtype=np.float64).reshape(len(curves), len(tokens))

    def at(self, side: str, tokens: float) -> dict[int, float]:
        """Return the loss of one side after `tokens` by seed, on the straight line between two evaluations."""
        curves = {run.seed: run.loss(side) for run in self.runs}
        return {seed: float(np.interp(tokens, *curve)) for seed, curve in curves.items() if curve[0].size}

    @property
    def tokens(self) -> float:
        """Return the tokens that every seed has been trained on."""
        return min((run.loss("upstream")[0][-1] for run in self.runs if run.loss("upstream")[0].size), default=0.0)


def thin(tokens: Values, values: Values) -> tuple[Values, Values]:
    """Return about `CURVE_POINTS` points of a curve, its extremes and its dense beginning among them."""
    n = len(tokens)
    if n <= CURVE_POINTS:
        return tokens, values
    kept = np.unique(
        np.concatenate(
            [
                np.arange(min(DENSE, n)),
                np.linspace(0, n - 1, CURVE_POINTS - DENSE).round().astype(np.int64),
                [int(values.argmax()), int(values.argmin())],
            ]
        )
    )
    return tokens[kept], values[kept]


def load_run(path: Path, name: str | None = None) -> Run:
    """Return the record of the run in `path`."""
    folder = RunFolder(path)
    config = folder.read_config()
    try:
        run = Run(
            name or path.name,
            path,
            config,
            folder.read_manifest(),
            folder.read_summary(),
            read_columns(path / "metrics.jsonl"),
        )
        assert run.recipe
    except (KeyError, TypeError, UserError) as error:
        raise DataError(f"{path / 'config.yaml'}: is not the config of a run ({error})") from error
    return run


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the run folders at or under `paths`, in order. Raises `UserError` where one of them holds none."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give a run's folder or a sweep's")
        here = sorted(config.parent for config in path.rglob("config.yaml") if "checkpoints" not in config.parts)
        here = [run for run in here if (run / "metrics.jsonl").is_file()]
        if not here:
            raise UserError(f"{path}: holds no run with metrics; give a run's folder or a sweep's")
        found += [run for run in here if run not in found]
    return found


def load(paths: Sequence[Path]) -> list[Run]:
    """Return the records of all runs at or under `paths` that have been scored at least once."""
    runs = [load_run(path) for path in find_runs(paths)]
    return [run for run in runs if all(run.loss(side)[0].size for side in SIDES)]


def arms_of(runs: Iterable[Run]) -> list[Arm]:
    """Return the arms of `runs`; of two runs of one arm with the same seed the longer one counts."""
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        seeds = groups.setdefault(key_of(run.recipe), {})
        if run.seed not in seeds or seeds[run.seed].columns["tokens"][-1] < run.columns["tokens"][-1]:
            seeds[run.seed] = run
    return [Arm(tuple(seeds[seed] for seed in sorted(seeds))) for seeds in groups.values()]


def settings_of(arms: Iterable[Arm]) -> list[list[Arm]]:
    """Return the arms in groups that can be compared, the largest first."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.setting, []).append(arm)
    return sorted(groups.values(), key=len, reverse=True)
