"""What a run came to: the figures of `summary.json` and the closing table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SIDES = ("upstream", "downstream")


def _curve(rows: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(row["tokens"], row[key]) for row in rows if key in row and math.isfinite(row[key])]


def summarize(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the summary of a run's metrics: start, peak and final loss (nats a token) of both sides."""
    speeds = [r["tokens_per_second"] for r in rows if math.isfinite(r.get("tokens_per_second", math.nan))]
    summary: dict[str, Any] = {
        "steps": int(rows[-1]["step"]),
        "tokens": int(rows[-1]["tokens"]),
        "tokens_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "skipped": int(max((r["skipped"] for r in rows if "skipped" in r), default=0)),
    }
    for side in SIDES:
        change = "forgetting" if side == "upstream" else "change"
        curve = _curve(rows, f"{side}/loss")
        if not curve:  # no evaluation was ever finite
            summary[side] = dict.fromkeys(("start", "peak", "peak_tokens", "final", change))
            continue
        peak_tokens, peak = max(curve, key=lambda point: point[1])
        summary[side] = {
            "start": curve[0][1],
            "peak": peak,
            "peak_tokens": int(peak_tokens),
            "final": curve[-1][1],
            change: curve[-1][1] - curve[0][1],
        }
    return summary


def table(path: Path, summary: Mapping[str, Any]) -> str:
    """Return the closing table: perplexity before, at the peak and at the end, and what to do next."""
    lines = ["", f"{'perplexity':<12}{'before':>10}{'peak':>10}{'end':>10}"]
    for side in SIDES:
        figures = summary[side]
        losses = (figures[key] for key in ("start", "peak", "final"))
        cells = "".join(f"{'-' if loss is None else f'{math.exp(min(loss, 700)):.3f}':>10}" for loss in losses)
        lines.append(f"{side:<12}{cells}")
    speed = summary["tokens_per_second"]
    lines.append(f"{summary['tokens']:,} tokens" + (f" at {speed:,.0f} tokens/s" if speed else ""))
    lines.append(f"run folder: {path}")
    lines.append(f"next: rewarm eval init={path}")
    return "\n".join(lines) + "\n"
