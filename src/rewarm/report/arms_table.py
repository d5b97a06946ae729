"""The summary table of a report, one row for each arm: as CSV, as Markdown, and for the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rewarm.config.schema import SIDES
from rewarm.report.arms import Arm
from rewarm.report.views import Look
from rewarm.runs.run import Run
from rewarm.runs.summary import best_stop, rewarming
from rewarm.text import tokens_text

COLUMNS = {
    "arm": "arm",
    "seeds": "seeds",
    "tokens": "tokens",
    "upstream_start": "upstream start",
    "upstream_peak": "upstream peak",
    "upstream_final": "upstream final",
    "forgetting": "forgetting",
    "downstream_start": "downstream start",
    "downstream_peak": "downstream peak",
    "downstream_final": "downstream final",
    "gain_per_loss": "gain per loss",
    "recovered_tokens": "upstream recovered",
    "best_stop_tokens": "best stop",
}
"""Columns by key; losses are nats a token, positions tokens."""
SHORT = ("arm", "seeds", "tokens", "downstream_final", "upstream_peak", "upstream_final", "forgetting")
"""Columns that the page shows at first; tasks' scores are always shown."""
SPREAD = ("upstream_final", "forgetting", "downstream_final")
"""Columns that also have their standard deviation over seeds."""

Row = dict[str, Any]


def _figures(run: Run) -> dict[str, float | None]:
    """Return the figures of one run, from its curves: a run that is still going on has them too."""
    sides = {side: rewarming(*run.loss(side)) for side in SIDES}
    up, down = sides["upstream"], sides["downstream"]
    stop = best_stop(run.metrics)
    lost = (up["final"] or 0.0) - (up["start"] or 0.0)
    gained = (down["start"] or 0.0) - (down["final"] or 0.0)
    return {
        **{f"{side}_{key}": values[key] for side, values in sides.items() for key in ("start", "peak", "final")},
        "forgetting": lost,
        "gain_per_loss": gained / lost if lost > 0 else None,
        "recovered_tokens": up["recovered_tokens"],
        "best_stop_tokens": stop["tokens"] if stop else None,
    }


def _row(label: str, arm: Arm) -> Row:
    figures = [_figures(run) for run in arm.runs]
    row: Row = {"arm": label, "seeds": len(arm.runs), "tokens": int(arm.tokens)}
    for key in COLUMNS:
        if key in row:
            continue
        values = [value for figure in figures if (value := figure[key]) is not None]
        row[key] = fmean(values) if len(values) == len(figures) else None
        if key in SPREAD and len(values) > 1:
            row[f"{key}_sd"] = stdev(values)
    row["tasks"] = _tasks(arm)
    return row


def _tasks(arm: Arm) -> dict[str, float]:
    """Return the mean over seeds of each task's score, where `rewarm eval tasks=…` has put scores into summaries."""
    scores: dict[str, list[float]] = {}
    for run in arm.runs:
        for checkpoint in list(((run.summary or {}).get("tasks") or {}).values())[-1:]:
            for task, metrics in checkpoint.items():
                for metric, value in metrics.items():
                    scores.setdefault(f"{task} {metric}", []).append(value)
    return {name: fmean(values) for name, values in scores.items() if len(values) == len(arm.runs)}


def rows_of(arms: Sequence[Arm], looks: Sequence[Look]) -> list[Row]:
    """Return one row for each arm, the best downstream first."""
    rows = [_row(look.name, arm) for look, arm in zip(looks, arms, strict=True)]
    return sorted(rows, key=lambda row: row["downstream_final"])


def headings(rows: Sequence[Row]) -> dict[str, str]:
    """Return the columns that these rows have, with the heading of each."""
    spread = {f"{key}_sd": f"{COLUMNS[key]} sd" for key in SPREAD if any(f"{key}_sd" in row for row in rows)}
    tasks = {f"task:{name}": name for row in rows for name in row["tasks"]}
    return COLUMNS | spread | tasks


def cell(row: Row, key: str) -> Any:  # noqa: ANN401 - a number, a name or nothing
    """Return one value of a row; None where there is none."""
    return row["tasks"].get(key.removeprefix("task:")) if key.startswith("task:") else row.get(key)


def to_csv(rows: Sequence[Row]) -> str:
    """Return the table as CSV, with all digits; an empty cell where there is no value."""
    columns = headings(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if (value := cell(row, key)) is None else value for key in columns] for row in rows])
    return out.getvalue()


def text(key: str, row: Mapping[str, Any]) -> str:
    """Return one cell as people read it."""
    value = cell(dict(row), key)
    if value is None:
        rose = row["upstream_peak"] > row["upstream_start"]
        return "never" if key == "recovered_tokens" and rose else "-"
    if key in ("tokens", "recovered_tokens", "best_stop_tokens"):
        return tokens_text(value)
    if isinstance(value, float):
        return f"{value:.4f}" + (f" ± {row[f'{key}_sd']:.4f}" if f"{key}_sd" in row else "")
    return str(value)


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    columns = {key: name for key, name in headings(rows).items() if not key.endswith("_sd")}
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(text(key, row).replace("|", "\\|") for key in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"
