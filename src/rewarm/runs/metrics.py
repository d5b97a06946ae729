"""The metrics of a run: `metrics.jsonl` as columns, and which of its lines are damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewarm.errors import DataError

Values = NDArray[np.float64]

MOST_STEPS = 2**53
"""Larger numbers of steps or tokens are no longer exact as floats: they are damage."""


@dataclass(frozen=True)
class Metrics:
    """A run's metrics in order of steps, each step once; NaN where a line has no value."""

    columns: Mapping[str, Values] = field(default_factory=lambda: {"step": np.empty(0), "tokens": np.empty(0)})
    """Columns by name, as in `metrics.jsonl`: step, tokens, lr, train/loss, upstream/loss and so on."""
    damaged: tuple[int, ...] = ()
    """Numbers of the damaged lines, from 1. What they held is left out."""

    def __len__(self) -> int:
        return len(self.columns["step"])

    def __getitem__(self, name: str) -> Values:
        """Return a column; one that no line has is NaN throughout."""
        return self.columns[name] if name in self.columns else np.full(len(self), math.nan)

    def curve(self, name: str, against: str = "tokens") -> tuple[Values, Values]:
        """Return tokens (or another column) and values of the lines in which `name` is finite."""
        values = self[name]
        there = np.isfinite(values)
        return self[against][there], values[there]

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Return the steps that have a line."""
        return self["step"].astype(np.int64)


def _parsed(line: bytes) -> dict[str, float] | None:
    """Return the values of a line, without those that are null; None where it is no line of metrics."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    found = {}
    for key, value in row.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            return None
        try:
            found[key] = math.nan if value is None else float(value)
        except OverflowError:
            return None
    return found if _is_placed(found.get("step"), found.get("tokens")) else None


def _is_placed(step: float | None, tokens: float | None) -> bool:
    """Return whether a line says where in the run it belongs."""
    return all(
        number is not None and math.isfinite(number) and 0 <= number < MOST_STEPS and number == int(number)
        for number in (step, tokens)
    )


def read_lines(content: bytes) -> Iterator[tuple[int, bytes, dict[str, float] | None]]:
    """Yield number, text and values of each line; values are None where a line is damaged.

    What follows the last line end was left unfinished by a process that was killed. It is no damage, and yielded
    only where it is whole.
    """
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        yield number, line, _parsed(line)
    if (values := _parsed(rest)) is not None:
        yield len(lines) + 1, rest, values


def parse(content: bytes) -> Metrics:
    """Return the metrics in the text of a `metrics.jsonl`.

    The whole text goes through Arrow's parser; where that is stopped by damage, it is read line by line.
    """
    columns = _by_arrow(content)
    damaged: tuple[int, ...] = ()
    if columns is None:
        columns, damaged = _by_lines(content)
    # Of a step that was logged twice the later line counts: np.unique finds the first of the reversed.
    steps = columns["step"][::-1]
    _, first = np.unique(steps, return_index=True)
    kept = len(steps) - 1 - first
    return Metrics({name: values[kept] for name, values in columns.items()}, damaged)


def _by_arrow(content: bytes) -> dict[str, Values] | None:
    """Return the columns of a text without damage; None where there may be some."""
    lines = content.count(b"\n")
    # Anything nested is damage, and nested deeply enough it ends the process within Arrow.
    if not (content.endswith(b"\n") and content.isascii()) or content.count(b"{") != lines or b"[" in content:
        return None
    import pyarrow as pa
    from pyarrow import json as arrow_json

    try:
        table = arrow_json.read_json(
            pa.BufferReader(content),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(content)),
            parse_options=arrow_json.ParseOptions(
                explicit_schema=pa.schema([(name, pa.float64()) for name in ("step", "tokens")])
            ),
        )
    except pa.ArrowInvalid:
        return None
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_null)
    if len(table) != lines or not all(any(is_a(f.type) for is_a in kinds) for f in table.schema):
        return None
    # Arrow's own way to NumPy imports pandas, which takes longer than all of this; None becomes NaN.
    columns = {name: np.array(table[name].to_pylist(), dtype=np.float64) for name in table.column_names}
    places = np.stack([columns["step"], columns["tokens"]])
    # NaN and infinity fail the comparisons.
    placed = ((places >= 0) & (places < MOST_STEPS) & (places == np.floor(places))).all()
    return columns if placed else None


def _by_lines(content: bytes) -> tuple[dict[str, Values], tuple[int, ...]]:
    rows, damaged = [], []
    for number, _, values in read_lines(content):
        if values is None:
            damaged.append(number)
        else:
            rows.append(values)
    names = dict.fromkeys(("step", "tokens", *(name for row in rows for name in row)))
    columns = {name: np.array([row.get(name, math.nan) for row in rows], dtype=np.float64) for name in names}
    return columns, tuple(damaged)


def read_content(path: Path) -> bytes:
    """Return what a `metrics.jsonl` holds, nothing where there is none. Raises `DataError` where it is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); put it back from a copy") from error


def read_metrics(path: Path) -> Metrics:
    """Return the metrics in a `metrics.jsonl`, none where there is no such file."""
    return parse(read_content(path))


def numbered(numbers: Sequence[int], one: str, many: str) -> str:
    """Return a few of some numbers in words: `line 7`, `lines 7, 9, 12 and 40 more`."""
    shown, more = numbers[:3], len(numbers) - 3
    listed = ", ".join(f"{number:,}" for number in shown) + (f" and {more:,} more" if more > 0 else "")
    return f"{one if len(numbers) == 1 else many} {listed}"
