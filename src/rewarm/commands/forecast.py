"""`rewarm forecast`: from arguments to text, tables and figures."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from rewarm.config.schema import AnchorConfig
from rewarm.errors import UserError
from rewarm.forecast.averages import averages_of
from rewarm.forecast.candidates import candidates
from rewarm.forecast.csv_curves import IN_STEPS, read_csv
from rewarm.forecast.curves import Curve, curve_of, distinct_names
from rewarm.forecast.fitted import study
from rewarm.forecast.judge import judge
from rewarm.forecast.laws import LAWS
from rewarm.forecast.options import Options, parse
from rewarm.forecast.output import Findings, as_csv, as_json, text
from rewarm.forecast.recommend import averaged, check_sides, outcomes, pareto, recommend, start_losses
from rewarm.forecast.sizes import check_sizes, with_target
from rewarm.runs.run import find_runs, open_run
from rewarm.storage import make_dir, write_durably, write_json

log = logging.getLogger(__name__)


def read(options: Options) -> list[Curve]:
    """Return all curves that the paths lead to. Raises `UserError` where there are none."""
    curves, paths = [], []
    for path in options.paths:
        given = options.parameters.get(path)
        if path.is_file():
            curves.append(read_csv(path, replace(options.logged, parameters=given)))
            paths.append(path)
            continue
        for run in map(open_run, find_runs([path])):
            if run.damage:
                log.warning("%s", run.damage)
            if (curve := curve_of(run)) is not None:
                size = given or curve.trajectory.parameters
                curves.append(replace(curve, trajectory=replace(curve.trajectory, parameters=size)))
                paths.append(run.path)
    in_steps = sum(curve.trajectory.tokens_per_step == IN_STEPS for curve in curves)
    if in_steps:
        log.warning(
            "%d files give steps but no tokens: axes are in steps; give tokens_per_step=… for tokens", in_steps
        )
    if not curves:
        raise UserError("forecast: none of the runs has been evaluated often enough yet; let them go on")
    return distinct_names(curves, paths)


def usable(curves: list[Curve], law: str) -> list[Curve]:
    """Return the curves that the law speaks about: it knows no training on new data from random weights."""
    if law != "auto" and not LAWS[law].shift:
        return curves
    alone = [c for c in curves if c.trajectory.pretraining is not None and not c.trajectory.pretraining.stretches]
    if len(alone) == len(curves):
        return curves
    for curve in alone:
        log.warning("%s: left out, it starts from scratch; law=single fits such runs alone", curve.name)
    return [curve for curve in curves if curve not in alone]


def of_one_remedy(curves: list[Curve]) -> list[Curve]:
    """Return the curves whose runs were held to their start alike, as most were: no law knows what holds them."""
    held = {curve.name: _held(curve) for curve in curves}
    usual = max(held.values(), key=lambda words: (list(held.values()).count(words), not words), default="")
    alike = [c for c in curves if held[c.name] == usual]
    replayed = {repr(c.config.replay_source) for c in alike if c.config and c.config.replay}
    # A run without replay goes with runs of any.
    found = [c for c in alike if len(replayed) < 2 or not _replays_other(c)]
    kept = {curve.name for curve in found}
    for curve in curves:
        if curve.name not in kept:
            words = held[curve.name] or "replay_source"
            log.warning("%s: left out, it has %s, which the others have not and no law knows", curve.name, words)
    return found


def _held(curve: Curve) -> str:
    anchor = curve.config.anchor if curve.config else AnchorConfig()
    return " ".join(f"anchor.{f.name}={getattr(anchor, f.name):g}" for f in fields(anchor) if getattr(anchor, f.name))


def _replays_other(curve: Curve) -> bool:
    return bool(curve.config and curve.config.replay and curve.config.replay_source)


def output_folder(options: Options) -> Path:
    """Return where tables and figures go: beside the one thing that was asked about, or what all have in common."""
    if options.output is not None:
        return options.output
    folders = [path if path.is_dir() else path.parent for path in options.paths]
    return Path(os.path.commonpath([folder.resolve() for folder in folders])) / "report"


def forecast(arguments: Sequence[str]) -> None:
    """Fit, hold out, predict, recommend and draw what the arguments ask for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parse(arguments)
    findings = find(options)
    sys.stdout.write(text(findings, verbose=options.verbose))
    folder = make_dir(output_folder(options), "output")
    from rewarm.forecast.figures import draw

    figures = draw(findings, folder)
    write_json(folder / "forecast.json", as_json(findings, figures))
    write_durably(folder / "forecast.csv", as_csv(findings).encode())
    written = ", ".join(["forecast.json", "forecast.csv", *figures])
    sys.stdout.write(f"\nwritten to {folder}: {written}\n")


def find(options: Options) -> Findings:
    """Return what a forecast with these options comes to."""
    curves = with_target(of_one_remedy(usable(read(options), options.law)), options)
    check_sizes(curves)
    result = study(curves, options)
    if options.recommends:
        check_sides(result)
    both = {"upstream", "downstream"} <= result.sides.keys()
    judgement = judge(result)
    searched, advice, averages = [], None, averages_of(result)
    start = start_losses(result) if both else {}
    asked = candidates(options, result.fitted, search=False) if options.predicts else []
    if options.recommends:
        searched = outcomes(result, candidates(options, result.fitted, search=True))
        searched += averaged(result, averages, searched, start)
        advice = recommend(result, searched, options, judgement.faults, averages)
    predicted = outcomes(result, asked)
    return Findings(
        study=result,
        judgement=judgement,
        predicted=predicted,
        averaged=[
            best
            for one in (predicted if both else [])
            for best in pareto([one, *averaged(result, averages, [one], start)])
            if best.average
        ],
        withheld=[candidate for candidate in asked if candidate.withheld],
        searched=searched,
        front=pareto([outcome for outcome in searched if not outcome.candidate.beyond]),
        recommendation=advice,
        start=start,
        averages=averages,
    )
