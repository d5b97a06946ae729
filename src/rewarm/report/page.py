"""Writes `index.html`: one file that needs no network. All text reaches the page as JSON and is set as text."""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from rewarm.cache import write_durably
from rewarm.report.charts import Chart
from rewarm.report.claims import CONFIDENCE, MARGIN, Test, Verdict
from rewarm.report.plot import PALETTE
from rewarm.report.records import Run
from rewarm.report.study import Study
from rewarm.report.tables import cell, headings, text

TEMPLATE = Path(__file__).with_name("page.html")
NOTE = (
    f"Each claim is tested on differences of loss in nats a token, one for each seed. A test decides only where the "
    f"{CONFIDENCE:.0%} interval of its mean lies wholly on one side of its threshold; differences under {MARGIN} "
    f"nats count as none."
)


def test_cells(test: Test) -> list[str]:
    """Return a test as the cells of a table: what, mean, interval, threshold, outcome."""
    low, high = test.interval
    interval = f"{low:+.4f} .. {high:+.4f}" if math.isfinite(low) else "one seed" if test.samples else "-"
    mean = f"{test.mean:+.4f}" if test.samples else "-"
    sign = "<" if test.below else ">"
    outcome = {True: "yes", False: "no", None: "open"}[test.holds]
    return [test.what, mean, interval, f"{sign} {test.threshold:g}", outcome]


def effect(verdict: Verdict) -> str:
    """Return in one line what was measured."""
    parts = []
    for test in verdict.tests:
        low, high = test.interval
        around = f" ({low:+.3f} to {high:+.3f})" if math.isfinite(low) else ""
        parts.append(f"{test.what}: {test.mean:+.3f}{around}")
    return "; ".join(parts[:3]) + ("; …" if len(parts) > 3 else "")


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "number": verdict.number,
        "title": verdict.title,
        "claim": verdict.claim,
        "verdict": verdict.verdict,
        "effect": effect(verdict),
        "reason": verdict.reason,
        "command": verdict.command,
        "tests": [test_cells(test) for test in verdict.tests],
        "notes": list(verdict.notes),
        "runs": list(verdict.runs),
    }


def _chart(chart: Chart) -> dict[str, Any]:
    values = asdict(chart)
    for line in values["lines"]:
        for key in ("tokens", "x", "y", "low", "high"):
            line[key] = [float(f"{value:.6g}") for value in line[key]]
    return values


def _table(study: Study) -> dict[str, Any]:
    columns = {key: name for key, name in headings(study.rows).items() if not key.endswith("_sd")}
    return {
        "columns": list(columns.values()),
        "rows": [
            {"texts": [text(key, row) for key in columns], "values": [cell(row, key) for key in columns]}
            for row in study.rows
        ],
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "finished": run.summary is not None,
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
        "manifest": yaml.safe_dump(dict(run.manifest), sort_keys=False, allow_unicode=True) if run.manifest else "",
    }


def page(studies: Sequence[Study], runs: Sequence[Run], forecasts: Sequence[str], refresh: int | None = None) -> str:
    """Return the page; with `refresh` it loads itself again after that many seconds."""
    names = sorted({str(run.config["experiment"]["name"]) for run in runs if run.config["experiment"]["name"]})
    questions = dict.fromkeys(question for run in runs if (question := run.config["experiment"].get("question")))
    unfinished = sum(run.summary is None for run in runs)
    content = {
        "title": "rewarm: " + (", ".join(names) or ", ".join(run.name for run in runs[:3])),
        "subtitle": "".join(f"{question} · " for question in questions)
        + f"{len(runs)} runs"
        + (f", {unfinished} not finished" if unfinished else "")
        + f" · written {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
        "palette": PALETTE,
        "settings": [
            {
                "name": study.name,
                "verdict_note": NOTE,
                "verdicts": [_verdict(verdict) for verdict in study.verdicts],
                "charts": [_chart(chart) for chart in study.charts],
                "table": _table(study),
            }
            for study in studies
        ],
        "forecasts": [base64.b64encode(svg.encode()).decode() for svg in forecasts],
        "runs": [_run(run) for run in runs],
    }
    # Inside a script element only the end tag could be misread; JSON can write any of its characters as an escape.
    safe = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return TEMPLATE.read_text(encoding="utf-8").replace("<!--REFRESH-->", again).replace("/*DATA*/", safe)


def write_page(
    path: Path, studies: Sequence[Study], runs: Sequence[Run], forecasts: Sequence[str], refresh: int | None = None
) -> None:
    """Write the page to `path`; whoever reads it meanwhile sees the old one or the new one, whole."""
    write_durably(path, page(studies, runs, forecasts, refresh).encode())
