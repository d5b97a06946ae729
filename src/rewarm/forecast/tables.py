"""Curves that another trainer logged: one CSV file a run, with its mistakes found before anything is fitted.

Columns: `step` or `tokens` (or both), `lr`, and one or more losses in nats a token, any order; names are told apart
from their usual variants. A cell may be empty: trainers log the LR more often than they validate.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rewarm.errors import UserError
from rewarm.forecast.curves import FEWEST_POINTS, Curve, Trajectory
from rewarm.forecast.history import Array

log = logging.getLogger(__name__)

NAMES = {
    "step": {"step", "steps", "iteration", "iterations", "iter", "globalstep", "trainstep", "update", "updates"},
    "tokens": {"tokens", "token", "consumedtokens", "tokensseen", "trainedtokens", "numtokens", "totaltokens"},
    "lr": {"lr", "learningrate", "trainlr", "trainlearningrate"},
    "replay": {"replay"},
}
GRID = 10_000
"""Updates that a file is cut into where it gives tokens alone, and nothing says how many make an update."""
HIGHEST_LOSS = 20.0
"""In nats a token. A uniform guess over a vocabulary of 10^8 has less."""
HIGHEST_LR = 1.0
WIDE_GAP = 0.2
"""Share of the run without any row from which on it is worth a line."""


@dataclass(frozen=True)
class Logged:
    """What a file says about itself that its columns do not: all of it optional."""

    tokens_per_step: float | None = None
    start_lr: float | None = None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _role(column: str) -> str:
    """Return what a column holds: step, tokens, lr, replay, the name of a validation set, or nothing."""
    plain = _plain(column)
    for role, names in NAMES.items():
        if plain in names:
            return role
    words = [word for word in re.split(r"[^a-z0-9]+", column.lower()) if word]
    if not {"loss", "ppl", "perplexity"} & set(words) and plain not in ("upstream", "downstream"):
        return ""
    ignored = {"loss", "ppl", "perplexity", "val", "valid", "validation", "eval", "lm"}
    return "_".join(word for word in words if word not in ignored) or "loss"


def _number(path: Path, line: int, column: str, text: str) -> float:
    """Return the number in a cell, NaN for an empty one or one that says so."""
    text = text.replace("_", "")
    if text.lower() in ("", "nan", "null", "none", "na", "n/a"):
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{path}:{line}: {column}={text}: is not a number") from None


def _read(path: Path) -> dict[str, Array]:
    """Return the columns of a file that mean something, by role."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    rows = list(csv.reader(text.splitlines(), delimiter=delimiter))
    if len(rows) < 2:
        raise UserError(f"{path}: has no rows; give a header line and one line for each logged step")
    names = [name.strip() for name in rows[0]]
    columns: dict[str, Array] = {}
    sources: dict[str, str] = {}
    for i, name in enumerate(names):
        role = _role(name)
        if not role:
            continue
        cells = [(number, row) for number, row in enumerate(rows[1:], 2) if any(cell.strip() for cell in row)]
        texts = [row[i].strip() if i < len(row) else "" for _, row in cells]
        values = np.array([_number(path, line, name, text) for (line, _), text in zip(cells, texts, strict=True)])
        broken = sum(1 for text, value in zip(texts, values, strict=True) if text and not math.isfinite(value))
        if broken:
            what = "losses of " if role not in NAMES else "values of "
            log.warning("%s: %d %s%s are not numbers, left out", path, broken, what, name)
            values[~np.isfinite(values)] = np.nan
        if {"ppl", "perplexity"} & set(re.split(r"[^a-z0-9]+", name.lower())):
            if role in columns:
                continue  # its loss stands beside it
            values = np.log(np.where(values > 0, values, np.nan))
        elif role in columns and "ppl" not in sources[role] and "perplexity" not in sources[role]:
            raise UserError(f"{path}: the columns {sources[role]} and {name} both read as {role}; rename one")
        columns[role], sources[role] = values, name
    if len(columns.keys() - NAMES.keys()) > 1:
        columns.pop("train", None)  # what is trained on says nothing about forgetting
        columns.pop("training", None)
    given = ", ".join(names)
    if "lr" not in columns:
        raise UserError(f"{path}: has no column lr; name the learning rate so (columns: {given})")
    if "step" not in columns and "tokens" not in columns:
        raise UserError(f"{path}: has neither a column step nor tokens; name one so (columns: {given})")
    if not columns.keys() - NAMES.keys():
        raise UserError(f"{path}: has no loss; name one for example upstream_loss (columns: {given})")
    return columns


def _check_units(path: Path, columns: dict[str, Array], logged: Logged) -> None:
    lr = columns["lr"][np.isfinite(columns["lr"])]
    if len(lr) == 0 or lr.max() <= 0:
        raise UserError(f"{path}: lr is never above 0; log the rate that the optimizer uses")
    if lr.min() < 0:
        raise UserError(f"{path}: lr={lr.min():g}: is below 0")
    if lr.max() > HIGHEST_LR:
        raise UserError(
            f"{path}: lr={lr.max():g}: is above 1, so its unit must be another; log the rate itself (3e-4)"
        )
    for name in columns.keys() - NAMES.keys():
        loss = columns[name][np.isfinite(columns[name])]
        if len(loss) and loss.max() > HIGHEST_LOSS:
            raise UserError(
                f"{path}: {name} loss of {loss.max():g}: looks like a perplexity; "
                f"name the column {name}_ppl, or log nats a token"
            )
        if len(loss) and loss.min() <= 0:
            raise UserError(f"{path}: {name} loss of {loss.min():g}: must be above 0, in nats a token")
    for name in ("step", "tokens"):
        if name in columns and np.nanmin(columns[name]) < 0:
            raise UserError(f"{path}: {name}={np.nanmin(columns[name]):g}: is below 0")
    if "replay" in columns and not (np.nanmin(columns["replay"]) >= 0 and np.nanmax(columns["replay"]) < 1):
        raise UserError(
            f"{path}: replay={np.nanmax(columns['replay']):g}: is a share of every batch, in 0..1, below 1"
        )
    if "tokens" in columns:
        most = np.nanmax(columns["tokens"])
        fewest = np.nanmax(columns["step"]) if "step" in columns else 1e5
        if most < fewest:
            raise UserError(
                f"{path}: tokens up to {most:g}: looks like millions or billions of them; log the number itself"
            )
    elif logged.tokens_per_step is None:
        log.warning("%s: gives steps but no tokens: axes are in steps; give tokens_per_step=… for tokens", path)


def _positions(path: Path, columns: dict[str, Array], logged: Logged) -> tuple[Array, float]:
    """Return the step of each row, and the tokens of a step."""
    if "tokens" not in columns:
        return columns["step"], logged.tokens_per_step or 1.0
    tokens = columns["tokens"]
    if logged.tokens_per_step is not None:
        return tokens / logged.tokens_per_step, logged.tokens_per_step
    if "step" not in columns:
        tokens_per_step = float(np.nanmax(tokens)) / GRID
        return tokens / tokens_per_step, tokens_per_step
    ratio = (tokens / np.where(columns["step"] > 0, columns["step"], np.nan))[columns["step"] > 0]
    tokens_per_step = float(np.nanmedian(ratio))
    if np.nanmax(np.abs(ratio / tokens_per_step - 1)) > 0.02:
        log.warning(
            "%s: the tokens of a step change along the run; steps of %.4g tokens stand for it", path, tokens_per_step
        )
    return tokens / tokens_per_step, tokens_per_step


def _in_order(path: Path, at: Array, columns: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Return the rows by rising step, each step once: of one logged twice, the later row's values."""
    placed = np.isfinite(at)
    if not placed.all():
        log.warning("%s: %d rows without a step or tokens are left out", path, int((~placed).sum()))
    at, columns = at[placed], {name: values[placed] for name, values in columns.items()}
    if (np.diff(at) < 0).any():
        log.warning("%s: rows are not in order of steps; sorted", path)
    order = np.argsort(at, kind="stable")
    at, columns = at[order], {name: values[order] for name, values in columns.items()}
    places, inverse = np.unique(at, return_inverse=True)
    merged = {name: np.full(len(places), np.nan) for name in columns}
    for name, values in columns.items():
        known = np.isfinite(values)
        merged[name][inverse[known]] = values[known]
    gaps = np.diff(places)
    if len(gaps) and gaps.max() > WIDE_GAP * places[-1]:
        i = int(gaps.argmax())
        log.warning(
            "%s: no rows between steps %.6g and %.6g; the LR there is taken as linear", path, places[i], places[i + 1]
        )
    return places, merged


def warmup_of(lr: Array) -> int:
    """Return how many updates an LR rises for at its start: 0 where it starts near its maximum."""
    top = int(np.argmax(lr >= 0.999 * lr.max()))
    return top + 1 if lr[0] < 0.5 * lr.max() else 0


def read_csv(path: Path, logged: Logged) -> Curve:
    """Return the curve in a CSV file. Raises `UserError`, naming file, value and fix, for what cannot be meant."""
    columns = _read(path)
    _check_units(path, columns, logged)
    at, tokens_per_step = _positions(path, columns, logged)
    places, columns = _in_order(path, at, columns)
    known = np.isfinite(columns["lr"])
    updates = np.arange(1, max(2, round(places[-1])) + 1)
    lr = np.interp(updates, places[known], columns["lr"][known])
    losses = {}
    for name in sorted(columns.keys() - NAMES.keys()):
        measured = np.isfinite(columns[name])
        if measured.sum() < FEWEST_POINTS:
            log.warning("%s: %s has fewer than %d losses, left out", path, name, FEWEST_POINTS)
            continue
        losses[name] = (np.round(places[measured]).astype(int), columns[name][measured])
    if not losses:
        raise UserError(f"{path}: has fewer than {FEWEST_POINTS} losses in every column; log more evaluations")
    replay = columns["replay"][np.isfinite(columns["replay"])] if "replay" in columns else np.zeros(1)
    trajectory = Trajectory(
        lr=lr,
        tokens_per_step=tokens_per_step,
        start_lr=logged.start_lr if logged.start_lr is not None else float(lr[0]),
        warmup_steps=warmup_of(lr),
        replay=float(replay.mean()) if len(replay) else 0.0,
    )
    return Curve(path.stem, str(path), trajectory, losses, planned_steps=len(lr))
