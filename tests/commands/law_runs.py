"""Sweeps whose runs nobody trained: written as real ones are, with losses that follow a known law."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rewarm.commands.arms import Arm, Swept
from rewarm.commands.launch import Job
from rewarm.commands.leaving import in_telling_order, planned
from rewarm.config.command_line import parse
from rewarm.config.plan import make_plan
from rewarm.config.schema import SIDES
from rewarm.forecast.features import features, units_of
from rewarm.forecast.laws import form_of
from rewarm.runs.folder import METRICS, RunFolder
from rewarm.runs.manifest import Conditions, Manifest, Pinned
from rewarm.runs.metrics import read_metrics
from rewarm.runs.run import open_run
from rewarm.runs.summary import summarize
from tests.forecast.synthetic import TRUTH
from tests.training.killing import TINY

WORDS = (
    "schedule=cosine,linear",
    "max_lr=1e-4,2e-4,4e-4,8e-4,1.6e-3,3.2e-3,6.4e-3",
    *("budget=400k", "train.batch_size=8", "train.context=64", "evaluation.every=40", "evaluation.dense_every=40"),
    *("sweep.stop=forecast", "sweep.weights=[1,1]"),
)


@functools.cache
def arms() -> list[Arm]:
    return in_telling_order(Swept.of(parse(["-m", *WORDS, "run_dir=sweep"])).arms())


def placed(folder: Path) -> list[Arm]:
    """Return the arms of a sweep in this folder."""
    places = [(arm, folder / arm.name) for arm in arms()]
    return [replace(arm, folder=at, config=replace(arm.config, run_dir=str(at))) for arm, at in places]


def write(arm: Arm, share: float = 1.0, lost: float = 0.0) -> None:
    """Write an arm's run as far as it has come; its losses follow a known law, with a little noise.

    From the first update on it has `lost` so many nats upstream.
    """
    plan, planned_ = make_plan(arm.config), planned(arm.config)
    units = units_of([planned(a.config) for a in arms()])
    steps = np.array([s for s in range(plan.steps + 1) if s == 0 or plan.evaluates(s)])
    steps = steps[steps <= share * plan.steps]
    run, rng = RunFolder(arm.folder), np.random.default_rng(len(arm.name))
    points = features(planned_, steps, units)
    curves = {}
    for side in SIDES:
        law = form_of("cpt", points, None).bind(points, units)
        values = TRUTH[side] | TRUTH["shapes"] | {"memory": float(units.memories[4])}
        curves[side] = law.loss(values)[0] * np.exp(0.001 * rng.standard_normal(len(steps)))
    curves["upstream"] = curves["upstream"] + lost * (steps > 0)
    run.create()
    run.write_config(arm.config)
    run.write_manifest(Manifest(conditions=Conditions(rewarm="0"), init=Pinned(arm.config.init)))
    lines = [
        {"step": int(s), "tokens": int(s) * plan.tokens_per_step}
        | ({"lr": float(planned_.lr[s - 1])} if s else {})
        | {f"{side}/loss": float(curves[side][i]) for side in SIDES}
        for i, s in enumerate(steps)
    ]
    (run.path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if share == 1:
        run.write_summary(summarize(read_metrics(run.path / METRICS)))


def total(arm: Arm) -> float:
    run = open_run(arm.folder)
    return sum(float(run.loss(side)[1][-1]) for side in SIDES)


class One:
    """A source of one run, that is left as soon as it has been scored."""

    def __init__(self, folder: Path) -> None:
        words = (*TINY, "budget=400k", "max_lr=1e-3", "evaluation.every=100000", "train.log_every=1")
        self.job = Job("left", (*words, f"run_dir={folder}"), folder)
        self.left, self.codes = [self.job], list[int]()

    def next(self) -> Job | None:
        return self.left.pop() if self.left else None

    def all(self) -> Sequence[Job]:
        return [self.job]

    def to_leave(self) -> Sequence[str]:
        metrics = self.job.folder / METRICS
        return [self.job.name] if metrics.exists() and metrics.read_text().count("\n") > 3 else []

    def done(self, job: Job, code: int) -> None:
        assert job is self.job
        self.codes.append(code)
