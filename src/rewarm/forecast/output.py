"""A study in words and files: the text of the terminal, `forecast.json` and `forecast.csv`."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rewarm.forecast.averages import Averages
from rewarm.forecast.candidates import Candidate, Settings, settings_of
from rewarm.forecast.coverage import of_usual_start
from rewarm.forecast.fitted import Study
from rewarm.forecast.history import Steps
from rewarm.forecast.holdout import Errors, inside, mae, r2
from rewarm.forecast.judge import POOR_FINAL, Judgement, unidentified
from rewarm.forecast.recommend import Outcome, Recommendation
from rewarm.points import spread_out
from rewarm.runs.run import open_run
from rewarm.runs.words import words_like
from rewarm.text import marked, text_table

CURVE_POINTS = 200
"""Points of a predicted curve in `forecast.csv`."""


@dataclass(frozen=True)
class Findings:
    """Everything that one forecast came to."""

    study: Study
    judgement: Judgement
    predicted: list[Outcome]
    """What was asked for by name."""
    averaged: list[Outcome]
    """Averages of that, those that no other of the same training beats on both losses."""
    withheld: list[Candidate]
    """Of that, what no number is given for."""
    searched: list[Outcome]
    """The grid behind a recommendation."""
    front: list[Outcome]
    recommendation: Recommendation | None
    start: dict[str, float]
    """Losses before any update, in nats a token; empty where there are not both."""
    averages: Averages
    """What was seen of averages of weights."""


def steps_of(candidate: Candidate) -> Steps:
    """Return the steps at which a candidate's curve is shown, from 0 to its end."""
    return spread_out(candidate.steps + 1, CURVE_POINTS)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _fit_text(study: Study) -> str:
    rows = []
    for name, side in study.sides.items():
        loose = unidentified(side, study.tokens_per_step)
        for parameter, (value, low, high) in side.intervals(study.tokens_per_step).items():
            note = "not identified" if parameter in loose else ""
            rows.append((f"{name} {parameter}", f"{value:.4g}", f"{low:.4g} .. {high:.4g}", note))
    quality = [
        (name, f"{r2(side.in_sample):.4f}", f"{mae(side.in_sample):.4f}", f"{side.fit.condition:.2g}")
        for name, side in study.sides.items()
    ]
    fit = text_table(("fit", "R2", "MAE (nats)", "condition"), quality)
    return fit + "\n" + text_table(("parameter", "value", "90 % interval", ""), rows)


def _holdout_text(study: Study) -> str:
    without = "moved" if study.sized else "nearest run"
    header = ("held out", "set", "final", "predicted", "error", without, "curve error", "in warm-up", "")
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
    return text_table(header, rows) if rows else ""


def _forgetting(findings: Findings, finals: Mapping[str, float]) -> float | None:
    if "upstream" not in findings.start:
        return None
    return finals["upstream"] - findings.start["upstream"]


def _change(forgotten: float | None) -> str:
    """Return in words what happens to the old data."""
    if forgotten is None:
        return ""
    return f"; the old data {'loses' if forgotten > 0 else 'gains'} {abs(forgotten):.4f} nats"


def _predicted_text(findings: Findings) -> str:
    header = ("predicted", *(f"{side} (90 %)" for side in findings.study.sides), "forgetting", "")
    rows = []
    for outcome in (*findings.predicted, *findings.averaged):
        forgotten = _forgetting(findings, outcome.finals)
        beyond = "; ".join(outcome.candidate.beyond)
        rows.append(
            (
                outcome.label,
                *(f"{b.loss[-1]:.4f} ({b.low[-1]:.3f} .. {b.high[-1]:.3f})" for b in outcome.sides.values()),
                "" if forgotten is None else f"{forgotten:+.4f}",
                f"EXTRAPOLATES: {beyond}" if beyond else "",
            )
        )
    withheld = "".join(f"no number for {candidate.label}: {candidate.withheld}\n" for candidate in findings.withheld)
    return (text_table(header, rows) if rows else "") + withheld


def text(findings: Findings, *, verbose: bool = False) -> str:
    """Return what the terminal shows: the advice, predictions, how held-out runs were predicted, what to distrust.

    With `verbose` the laws that were tried and the fitted parameters stand below.
    """
    study = findings.study
    parts = [_advice_text(findings, findings.recommendation) if findings.recommendation else ""]
    parts.append(_predicted_text(findings))
    parts.append(f"law {study.law}, fitted to {len(study.fitted)} runs: {', '.join(c.name for c in study.fitted)}\n")
    parts.append(_holdout_text(study))
    if verbose:
        tried = sorted(study.tried.items(), key=lambda item: item[1])
        parts.append(text_table(("law", "hold-out error"), [(n, f"{v:.4f}") for n, v in tried]) if tried else "")
        parts.append(_fit_text(study))
    notes = [f"NOT RELIABLE: {fault}\n" for fault in findings.judgement.faults]
    notes += [f"note: {caution}\n" for caution in findings.judgement.cautions]
    parts.append("".join(notes))
    return marked("\n" + "\n".join(part for part in parts if part), proxy=study.proxied)


def _advice_text(findings: Findings, advice: Recommendation) -> str:
    """Return what is recommended, what it comes to, why, and how far that is to be trusted."""
    lines = []
    if advice.chosen:
        lines.append(f"Recommended ({advice.goal}): {advice.chosen.label}")
        lines += [f"  {line}" for line in commands(findings, advice.chosen)]
        finals = [
            f"{side} {b.loss[-1]:.4f} (90 %: {b.low[-1]:.4f} .. {b.high[-1]:.4f})"
            for side, b in advice.chosen.sides.items()
        ]
        lines.append(f"  predicted  {', '.join(finals)}{_change(_forgetting(findings, advice.chosen.finals))}")
    elif advice.take == "measured" and advice.arm:
        lines.append(f"Recommended ({advice.goal}): {advice.arm.label}, as it was run")
        settings = settings_of(advice.arm.curves[0])
        if advice.arm.average is not None:
            lines.append(f"  {_merge(findings, str(advice.arm.curves[0].path), advice.arm.average.label)}")
        elif settings:
            lines.append(f"  {command(findings, settings)}")
    else:
        lines.append(f"No recommendation ({advice.goal})")
    lines.append(f"  because    {advice.reason}")
    if advice.equals:
        cheapest = advice.cheapest_equal.label if advice.cheapest_equal else ""
        lines.append(
            f"             {advice.equals} others lie within the error of the forecast, {advice.error:.4f} nats"
            + (f"; the cheapest of them: {cheapest}" if cheapest else "")
        )
    if findings.study.held_out:
        lines.append(f"  trust      final losses of held-out runs were missed by {_trust(findings.study)}")
    lines += [f"             held-out averages {line}" for line in _trust_in_averages(findings.averages)]
    if advice.arm:
        finals = [f"{side} {advice.arm.finals[side]:.4f}" for side in findings.study.sides]
        change = _change(_forgetting(findings, advice.arm.finals))
        lines.append(f"  measured   {', '.join(finals)}{change}: {advice.arm.label}, the best arm that was run")
    else:
        lines.append("  measured   no arm that was run to its end keeps to it")
    before = ", ".join(f"{side} {loss:.4f}" for side, loss in findings.start.items())
    lines.append(f"  before     {before}: the model as it was")
    return "\n".join(lines) + "\n"


def _trust(study: Study) -> str:
    """Return the mean errors of held-out final losses beside those of a guess without any law."""

    def errors(of: Callable[[Errors], float | None]) -> str:
        found = {name: [of(e) for e in inside(side.held_out)] for name, side in study.sides.items()}
        means = {name: [abs(value) for value in values if value is not None] for name, values in found.items()}
        return ", ".join(f"{np.mean(values):.2%} {name}" for name, values in means.items() if values)

    how = "moved from the next smaller model" if study.sized else "taken from the nearest run"
    return f"{errors(lambda e: e.final)}; if {how} by {errors(lambda e: e.naive)}"


def command(findings: Findings, settings: Settings) -> str:
    """Return the command that trains with these settings, on the data and from the start that the runs had.

    The settings alone where no run was rewarm's own.
    """
    ours = [curve.path for curve in of_usual_start(findings.study.curves) if curve.path is not None]
    if not ours:
        return overrides(settings)
    return "rewarm train " + shlex.join([*words_like(open_run(ours[0])), *overrides(settings).split()])


RUN = "runs/recommended"
"""Where the commands put a run whose average is advised."""


def commands(findings: Findings, outcome: Outcome) -> list[str]:
    """Return the commands that come to a predicted outcome: the training, and the average of it where it is one."""
    train = command(findings, outcome.candidate.settings)
    if not outcome.average:
        return [train]
    steps = outcome.candidate.steps
    keep = "" if outcome.average.startswith("alpha") else f" checkpoint.keep=0 checkpoint.every={max(1, steps // 20)}"
    return [f"{train}{keep} run_dir={RUN}", _merge(findings, RUN, outcome.average)]


def _merge(findings: Findings, run: str, label: str) -> str:
    """Return the command that keeps an average of a run."""
    if label.startswith("alpha="):
        [start] = {curve.config.init for curve in of_usual_start(findings.study.curves) if curve.config is not None}
        return f"rewarm merge {shlex.join([start, run])} save={label.removeprefix('alpha=')}"
    shape, window = label.split(" ")
    return f"rewarm merge {shlex.quote(run)} window={window} shape={shape} save={shlex.quote(label)}"


def _trust_in_averages(averages: Averages) -> list[str]:
    """Return for each kind that was held out by how much it was missed, and whether it is predicted."""
    called = {"line": "between start and end", "window": "over the last part of a run"}
    return [
        f"{called[kind]} were missed by {averages.error(kind):.2%}"
        + ("" if averages.error(kind) <= POOR_FINAL else ": NOT RELIABLE, none is predicted")
        for kind, missed in averages.held_out.items()
        if missed
    ]


def overrides(settings: Settings) -> str:
    """Return what to write after `rewarm train` for these settings."""
    s = settings
    parts = [f"schedule={s.schedule}", *(f"schedule.{name}={value}" for name, value in s.shape)]
    parts += [f"max_lr={s.max_lr:.4g}", f"warmup={s.warmup:.4g}"]
    parts += [f"min_lr_ratio={s.min_lr_ratio:.4g}", f"budget={s.budget}"]
    if s.stop < s.budget:
        parts.append(f"stop={s.stop}")
    if s.replay:
        parts.append(f"replay={s.replay:.4g}")
    return " ".join(parts)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _outcome_json(findings: Findings, outcome: Outcome) -> dict[str, Any]:
    return {
        "label": outcome.label,
        "average": outcome.average or None,
        **asdict(outcome.candidate.settings),
        "overrides": overrides(outcome.candidate.settings),
        "sets": {
            side: {"final": float(b.loss[-1]), "low": float(b.low[-1]), "high": float(b.high[-1])}
            for side, b in outcome.sides.items()
        },
        "forgetting": _forgetting(findings, outcome.finals),
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
        "averages": {kind: [asdict(m) for m in missed] for kind, missed in findings.averages.held_out.items()},
        "start": findings.start,
        "forecasts": [_outcome_json(findings, o) for o in (*findings.predicted, *findings.averaged)],
        "withheld": {candidate.label: candidate.withheld for candidate in findings.withheld},
        "pareto": [_outcome_json(findings, o) for o in findings.front],
        "recommendation": None,
        "said": text(findings),
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
            "error": side.scale.error,
            "jitter": side.scale.jitter,
            "parameters": {
                p: {"value": value, "low": _finite(low), "high": _finite(high), "identified": p not in loose}
                for p, (value, low, high) in side.intervals(study.tokens_per_step).items()
            },
        }
    if advice:
        arm = advice.arm
        result["recommendation"] = {
            "take": advice.take,
            "goal": str(advice.goal),
            "reason": advice.reason,
            "chosen": _outcome_json(findings, advice.chosen) if advice.chosen else None,
            "measured": {
                "runs": [c.name for c in arm.curves],
                "average": arm.average.label if arm.average else None,
                "sets": arm.finals,
            }
            if arm
            else None,
            "error": advice.error,
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
