"""Curves that another trainer logged: one CSV file a run, with its mistakes found before anything is fitted.

Columns, in any order: `step`, `tokens` or both; `lr`; `replay`; `parameters` of the model without embeddings; and
losses in nats a token, `loss` or `NAME_loss`, or else perplexities, `NAME_ppl`. Other columns are passed over. Cells
may be empty: trainers log the LR more often than they validate. What the columns do not hold may be said in lines
above them, `# schedule=cosine warmup_steps=2160`.
"""

from __future__ import annotations

import io
import logging
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd

from rewarm.errors import UserError, first_line
from rewarm.forecast.curves import FEWEST_POINTS, Curve, Trajectory
from rewarm.forecast.history import Array
from rewarm.forecast.logged_lr import Lines, lr_of_updates
from rewarm.forecast.options import Logged, logged_above

log = logging.getLogger(__name__)

NAMES = ("step", "tokens", "lr", "replay", "parameters")
GRID = 10_000
"""Updates that a file is cut into where it gives tokens alone, and nothing says how many make an update."""
IN_STEPS = 1.0
"""Tokens of an update where nothing tells: then the axes are in steps."""
HIGHEST_LOSS = 20.0
"""In nats a token. A uniform guess over a vocabulary of 10^8 has less."""

Columns = dict[str, Array]
"""By one of `NAMES` or the name of a validation set; NaN for an empty cell."""


def _read(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the cells of a file as text, by column and line, and the lines above the columns."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        above = list(takewhile(lambda line: not line.strip() or line.startswith("#"), lines))
        delimiter = max(",;\t", key="".join(lines[len(above) : len(above) + 1]).count)
        text = io.StringIO("\n".join(lines[len(above) :]))
        table = pd.read_csv(text, sep=delimiter, header=None, dtype=str, skip_blank_lines=False)
    except (OSError, ValueError) as error:  # pandas' errors and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path}: cannot be read as a CSV file ({first_line(error)})") from error
    table = table.apply(lambda cells: cells.str.strip()).replace("", None)
    names, table = table.iloc[0].fillna("").str.lower().str.replace("/", "_"), table.iloc[1:].dropna(how="all")
    if names.duplicated().any():
        raise UserError(f"{path}: two columns are called {names[names.duplicated()].iloc[0]}; rename one")
    if table.empty:
        raise UserError(f"{path}: has no rows; give a header line and one line for each logged step")
    return table.set_axis(names, axis=1).set_axis(table.index + len(above) + 1), above


def _numbers(path: Path, cells: pd.Series[str]) -> Array:
    """Return the numbers of a column. Raises `UserError` for a cell that is none; what is infinite is left out."""
    numbers = pd.to_numeric(cells, errors="coerce")
    wrong = cells[cells.notna() & numbers.isna()]
    if len(wrong):
        raise UserError(f"{path}:{wrong.index[0]}: {cells.name}={wrong.iloc[0]}: is not a number")
    values: Array = numbers.to_numpy(dtype=float, na_value=np.nan)
    if np.isinf(values).any():
        log.warning("%s: %d values of %s are infinite, left out", path, np.isinf(values).sum(), cells.name)
    return np.where(np.isinf(values), np.nan, values)


def _columns(path: Path, table: pd.DataFrame, logged: Logged, *, keeps_train: bool) -> Columns:
    """Return the columns that mean something, a perplexity as a loss."""
    columns = {name: _numbers(path, table[name]) for name in NAMES if name in table}
    for kind in ("ppl", "loss"):  # where both are there, the loss counts
        for column in (c for c in table if c == kind or c.endswith(f"_{kind}")):
            values = _numbers(path, table[column])
            name = column.removesuffix(kind).rstrip("_") or "loss"
            columns[name] = np.log(np.where(values > 0, values, np.nan)) if kind == "ppl" else values
    if len(columns.keys() - NAMES) > 1 and not keeps_train:
        columns.pop("train", None)  # what is trained on says nothing about forgetting
    columns = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    missing = [] if "lr" in columns or logged.schedule or logged.lr_curve else ["lr"]
    missing += [] if columns.keys() & {"step", "tokens"} else ["step or tokens"]
    missing += [] if columns.keys() - NAMES else ["NAME_loss or NAME_ppl"]
    if missing:
        given = ", ".join(filter(None, table.columns))
        how = ", or say `# schedule=… max_lr=…` above the columns" if missing[0] == "lr" else ""
        raise UserError(f"{path}: has no numbers in a column {missing[0]} (columns: {given}); name it so{how}")
    return columns


def _check_units(path: Path, columns: Columns) -> None:
    """Raise `UserError` for values that can only be in another unit."""
    for name, values in columns.items():
        low, high, loss = np.nanmin(values), np.nanmax(values), name not in NAMES
        for wrong, value, why in (
            (low < 0, low, "is below 0"),
            (name == "lr" and high == 0, high, "is never above 0; log the rate that the optimizer uses"),
            (name == "lr" and high > 1, high, "is above 1, so its unit must be another; log the rate itself (3e-4)"),
            (name == "replay" and high >= 1, high, "must be below 1: it is a share of every batch"),
            (loss and high > HIGHEST_LOSS, high, f"looks like a perplexity; name it {name}_ppl, or log nats a token"),
            (loss and low == 0, low, "must be above 0, in nats a token"),
        ):
            if wrong:
                raise UserError(f"{path}: {name}={value:g}: {why}")
    if "tokens" in columns:
        most = float(np.nanmax(columns["tokens"]))
        if most < (np.nanmax(columns["step"]) if "step" in columns else 1e5):
            raise UserError(
                f"{path}: tokens={most:g}: looks like millions or billions of them; log the number itself"
            )


def _steps(path: Path, columns: Columns, tokens_per_step: float | None) -> tuple[Array, float]:
    """Return the step of each row, and the tokens of a step."""
    if "tokens" not in columns:
        return columns["step"], tokens_per_step or IN_STEPS
    tokens = columns["tokens"]
    if tokens_per_step is None and "step" not in columns:
        tokens_per_step = float(np.nanmax(tokens)) / GRID
    elif tokens_per_step is None:
        ratio = (tokens / np.where(columns["step"] > 0, columns["step"], np.nan))[columns["step"] > 0]
        tokens_per_step = float(np.nanmedian(ratio))
        if np.nanmax(np.abs(ratio / tokens_per_step - 1)) > 0.02:
            log.warning(
                "%s: the tokens of a step change along the run; steps of %.4g tokens stand for it",
                path,
                tokens_per_step,
            )
    return tokens / tokens_per_step, tokens_per_step


def _in_order(path: Path, steps: Array, columns: Columns) -> tuple[Array, Columns]:
    """Return the rows by rising step, each step once: of one logged twice, the last value of each column."""
    placed = np.isfinite(steps)
    if not placed.all():
        log.warning("%s: %d rows without a step or tokens are left out", path, int((~placed).sum()))
    if (np.diff(steps[placed]) < 0).any():
        log.warning("%s: rows are not in order of steps; sorted", path)
    rows = pd.DataFrame(columns)[placed].groupby(steps[placed]).last()  # sorts, and passes over empty cells
    return rows.index.to_numpy(dtype=float), {name: rows[name].to_numpy() for name in columns}


def _lines(steps: Array, columns: Columns) -> Lines | None:
    """Return the steps at which an LR was logged, and the LRs; None where none was."""
    known = np.isfinite(columns["lr"]) if "lr" in columns else np.zeros(len(steps), dtype=bool)
    return (steps[known], columns["lr"][known]) if known.any() else None


def _lr_curve(path: Path, tokens_per_step: float) -> Lines | None:
    """Return the lines of a file that tells the LR alone."""
    table, _ = _read(path)
    columns = {name: _numbers(path, table[name]) for name in ("step", "tokens", "lr") if name in table}
    if "lr" not in columns or len(columns) < 2:
        raise UserError(f"lr_curve={path}: needs the columns lr, and step or tokens")
    _check_units(path, {"lr": columns["lr"]})
    steps = columns["step"] if "step" in columns else columns["tokens"] / tokens_per_step
    return _lines(*_in_order(path, steps, {"lr": columns["lr"]}))


def _parameters(path: Path, columns: Columns, logged: Logged) -> float | None:
    """Return the parameters of the model without its embeddings, where anything tells."""
    if "parameters" not in columns:
        return logged.parameters
    low, high = np.nanmin(columns["parameters"]), np.nanmax(columns["parameters"])
    if low <= 0 or high > low:
        raise UserError(f"{path}: parameters={low:g}..{high:g}: must be one number above 0; give each model a file")
    return float(low)


def read_csv(path: Path, logged: Logged, *, keeps_train: bool = False) -> Curve:
    """Return the curve in a CSV file. Raises `UserError`, naming file, value and fix, for what cannot be meant.

    `logged` is what is said of all files; the lines above the columns may say more of this one.
    Beside validation losses a `train_loss` is left out, unless `keeps_train`.
    """
    table, above = _read(path)
    logged = logged_above(path, above, logged)
    columns = _columns(path, table, logged, keeps_train=keeps_train)
    _check_units(path, columns)
    steps, tokens_per_step = _steps(path, columns, logged.tokens_per_step)
    steps, columns = _in_order(path, steps, columns)
    lines = _lines(steps, columns) if logged.lr_curve is None else _lr_curve(logged.lr_curve, tokens_per_step)
    lr, warmup_steps = lr_of_updates(path, logged, lines, max(2, round(steps[-1])))
    losses = {}
    for name in sorted(columns.keys() - NAMES):
        measured = np.isfinite(columns[name])
        if measured.sum() < FEWEST_POINTS:
            log.warning("%s: %s has fewer than %d losses, left out", path, name, FEWEST_POINTS)
            continue
        losses[name] = (np.round(steps[measured]).astype(int), columns[name][measured])
    if not losses:
        raise UserError(f"{path}: has fewer than {FEWEST_POINTS} losses in every column; log more evaluations")
    trajectory = Trajectory(
        lr=lr,
        tokens_per_step=tokens_per_step,
        start_lr=logged.start_lr if logged.start_lr is not None else float(lr[0]),
        warmup_steps=warmup_steps,
        replay=float(np.nanmean(columns.get("replay", np.zeros(1)))),
        parameters=_parameters(path, columns, logged),
    )
    return Curve(path.stem, str(path), trajectory, losses, planned_steps=len(lr))
