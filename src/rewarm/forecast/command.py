"""`rewarm forecast`: from arguments to text, tables and figures."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rewarm.cache import make_dir, write_durably, write_json
from rewarm.errors import UserError
from rewarm.forecast.candidates import candidates
from rewarm.forecast.curves import Curve, distinct_names, find_runs, read_run
from rewarm.forecast.judge import judge
from rewarm.forecast.options import Options, parse
from rewarm.forecast.recommend import check_sides, outcomes, pareto, recommend, start_loss
from rewarm.forecast.study import study
from rewarm.forecast.tables import Logged, read_csv
from rewarm.forecast.tell import Findings, as_csv, as_json, text

log = logging.getLogger(__name__)


def read(options: Options) -> list[Curve]:
    """Return all curves that the paths lead to. Raises `UserError` where there are none."""
    curves, paths = [], []
    logged = Logged(options.tokens_per_step, options.start_lr)
    for path in options.paths:
        if path.is_file():
            curves.append(read_csv(path, logged))
            paths.append(path)
            continue
        runs = find_runs(path)
        if not runs:
            raise UserError(f"{path}: holds no run (a folder with config.yaml and metrics.jsonl)")
        for run in runs:
            if (curve := read_run(run)) is not None:
                curves.append(curve)
                paths.append(run)
    if not curves:
        raise UserError("forecast: none of the runs has been evaluated often enough yet; let them go on")
    return distinct_names(curves, paths)


def usable(curves: list[Curve], law: str) -> list[Curve]:
    """Return the curves that the law speaks about: it knows no training on new data from random weights."""
    if law not in ("cpt", "cpt_multipower", "auto"):
        return curves
    alone = [c for c in curves if c.trajectory.pretraining is not None and not c.trajectory.pretraining.stretches]
    if len(alone) == len(curves):
        return curves
    for curve in alone:
        log.warning("%s: left out, it starts from scratch; law=single fits such runs alone", curve.name)
    return [curve for curve in curves if curve not in alone]


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
    sys.stdout.write(text(findings))
    folder = make_dir(output_folder(options), "output")
    from rewarm.forecast.figures import draw

    figures = draw(findings, folder)
    write_json(folder / "forecast.json", as_json(findings, figures))
    write_durably(folder / "forecast.csv", as_csv(findings).encode())
    written = ", ".join(["forecast.json", "forecast.csv", *figures])
    sys.stdout.write(f"\nwritten to {folder}: {written}\n")


def find(options: Options) -> Findings:
    """Return what a forecast with these options comes to."""
    result = study(usable(read(options), options.law), options)
    if options.recommends:
        check_sides(result)
    both = {"upstream", "downstream"} <= result.sides.keys()
    predicted, searched, advice = [], [], None
    if options.predicts:
        predicted = outcomes(result, candidates(options, result.fitted, search=False))
    if options.recommends:
        searched = outcomes(result, candidates(options, result.fitted, search=True))
        advice = recommend(result, searched, options)
    return Findings(
        study=result,
        judgement=judge(result),
        predicted=predicted,
        searched=searched,
        front=pareto(searched),
        recommendation=advice,
        start=start_loss(result) if both else None,
    )
