"""A study in words and files: the text of the terminal, `forecast.json` and `forecast.csv`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rewarm.forecast.candidates import Candidate
from rewarm.forecast.fit import thin
from rewarm.forecast.history import Steps
from rewarm.forecast.holdout import Errors, mae, r2
from rewarm.forecast.judge import Judgement, unidentified
from rewarm.forecast.recommend import Outcome, Recommendation
from rewarm.forecast.study import Study

CURVE_POINTS = 200
"""Points of a predicted curve in `forecast.csv`."""


@dataclass(frozen=True)
class Findings:
    """Everything that one forecast came to."""

    study: Study
    judgement: Judgement
    predicted: list[Outcome]
    """What was asked for by name."""
    searched: list[Outcome]
    """The grid behind a recommendation."""
    front: list[Outcome]
    recommendation: Recommendation | None
    start: float | None
    """Upstream loss before any update, in nats a token."""


def steps_of(candidate: Candidate) -> Steps:
    """Return the steps at which a candidate's curve is shown, from 0 to its end."""
    return thin(candidate.steps + 1, CURVE_POINTS)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return text columns, the first flush left, the others flush right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _fit_text(study: Study) -> str:
    rows = []
    for name, side in study.sides.items():
        loose = unidentified(side, study.tokens_per_step)
        for parameter, (value, low, high) in side.intervals(study.tokens_per_step).items():
            interval = f"{low:.4g} .. {high:.4g}" if side.replicates else ""
            rows.append(
                (f"{name} {parameter}", f"{value:.4g}", interval, "not identified" if parameter in loose else "")
            )
    quality = [
        (name, f"{r2(side.in_sample):.4f}", f"{mae(side.in_sample):.4f}", f"{side.fit.condition:.2g}")
        for name, side in study.sides.items()
    ]
    return (
        table(("fit", "R2", "MAE (nats)", "condition"), quality)
        + "\n"
        + table(("parameter", "value", "90 % interval", ""), rows)
    )


def _holdout_text(study: Study) -> str:
    rows = [
        (
            e.run,
            e.side,
            f"{e.measured[-1]:.4f}",
            f"{e.predicted[-1]:.4f}",
            f"{100 * e.final:+.2f} %",
            "" if e.naive is None else f"{100 * e.naive:+.2f} %",
            _percent(e.curve),
            _percent(e.warmup),
            "extrapolated" if e.beyond else "",
        )
        for e in sorted(study.held_out, key=lambda e: e.run)
    ]
    if not rows:
        return ""
    header = ("held out", "set", "final", "predicted", "error", "nearest run", "curve error", "in warm-up", "")
    return table(header, rows)


def _forgetting(findings: Findings, outcome: Outcome) -> float | None:
    if findings.start is None or "upstream" not in outcome.sides:
        return None
    return outcome.final("upstream") - findings.start


def _outcome_cells(findings: Findings, outcome: Outcome) -> tuple[str, ...]:
    cells = [f"{b.loss[-1]:.4f} ({b.low[-1]:.3f} .. {b.high[-1]:.3f})" for b in outcome.sides.values()]
    forgotten = _forgetting(findings, outcome)
    beyond = "; ".join(outcome.candidate.beyond)
    return (
        outcome.candidate.label,
        *cells,
        "" if forgotten is None else f"{forgotten:+.4f}",
        f"EXTRAPOLATES: {beyond}" if beyond else "",
    )


def text(findings: Findings) -> str:
    """Return what the terminal shows: the fit, how it did on held-out runs, predictions, and what to distrust."""
    study, sides = findings.study, list(findings.study.sides)
    parts = [f"law {study.law}, fitted to {len(study.fitted)} runs: {', '.join(c.name for c in study.fitted)}\n"]
    if study.tried:
        tried = sorted(study.tried.items(), key=lambda item: item[1])
        parts.append(table(("law", "hold-out error"), [(name, f"{value:.4f}") for name, value in tried]))
    parts += [_fit_text(study), _holdout_text(study)]
    if findings.predicted:
        header = ("predicted", *(f"{side} (90 %)" for side in sides), "forgetting", "")
        parts.append(table(header, [_outcome_cells(findings, o) for o in findings.predicted]))
    if findings.recommendation:
        parts.append(_recommendation_text(findings, findings.recommendation))
    notes = [f"NOT RELIABLE: {fault}\n" for fault in findings.judgement.faults]
    notes += [f"note: {caution}\n" for caution in findings.judgement.cautions]
    parts.append("".join(notes))
    return "\n" + "\n".join(part for part in parts if part)


def _recommendation_text(findings: Findings, advice: Recommendation) -> str:
    if findings.judgement.faults:
        return f"no recommendation ({advice.goal}): the forecast is not reliable, see below\n"
    if advice.chosen is None:
        return f"no recommendation ({advice.goal}): {advice.reason}\n"
    cells = _outcome_cells(findings, advice.chosen)
    lines = [f"recommended ({advice.goal}; {advice.reason}):", f"  rewarm train {overrides(advice.chosen)}"]
    names = [*advice.chosen.sides, "forgetting"]
    lines.append("  predicted " + ", ".join(f"{n} {c}" for n, c in zip(names, cells[1:], strict=False) if c))
    if advice.equals:
        lines.append(f"  {advice.equals} others lie within the error of the forecast")
    if advice.cheapest_equal:
        lines.append(f"  the cheapest of them: {overrides(advice.cheapest_equal)}")
    return "\n".join(lines) + "\n"


def overrides(outcome: Outcome) -> str:
    """Return what to write after `rewarm train` for this candidate."""
    s = outcome.candidate.settings
    parts = [f"schedule={s.schedule}", f"max_lr={s.max_lr:.4g}", f"warmup={s.warmup:.4g}"]
    parts += [f"min_lr_ratio={s.min_lr_ratio:.4g}", f"budget={s.budget}"]
    if s.horizon != s.budget:
        parts.append(f"horizon={s.horizon}")
    if s.replay:
        parts.append(f"replay={s.replay:.4g}")
    return " ".join(parts)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _outcome_json(findings: Findings, outcome: Outcome) -> dict[str, Any]:
    return {
        "label": outcome.candidate.label,
        **asdict(outcome.candidate.settings),
        "overrides": overrides(outcome),
        "sets": {
            side: {"final": float(b.loss[-1]), "low": float(b.low[-1]), "high": float(b.high[-1])}
            for side, b in outcome.sides.items()
        },
        "forgetting": _forgetting(findings, outcome),
        "beyond": list(outcome.candidate.beyond),
    }


def _errors_json(e: Errors) -> dict[str, Any]:
    return {
        "run": e.run,
        "set": e.side,
        "final": float(e.measured[-1]),
        "predicted": float(e.predicted[-1]),
        "error": e.final,
        "naive_error": e.naive,
        "curve_error": e.curve,
        "warmup_error": e.warmup,
        "beyond": list(e.beyond),
    }


def as_json(findings: Findings, figures: Sequence[str]) -> dict[str, Any]:
    """Return the content of `forecast.json`. Errors are shares, losses nats a token."""
    study, advice = findings.study, findings.recommendation
    fitted = {curve.name for curve in study.fitted}
    result: dict[str, Any] = {
        "law": study.law,
        "replay_term": study.replay_term,
        "tried": study.tried,
        "runs": [
            {
                "name": c.name,
                "fitted": c.name in fitted,
                "finished": c.finished,
                "tokens": c.last_step * c.trajectory.tokens_per_step,
                "max_lr": float(c.trajectory.lr.max()),
                "replay": c.trajectory.replay,
            }
            for c in study.curves
        ],
        "tokens_per_step": study.tokens_per_step,
        "sets": {},
        "holdout": [_errors_json(e) for e in study.held_out],
        "start": findings.start,
        "forecasts": [_outcome_json(findings, o) for o in findings.predicted],
        "pareto": [_outcome_json(findings, o) for o in findings.front],
        "recommendation": None,
        "faults": findings.judgement.faults,
        "cautions": findings.judgement.cautions,
        "figures": list(figures),
    }
    for name, side in study.sides.items():
        loose = unidentified(side, study.tokens_per_step)
        result["sets"][name] = {
            "r2": r2(side.in_sample),
            "mae": mae(side.in_sample),
            "condition": _finite(side.fit.condition),
            "spread": side.spread,
            "parameters": {
                p: {"value": value, "low": _finite(low), "high": _finite(high), "identified": p not in loose}
                for p, (value, low, high) in side.intervals(study.tokens_per_step).items()
            },
        }
    if advice:
        shown = advice.chosen if not findings.judgement.faults else None
        result["recommendation"] = {
            "goal": advice.goal,
            "reason": "the forecast is not reliable" if findings.judgement.faults else advice.reason,
            "chosen": _outcome_json(findings, shown) if shown else None,
            "equals": advice.equals,
        }
    return result


def as_csv(findings: Findings) -> str:
    """Return the content of `forecast.csv`: measured and predicted curves, one row for each step and set."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("kind", "curve", "set", "step", "tokens", "lr", "measured", "predicted", "low", "high"))
    study = findings.study
    for kind, found in (
        ("fitted", [e for side in study.sides.values() for e in side.in_sample]),
        ("held out", study.held_out),
    ):
        of = {curve.name: curve.trajectory for curve in study.curves}
        for e in found:
            t = of[e.run]
            for step, measured, predicted in zip(e.steps, e.measured, e.predicted, strict=True):
                lr = t.lr[step - 1] if step else 0.0
                row = (kind, e.run, e.side, step, step * t.tokens_per_step, lr, measured, predicted, "", "")
                writer.writerow([v.item() if isinstance(v, np.generic) else v for v in row])
    for outcome in findings.predicted:
        t = outcome.candidate.trajectory
        steps = steps_of(outcome.candidate)
        for name, side in study.sides.items():
            band = side.predict(t, steps)
            for step, loss, low, high in zip(steps.tolist(), band.loss, band.low, band.high, strict=True):
                lr = float(t.lr[step - 1]) if step else 0.0
                at = (step, step * t.tokens_per_step, lr)
                losses = (float(loss), float(low), float(high))
                writer.writerow(("predicted", outcome.candidate.label, name, *at, "", *losses))
    return out.getvalue()
