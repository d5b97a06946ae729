"""Averages of weights, predicted from those that were scored: bends, shares, hold-out, and what is advised."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rewarm.forecast.averages import (
    ALPHAS,
    SIDES,
    WINDOWS,
    Averages,
    averages_of,
    last_part,
    predicted,
    scored_averages,
)
from rewarm.forecast.candidates import candidates
from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.fitted import Study, study
from rewarm.forecast.judge import judge
from rewarm.forecast.options import Options
from rewarm.forecast.output import Findings, commands, text
from rewarm.forecast.recommend import averaged, outcomes, recommend, start_losses
from rewarm.report.merging import Row, as_json
from rewarm.runs.folder import RunFolder
from tests.conftest import make_config
from tests.forecast.synthetic import UNITS, curve, losses, trajectory

LRS = (1.5e-4, 2.5e-4, 4e-4, 6e-4)


def bend(of: Trajectory) -> float:
    """Return a bend that grows with the area under the LR, twice as large where the LR has not fallen."""
    return 0.3 * math.sqrt(of.lr.sum() * of.tokens_per_step / UNITS.area) * (1 + of.lr[-1] / of.lr.max())


def ends(of: Trajectory) -> dict[str, np.ndarray]:
    return {side: losses("cpt", of, side, np.array([0, len(of.lr)])) for side in SIDES}


def line(of: Trajectory, alpha: float) -> tuple[float, float]:
    """Return the true losses of the average of start and end."""
    below = bend(of) * alpha * (1 - alpha)
    up, down = ((1 - alpha) * start + alpha * end - below for start, end in ends(of).values())
    return float(up), float(down)


def window(of: Trajectory, part: float) -> tuple[float, float]:
    """Return the true losses of an average over the last part: 80 % of what the true law gives its decay."""
    virtual = replace(of, lr=of.lr * last_part(len(of.lr), part))
    up, down = (end - 0.8 * (end - ends(virtual)[side][1]) for side, (_, end) in ends(of).items())
    return float(up), float(down)


def merged(folder: Path, rows: list[Row], stem: str) -> None:
    (folder / "report").mkdir(parents=True, exist_ok=True)
    (folder / "report" / f"{stem}.json").write_text(json.dumps(as_json(rows, [], None, [])))


def row(label: str, found: tuple[float, float], made_of: dict[str, float], alpha: float | None = None) -> Row:
    return Row(label, {f"{side}/loss": loss for side, loss in zip(SIDES, found, strict=True)}, made_of, alpha)


Make = Callable[..., list[Curve]]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function to cosines and constants without noise, whose averages were scored."""

    def build(
        *, wrong: float = 0.0, elsewhere: float = 0.0, stale: float = 0.0, runs: tuple[float, ...] = LRS
    ) -> list[Curve]:
        curves: list[Curve] = []
        folder = tmp_path_factory.mktemp("averages")
        for kind in ("cosine", "constant"):
            for number, lr in enumerate(runs):
                of = trajectory(kind, lr)
                run = replace(
                    curve(f"{kind} {lr:g}", of, noise=0.0002),
                    path=folder / f"{kind} {lr:g}",
                    config=make_config(f"schedule={kind}", f"max_lr={lr:g}"),
                )
                run.losses.update({side: (run.losses[side][0], run.losses[side][1].copy()) for side in SIDES})
                for side, (start, end) in ends(of).items():
                    run.losses[side][1][[0, -1]] = start, end
                assert run.path is not None
                assert run.config is not None
                RunFolder(run.path).create()
                RunFolder(run.path).write_config(run.config)
                shift = wrong * (-1) ** number
                rows = []
                for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
                    up, down = line(of, alpha)
                    off = shift if 0 < alpha < 1 else stale if alpha else elsewhere
                    made = {"builtin": 1 - alpha, str(run.path): alpha}
                    rows.append(row(f"alpha={alpha:g}", (up + off, down + off), made, alpha))
                merged(run.path, rows, "merge")
                if kind == "constant":
                    steps = np.arange(0, 2001, 50)
                    rows = [row("end", line(of, 1.0), {f"{run.name}@step2000": 1.0})]
                    for part in (0.25, 0.5):
                        counts = np.array([1.0, *last_part(2000, part)])[np.maximum(steps[1:] - 25, 0)]
                        weights = -np.diff([*counts, 0.0])
                        weights[-1] = 1 - weights[:-1].sum()
                        made = {f"{run.name}@step{s}": float(w) for s, w in zip(steps[1:], weights, strict=True)}
                        up, down = window(of, part)
                        rows.append(row(f"linear {part:g}", (up + shift, down + shift), made))
                    merged(run.path, rows, "merge-window")
                curves.append(run)
        return curves

    return build


@pytest.fixture(scope="session")
def of(make: Make) -> Study:
    """Return the study of all that was run."""
    return study(make(), Options(paths=()))


def test_averages_that_nobody_scored_are_predicted(of: Study) -> None:
    averages = averages_of(of)
    assert {kind: len(found) for kind, found in averages.scored.items()} == {"line": 24, "window": 8}
    assert averages.error("line") < 0.004
    assert averages.error("window") < 0.004
    start = start_losses(of)
    for kind in ("cosine", "constant"):
        new = trajectory(kind, 3.7e-4)
        at_end = {side: of.sides[side].predict(new, np.array([2000])) for side in SIDES}
        found = predicted(of, averages, new, start, at_end)
        assert found.keys() == {f"alpha={a:g}" for a in ALPHAS} | (
            {f"linear {w:g}" for w in WINDOWS} if kind == "constant" else set()
        ), "no average over a last part was scored of a run that decays"
        true = {f"alpha={a:g}": line(new, a) for a in ALPHAS} | {f"linear {w:g}": window(new, w) for w in WINDOWS}
        for label, bands in found.items():
            for side, loss in zip(SIDES, true[label], strict=True):
                assert bands[side].low[0] < loss < bands[side].high[0], (label, side)
                assert bands[side].loss[0] == pytest.approx(loss, rel=0.01)
    far = trajectory("cosine", 2e-3)
    assert predicted(of, averages, far, start, {s: of.sides[s].predict(far, np.array([2000])) for s in SIDES}) == {}


def test_averages_that_cannot_be_trusted_are_not_predicted(
    of: Study, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    off = averages_of(replace(of, fitted=make(wrong=0.15)))
    assert off.error("line") > 0.02
    assert not off.predicts("line", trajectory("cosine", 3e-4))
    elsewhere = scored_averages(replace(of, fitted=make(elsewhere=0.1)))
    assert all(scored.alpha is None for scored in elsewhere), "lines that begin at another model"
    assert all(scored.alpha is None for scored in scored_averages(replace(of, fitted=make(stale=0.1))))
    assert "merge.json: is of another end of the run and left out; merge again" in caplog.text
    two = averages_of(replace(of, fitted=make(runs=LRS[:1])))
    assert two.held_out == {"line": [], "window": []}
    assert two.error("line") == math.inf


def _findings(of: Study, averages: Averages, options: Options) -> Findings:
    start = start_losses(of)
    found = outcomes(of, candidates(options, of.fitted, search=True))
    found += averaged(of, averages, found, start)
    advice = recommend(of, found, options, judge(of).faults, averages)
    return Findings(of, judge(of), [], [], [], found, [], advice, start, averages)


def test_the_advice_may_be_an_average_and_says_how_to_make_it(of: Study) -> None:
    averages = averages_of(of)
    found = _findings(of, averages, Options(paths=(), weights=(1.0, 1.0)))
    advice = found.recommendation
    assert advice is not None
    assert advice.arm is not None
    assert advice.arm.average is not None
    best = min(sum(scored.losses.values()) for kind in averages.scored.values() for scored in kind)
    assert sum(advice.arm.finals.values()) == best
    said = text(found)
    assert "held-out averages between start and end were missed by 0." in said
    assert advice.take == "measured"
    assert advice.arm.average.label == "linear 0.5"
    assert f"rewarm merge '{advice.arm.curves[0].path}' window=0.5 shape=linear save='linear 0.5'\n" in said
    limited = _findings(of, averages, Options(paths=(), max_forgetting=0.0)).recommendation
    assert limited is not None
    assert limited.arm is not None
    assert limited.arm.average is not None
    assert limited.arm.average.alpha
    label = f"save={limited.arm.average.alpha:g}\n"
    assert f"rewarm merge builtin '{limited.arm.curves[0].path}' {label}" in text(
        replace(found, recommendation=limited)
    )
    line_of, window_of = (
        next(o for o in found.searched if o.average.startswith(kind)) for kind in ("alpha", "linear 0.2")
    )
    train, merge = commands(found, replace(line_of, average="alpha=0.7"))
    assert train.endswith(" run_dir=runs/recommended")
    assert merge == "rewarm merge builtin runs/recommended save=0.7"
    train, merge = commands(found, window_of)
    assert " checkpoint.keep=0 checkpoint.every=" in train
    assert merge == "rewarm merge runs/recommended window=0.2 shape=linear save='linear 0.2'"


def test_an_arm_that_the_law_takes_to_be_better_than_it_came_out_stops_an_advice_near_it(of: Study) -> None:
    """Though another arm is the best: what is promised beside a poor arm is what it did not keep."""
    options = Options(paths=(), weights=(1.0, 1.0))
    found = _findings(of, averages_of(of), options)
    chosen = min((o for o in found.searched if not o.candidate.beyond), key=lambda o: sum(o.finals.values()))
    near = [c for c in of.curves if np.isclose(c.trajectory.lr.max(), chosen.candidate.settings.max_lr, rtol=0.2)]
    assert near

    def poorer(one: Curve) -> Curve:
        found = {
            side: (steps, np.append(values[:-1], values[-1] + 0.3)) for side, (steps, values) in one.losses.items()
        }
        return replace(one, losses=found) if any(one is other for other in near) else one

    averages = Averages({"line": [], "window": []}, {}, {"line": [], "window": []})
    bad = _findings(replace(of, curves=[poorer(one) for one in of.curves]), averages, options).recommendation
    assert bad is not None
    assert bad.take != "predicted"
