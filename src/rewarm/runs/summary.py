"""What a run came to: the figures of `summary.json`, the metrics of re-warming, and the closing table.

All losses are nats a token, all positions are tokens trained on. `start` is the loss before the first update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rewarm.config.schema import SIDES
from rewarm.runs.metrics import Metrics, Values
from rewarm.text import marked


def crossing(tokens: Values, loss: Values, level: float, after: int) -> float | None:
    """Return where the straight lines between the points from index `after` on first fall to `level`; None: never."""
    below = np.flatnonzero(loss[after:] <= level)
    if not below.size:
        return None
    i = after + int(below[0])
    if i == after:
        return float(tokens[i])
    share = (loss[i - 1] - level) / (loss[i - 1] - loss[i])
    return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))


def rewarming(tokens: Values, loss: Values) -> dict[str, float | None]:
    """Return the metrics of re-warming of one side's curve; it needs at least one point.

    peak, peak_tokens: the highest loss, and where. gap_height: how far that lies above the start, the height of the
    stability gap (Lange et al. 2022). recovered_tokens: where the loss is back at its start after the peak, None
    where it never is. gap_length: the tokens from where the loss first left its start until then.
    area: the loss integrated over tokens, nats x tokens.
    """
    start = float(loss[0])
    top = int(loss.argmax())
    height = float(loss[top]) - start
    recovered = crossing(tokens, loss, start, top) if height > 0 else None
    left = float(tokens[max(int(np.flatnonzero(loss > start)[0]) - 1, 0)]) if height > 0 else 0.0
    return {
        "start": start,
        "peak": float(loss[top]),
        "peak_tokens": int(tokens[top]),
        "final": float(loss[-1]),
        "gap_height": height,
        "recovered_tokens": recovered,
        "gap_length": recovered - left if recovered is not None else None,
        "area": float(np.trapezoid(loss, tokens)),
    }


EMPTY = dict.fromkeys(
    ("start", "peak", "peak_tokens", "final", "gap_height", "recovered_tokens", "gap_length", "area")
)
"""What a side looks like that was never scored with a finite loss."""


def best_stop(metrics: Metrics) -> dict[str, float] | None:
    """Return where the sum of both losses was lowest: the early-stopping optimum. None where neither was scored."""
    losses = [metrics[f"{side}/loss"] for side in SIDES]
    total = np.where(np.isfinite(sum(losses)), sum(losses), math.inf)
    if not np.isfinite(total).any():
        return None
    best = int(total.argmin())
    found = {side: float(values[best]) for side, values in zip(SIDES, losses, strict=True)}
    return {"tokens": int(metrics["tokens"][best]), **found}


def summarize(metrics: Metrics) -> dict[str, Any]:
    """Return the summary of a run's metrics: both sides' metrics of re-warming, and what they mean together.

    gain_per_loss: nats gained downstream for each nat lost upstream by the end; None where none was lost.
    """
    _, speeds = metrics.curve("tokens_per_second")
    _, skipped = metrics.curve("skipped")
    sides: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        tokens, loss = metrics.curve(f"{side}/loss")
        sides[side] = rewarming(tokens, loss) if loss.size else dict(EMPTY)
        change = float(loss[-1] - loss[0]) if loss.size else None
        sides[side]["forgetting" if side == "upstream" else "change"] = change
    sides["upstream"]["peak_forgetting"] = sides["upstream"]["gap_height"]
    lost, change = sides["upstream"]["forgetting"], sides["downstream"]["change"]
    return {
        "steps": max(metrics.steps.tolist(), default=0),
        "tokens": int(metrics["tokens"].max(initial=0)),
        "tokens_per_second": float(np.sort(speeds)[len(speeds) // 2]) if speeds.size else None,
        "skipped": int(skipped.max()) if skipped.size else 0,
        **sides,
        "gain_per_loss": -change / lost if lost is not None and change is not None and lost > 0 else None,
        "best_stop": best_stop(metrics),
    }


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _values(scores: object) -> list[object]:
    """Return the values of a mapping; a thing that is none is returned as it is."""
    return list(scores.values()) if isinstance(scores, dict) else [scores]


def fault_of(summary: Mapping[str, Any]) -> str | None:
    """Return what keeps a mapping from being a summary; None where it is one."""
    for side in SIDES:
        figures = summary.get(side)
        if not isinstance(figures, dict) or not {"start", "peak", "final"} <= figures.keys():
            return f"it has no figures of {side}"
        if wrong := [key for key, value in figures.items() if not _is_number(value)]:
            return f"{side}.{wrong[0]} is no number"
    if wrong := [key for key in ("steps", "tokens", "tokens_per_second") if not _is_number(summary.get(key))]:
        return f"{wrong[0]} is no number"
    stop, tasks = summary.get("best_stop"), summary.get("tasks", {})
    if stop is not None and not (isinstance(stop, dict) and "tokens" in stop and all(map(_is_number, stop.values()))):
        return "best_stop holds no tokens"
    by_task = [tasks] if not isinstance(tasks, dict) else [s for scores in tasks.values() for s in _values(scores)]
    if not all(isinstance(scores, dict) and all(map(_is_number, scores.values())) for scores in by_task):
        return "tasks holds no scores by task"
    return None


def table(path: Path, summary: Mapping[str, Any], early_stop: str | None = None, *, proxy: bool = False) -> str:
    """Return the closing table: perplexity before, at the peak and at the end, and what to do next.

    `early_stop` says where on its curve the run ended, if not at the end; `proxy` is as in `marked`.
    """
    width = 18 if proxy else 12
    lines = ["", f"{'perplexity':<{width}}{'before':>10}{'peak':>10}{'end':>10}"]
    for side in SIDES:
        losses = [summary[side][key] for key in ("start", "peak", "final")]
        cells = "".join("         -" if loss is None else f"{math.exp(min(loss, 700)):>10.3f}" for loss in losses)
        lines.append(f"{marked(side, proxy=proxy):<{width}}{cells}")
    speed = summary["tokens_per_second"]
    lines.append(f"{summary['tokens']:,} tokens" + (f" at {speed:,.0f} tokens/s" if speed else ""))
    lines += [early_stop] if early_stop else []
    lines.append(f"run folder: {path}")
    lines.append(f"next: rewarm report {path}")
    return "\n".join(lines) + "\n"
