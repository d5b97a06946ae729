"""What a run came to: the figures of `summary.json`, the metrics of re-warming, and the closing table.

All losses are nats a token, all positions are tokens trained on. `start` is the loss before the first update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarm.config import SIDES

Values = NDArray[np.float64]


def _curve(rows: Sequence[Mapping[str, float]], key: str) -> tuple[Values, Values]:
    """Return tokens and values of the rows in which `key` is finite."""
    points = [(row["tokens"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
    tokens, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return tokens, values


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


def best_stop(rows: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """Return where the sum of both losses was lowest: the early-stopping optimum. None where neither was scored."""
    scored = [row for row in rows if all(math.isfinite(row.get(f"{side}/loss", math.nan)) for side in SIDES)]
    if not scored:
        return None
    best = min(scored, key=lambda row: sum(row[f"{side}/loss"] for side in SIDES))
    return {"tokens": int(best["tokens"]), **{side: best[f"{side}/loss"] for side in SIDES}}


def summarize(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the summary of a run's metrics: both sides' metrics of re-warming, and what they mean together.

    gain_per_loss: nats gained downstream for each nat lost upstream by the end; None where none was lost.
    """
    speeds = [r["tokens_per_second"] for r in rows if math.isfinite(r.get("tokens_per_second", math.nan))]
    sides: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        tokens, loss = _curve(rows, f"{side}/loss")
        sides[side] = rewarming(tokens, loss) if loss.size else dict(EMPTY)
        change = float(loss[-1] - loss[0]) if loss.size else None
        sides[side]["forgetting" if side == "upstream" else "change"] = change
    sides["upstream"]["peak_forgetting"] = sides["upstream"]["gap_height"]
    lost, change = sides["upstream"]["forgetting"], sides["downstream"]["change"]
    return {
        "steps": int(rows[-1]["step"]),
        "tokens": int(rows[-1]["tokens"]),
        "tokens_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "skipped": int(max((r["skipped"] for r in rows if "skipped" in r), default=0)),
        **sides,
        "gain_per_loss": -change / lost if lost is not None and change is not None and lost > 0 else None,
        "best_stop": best_stop(rows),
    }


def table(path: Path, summary: Mapping[str, Any]) -> str:
    """Return the closing table: perplexity before, at the peak and at the end, and what to do next."""
    lines = ["", f"{'perplexity':<12}{'before':>10}{'peak':>10}{'end':>10}"]
    for side in SIDES:
        losses = [summary[side][key] for key in ("start", "peak", "final")]
        cells = "".join("         -" if loss is None else f"{math.exp(min(loss, 700)):>10.3f}" for loss in losses)
        lines.append(f"{side:<12}{cells}")
    speed = summary["tokens_per_second"]
    lines.append(f"{summary['tokens']:,} tokens" + (f" at {speed:,.0f} tokens/s" if speed else ""))
    lines.append(f"run folder: {path}")
    lines.append(f"next: rewarm report {path}")
    return "\n".join(lines) + "\n"
