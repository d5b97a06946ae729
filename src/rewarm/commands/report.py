"""`rewarm report`: reads run folders, writes figures, tables, verdicts and one page."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewarm.errors import DataError, UserError, nearest
from rewarm.report import merging
from rewarm.report.arms import load
from rewarm.report.arms_table import to_csv, to_markdown
from rewarm.report.findings import Study, studies_of
from rewarm.report.page import Forecast, effect, test_cells, write_page
from rewarm.report.plot import draw_all
from rewarm.runs.folder import METRICS, SUMMARY
from rewarm.runs.run import Run, find_runs
from rewarm.storage import make_dir, write_durably, write_json
from rewarm.text import marked

log = logging.getLogger(__name__)

OPTIONS = ("out", "wandb", "every")
USAGE = "rewarm report RUN_OR_SWEEP... [--watch] [out=FOLDER] [wandb=true] [every=SECONDS]"


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    paths: tuple[Path, ...]
    out: Path
    watch: bool = False
    wandb: bool = False
    every: float = 5.0
    """Seconds between two looks at a watched run."""


def parse(arguments: Sequence[str]) -> Asked:
    """Return what is asked for. Raises `UserError` for what cannot be."""
    given, paths, watch = {}, [], False
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if argument == "--watch":
            watch = True
        elif argument.startswith("-"):
            raise UserError(f"{argument}: unknown option{nearest(argument, ['--watch'])} (usage: {USAGE})")
        elif sign and not Path(argument).exists():
            if key not in OPTIONS:
                raise UserError(f"{key}: unknown option{nearest(key, OPTIONS)} (usage: {USAGE})")
            given[key] = value
        else:
            paths.append(Path(argument))
    if not paths:
        raise UserError(f"report: give a run's folder or a sweep's (usage: {USAGE})")
    if given.get("wandb", "false") not in ("true", "false"):
        raise UserError(f"wandb={given['wandb']}: must be true or false")
    try:
        every = float(given.get("every", "5"))
    except ValueError:
        every = 0.0
    if not every > 0:
        raise UserError(f"every={given['every']}: must be a number of seconds above 0")
    out = Path(given["out"]) if "out" in given else paths[0] / "report"
    return Asked(tuple(paths), out, watch, given.get("wandb") == "true", every)


def forecast_of(folder: Path) -> Forecast:
    """Return what `rewarm forecast` has left in the report's folder."""
    path = folder / "forecast.json"
    if not path.is_file():
        return Forecast()
    content = json.loads(path.read_text(encoding="utf-8"))
    drawn = [folder / Path(name).name for name in content.get("figures", []) if Path(name).suffix == ".svg"]
    figures = {figure.stem: figure.read_text(encoding="utf-8") for figure in drawn if figure.is_file()}
    return Forecast(content.get("said", ""), figures)


def verdicts_markdown(studies: Sequence[Study]) -> str:
    """Return the verdicts as Markdown."""
    lines = []
    for study in studies:
        lines += [f"## {study.name}", "", "| claim | verdict | measured |", "|---|---|---|"]
        for verdict in study.verdicts:
            said = effect(verdict) or f"{verdict.reason}; run `{verdict.command}`"
            if verdict.verdict == "undecided" and effect(verdict):
                said += f" ({verdict.reason})"
            lines.append(f"| {verdict.number}. {verdict.title} | **{verdict.verdict}** | {said} |")
        lines.append("")
    return "\n".join(lines)


def _verdicts_json(studies: Sequence[Study]) -> list[dict[str, object]]:
    return [
        {
            "setting": study.name,
            "number": verdict.number,
            "claim": verdict.claim,
            "verdict": verdict.verdict,
            "reason": verdict.reason,
            "run": verdict.command if verdict.verdict == "undecided" else None,
            "tests": [
                dict(zip(("what", "mean", "interval", "asked", "holds"), test_cells(test), strict=True))
                | {"samples": test.samples, "threshold": test.threshold}
                for test in verdict.tests
            ],
            "notes": verdict.notes,
            "runs": verdict.runs,
        }
        for study in studies
        for verdict in study.verdicts
    ]


def write_report(asked: Asked, runs: Sequence[Run], studies: Sequence[Study]) -> list[Path]:
    """Write everything into the report's folder and return the figures."""
    out = make_dir(asked.out, "out")
    figures: list[Path] = []
    for i, study in enumerate(studies):
        place = out if i == 0 else make_dir(out / f"setting-{i + 1}", "out")
        figures += draw_all(study.charts, place, proxy=study.proxied)
    write_durably(out / "summary.csv", to_csv([row for study in studies for row in study.rows]).encode())
    parts = [
        [f"## {s.name}\n", to_markdown(s.rows), *([s.tree] if s.tree else []), *map(merging.to_markdown, s.merged)]
        for s in studies
    ]
    summary = [marked("\n".join(part), proxy=s.proxied) for part, s in zip(parts, studies, strict=True)]
    write_durably(out / "summary.md", "\n".join(summary).encode())
    claims = [marked(verdicts_markdown([s]), proxy=s.proxied) for s in studies]
    write_durably(out / "verdicts.md", "\n".join(claims).encode())
    write_json(out / "verdicts.json", _verdicts_json(studies))
    write_page(out / "index.html", studies, runs, forecast_of(asked.out))
    return figures


def _tell(asked: Asked, studies: Sequence[Study], runs: Sequence[Run]) -> None:
    for study in studies:
        said = f"{study.name}: {len(study.arms)} arms\n{study.answer.text()}"
        for verdict in study.verdicts:
            said += f"  claim {verdict.number}. {verdict.title}: {verdict.verdict}"
            said += f" ({verdict.reason})\n" if verdict.reason else "\n"
        sys.stdout.write(marked(said, proxy=study.proxied))
        undecided = {v.command: None for v in study.verdicts if v.verdict == "undecided"}
        for command in undecided:
            sys.stdout.write(f"  to decide: {command}\n")
    sys.stdout.write(f"{len(runs)} runs; open {asked.out / 'index.html'}\n")


def watch(asked: Asked) -> None:
    """Write the page again whenever a run has new metrics, until all runs have finished."""
    out = make_dir(asked.out, "out")
    sys.stdout.write(f"watching; open {out / 'index.html'} (Ctrl-C ends)\n")
    sys.stdout.flush()
    seen: object = None
    while True:
        try:
            found = find_runs(asked.paths)
        except UserError:  # none has begun yet
            found = []
        files = [path / name for path in found for name in (METRICS, SUMMARY)]
        state = [(file, file.stat().st_size) for file in files if file.is_file()]
        if state != seen:
            seen = state
            runs = load(asked.paths) if found else []
            if runs:
                done = all(run.summary is not None for run in runs)
                refresh = None if done else max(1, round(asked.every))
                write_page(out / "index.html", studies_of(runs), runs, forecast_of(asked.out), refresh)
                if done:
                    return
        time.sleep(asked.every)


def report(arguments: Sequence[str]) -> None:
    """Run the verb."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    asked = parse(arguments)
    if asked.watch:
        try:
            watch(asked)
        except KeyboardInterrupt:
            return
    runs = load(asked.paths)
    if not runs:
        raise DataError(f"{asked.paths[0]}: no run in it has been scored yet; --watch waits for the first")
    for run in runs:
        for wrong in (run.damage, run.other_lr):
            if wrong:
                log.warning("%s", wrong)
    studies = studies_of(runs)
    figures = write_report(asked, runs, studies)
    if asked.wandb:
        from rewarm.report.publish import publish

        publish(asked.out, asked.paths[0].resolve().name, studies, figures, runs[0].config.tracker)
    _tell(asked, studies, runs)
