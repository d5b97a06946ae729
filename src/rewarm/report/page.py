"""Writes `index.html`: one file that needs no network. All text reaches the page as JSON and is set as text."""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from rewarm.config.schema import SIDES
from rewarm.points import spread_out
from rewarm.report.arms import Arm, thin
from rewarm.report.arms_table import SHORT, cell, headings, text
from rewarm.report.claims import CONFIDENCE, MARGIN, Test, Verdict
from rewarm.report.findings import Study
from rewarm.report.merging import Merged
from rewarm.report.select import is_scratch
from rewarm.report.views import Look, View
from rewarm.runs.folder import config_text, yaml_text
from rewarm.runs.metrics import Values
from rewarm.runs.run import Run
from rewarm.runs.words import own_command
from rewarm.storage import write_durably
from rewarm.style import DARK, PALETTE

ASSETS = Path(__file__).with_name("assets")
DOMAIN_POINTS = 120
"""Points of a domain's curve: there may be many domains."""
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
    names = ("number", "title", "claim", "verdict", "reason", "command", "notes", "runs")
    return {name: getattr(verdict, name) for name in names} | {"tests": [test_cells(test) for test in verdict.tests]}


def _rounded(values: Values) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def _curve(tokens: Values, seeds: Values, ids: Sequence[int]) -> dict[str, Any]:
    """Return a curve as the page has it: tokens, and one row of values for each of the seeds `ids`."""
    return {"tokens": tokens.tolist(), "ids": list(ids), "seeds": [_rounded(row) for row in seeds]}


def _curves(arm: Arm) -> dict[str, Any]:
    """Return the curves of an arm by name: the losses of both sides, their domains', and the learning rate's."""
    run, found = arm.one, {}
    for side in SIDES:
        tokens, losses = arm.grid(side)
        kept = np.isin(tokens, thin(tokens, losses.mean(axis=0))[0])
        found[side] = _curve(tokens[kept], losses[:, kept], [run.seed for run in arm.runs])
        domains = [name for name in run.domains(side) if all(name in other.domains(side) for other in arm.runs)]
        for name in domains if len(domains) > 1 else ():
            tokens, losses = arm.grid(side, name)
            at = spread_out(len(tokens), DOMAIN_POINTS)
            found[f"{side}/{name}"] = _curve(tokens[at], losses[:, at].mean(axis=0, keepdims=True), [run.seed])
    steps = np.arange(1, run.plan.steps + 1, dtype=np.float64)
    tokens, lr = thin(steps * run.plan.tokens_per_step, run.lr)
    shown = tokens <= arm.tokens
    return found | {"lr": _curve(tokens[shown], lr[None, shown], [run.seed])}


def _arm(arm: Arm, look: Look) -> dict[str, Any]:
    return asdict(look) | {"far": is_scratch(arm), "warmup": arm.one.warmup_tokens, "curves": _curves(arm)}


def _view(view: View, place: Mapping[int, int], folder: str | None) -> dict[str, Any]:
    """Return a view; `place` is where an arm stands among all, `folder` where its figures lie, None without any."""
    named = [(what, f"{folder}{name}") for what, name in view.figures.items()] if folder is not None else []
    return {
        "id": view.id,
        "title": view.title,
        "caption": view.caption,
        "arms": [place[id(arm)] for arm in view.arms],
        "details": view.details,
        "files": [(f"{what}.{end}", f"{path}.{end}") for what, path in named for end in ("svg", "png")],
    }


def _table(study: Study) -> dict[str, Any]:
    columns = {key: name for key, name in headings(study.rows).items() if not key.endswith("_sd")}
    return {
        "columns": [
            {"name": name, "more": key in headings(()) and key not in SHORT} for key, name in columns.items()
        ],
        "rows": [
            {"texts": [text(key, row) for key in columns], "values": [cell(row, key) for key in columns]}
            for row in study.rows
        ],
    }


def _setting(study: Study, folder: str | None) -> dict[str, Any]:
    place = {id(arm): i for i, arm in enumerate(study.arms)}
    answer = study.answer
    return {
        "name": study.name,
        "answer": {
            "question": answer.question,
            "said": answer.said,
            "command": answer.command,
            "rows": [outcome.cells() for outcome in answer.outcomes],
        },
        "tokens_per_step": study.arms[0].one.plan.tokens_per_step,
        "arms": [_arm(arm, look) for arm, look in zip(study.arms, study.looks, strict=True)],
        "views": [_view(view, place, folder) for view in study.views],
        "table": _table(study),
        "verdicts": [_verdict(verdict) for verdict in study.verdicts],
        "merged": [_merged(merged) for merged in study.merged],
        "tree": study.tree,
    }


def _merged(merged: Merged) -> dict[str, Any]:
    figure = merged.figure.read_bytes() if merged.figure and merged.figure.is_file() else None
    return {
        "title": merged.title,
        "said": merged.said,
        "rows": [(row.label, *(f"{loss:.4f}" for loss in row.losses)) for row in merged.rows],
        "figure": figure and base64.b64encode(figure).decode(),
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "finished": run.finished,
        "command": own_command(run),
        "config": config_text(run.config),
        "manifest": yaml_text(run.manifest.values()),
        "damage": run.damage,
    }


@dataclass(frozen=True)
class Forecast:
    """What `rewarm forecast` has left beside a report."""

    said: str = ""
    """What it said on the terminal."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """SVG by name."""


def page(studies: Sequence[Study], runs: Sequence[Run], forecast: Forecast, refresh: int | None = None) -> str:
    """Return the page; with `refresh` it loads itself again after that many seconds, and no figures lie beside it."""
    names = sorted({str(run.config.experiment.name) for run in runs if run.config.experiment.name})
    unfinished = sum(not run.finished for run in runs)
    damaged = sum(run.damage is not None for run in runs)
    beside = refresh is None
    content = {
        "title": "rewarm: " + (", ".join(names) or ", ".join(run.name for run in runs[:3])),
        "subtitle": f"{len(runs)} runs"
        + (f", {unfinished} not finished" if unfinished else "")
        + (f", {damaged} with damaged metrics" if damaged else "")
        + f" · {'; '.join(study.name for study in studies)}"
        + f" · written {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
        "palette": PALETTE,
        "dark": DARK,
        "t95": [float(stats.t.ppf(0.5 + CONFIDENCE / 2, n)) for n in range(1, 31)],
        "note": NOTE,
        "proxy": any(study.proxied for study in studies),
        "settings": [
            _setting(study, (f"setting-{i + 1}/" if i else "") if beside else None) for i, study in enumerate(studies)
        ],
        "files": [(name, name) for name in ("summary.csv", "verdicts.json")] if beside else [],
        "forecast": {
            "said": forecast.said,
            "figures": [(name, base64.b64encode(svg.encode()).decode()) for name, svg in forecast.figures.items()],
        },
        "runs": [_run(run) for run in runs],
        "refresh": refresh,
    }
    # Inside a script element only the end tag could be misread; JSON can write any of its characters as an escape.
    safe = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")

    def asset(name: str) -> str:
        return (ASSETS / name).read_text(encoding="utf-8")

    return re.sub(r"\{\{([\w.]+)\}\}", lambda m: safe if m[1] == "data" else asset(m[1]), asset("page.html"))


def write_page(
    path: Path,
    studies: Sequence[Study],
    runs: Sequence[Run],
    forecast: Forecast,
    refresh: int | None = None,
) -> None:
    """Write the page to `path`; whoever reads it meanwhile sees the old one or the new one, whole."""
    write_durably(path, page(studies, runs, forecast, refresh).encode())
