"""Synthetic runs, written through `RunFolder` as real ones are, whose losses follow a law that a test chooses."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.runs.folder import METRICS, RunFolder
from rewarm.runs.manifest import Conditions, Manifest, Pinned
from rewarm.runs.metrics import read_metrics
from rewarm.runs.summary import summarize
from rewarm.schedules import lr_curve
from tests.conftest import make_config

Losses = Callable[[Config, np.ndarray, np.ndarray, float], dict[str, np.ndarray]]
"""From config, share of the horizon, share of peak LR and noise of the seed to the loss of each side."""

START = {"builtin": (2.2, 2.6), "early": (2.6, 2.9), "middle": (2.4, 2.75), "scratch": (8.5, 8.5)}


def _kind(config: Config) -> str:
    if config.init == "scratch":
        return "scratch"
    return dict(zip(config.model.earlier, ("early", "middle"), strict=True)).get(config.init, "builtin")


def as_the_paper_found(config: Config, t: np.ndarray, lr: np.ndarray, noise: float) -> dict[str, np.ndarray]:
    """Return losses for which all six claims of the paper hold."""
    up0, down0 = START[_kind(config)]
    spike = 0.2 * np.exp(-t / 0.02) * (t > 0) if config.warmup == 0 and lr.max() > 0.5 else 0.0
    if config.data.train == "upstream":
        rise = 0.12 * np.sqrt(lr.max()) * (1 - np.exp(-t / 0.02)) * (lr.max() > 0.2)
        return {"upstream": up0 + rise + spike + noise, "downstream": down0 + rise + noise}
    if _kind(config) == "scratch":
        down = 2.62 + 6.0 * np.exp(-t / 0.05) - 0.20 * t
        return {"upstream": down + 0.6 + noise, "downstream": down + noise}
    peak = lr.max()
    pretrained = (up0 - 2.2) * 0.8
    learned = {True: 0.06 * (1 - np.exp(-t / 0.3)), False: 0.35 * peak**0.25 * (1 - np.exp(-t / 0.25))}[peak < 0.2]
    bump = 0.10 * peak * np.minimum(lr / peak, 1.0)
    forgotten = {True: 0.30 * t, False: 0.10 + 0.08 * np.log2(2 * peak) + 0.10 * peak * lr / peak}[peak < 0.2]
    ramp = 1 - np.exp(-t / 0.01)
    return {
        "upstream": up0 + (forgotten + (0.0 if peak < 0.2 else bump)) * ramp + spike + noise,
        "downstream": down0 - learned + bump * ramp * (peak > 0.2) + pretrained * 0.2 + spike * 0.5 + noise,
    }


@functools.cache
def _compose(arm: str, overrides: tuple[str, ...]) -> Config:
    return make_config("experiment=all", f"arm={arm}", "train.log_every=20", *overrides)


def write_run(
    folder: Path, arm: str, seed: int = 0, losses: Losses = as_the_paper_found, *overrides: str, finished: bool = True
) -> RunFolder:
    """Write the run of an arm of `experiment=all` whose losses are `losses`, with a noise of 0.002 nats a seed."""
    run = RunFolder(folder / f"{arm},seed={seed}")
    config = replace(_compose(arm, overrides), seed=seed, run_dir=str(run.path))
    run.create()
    run.write_config(config)
    run.write_manifest(Manifest(conditions=Conditions(rewarm="0"), init=Pinned(config.init)))
    plan = make_plan(config)
    steps = np.array([s for s in range(plan.steps + 1) if s == 0 or plan.logs(s)])
    lr = lr_curve(plan.schedule, steps)
    noise = 0.002 * math.sin(1 + 7 * seed)
    curves = losses(config, steps / plan.schedule.total_steps, lr / config.model.peak_lr, noise)
    lines = []
    for i, step in enumerate(steps):
        row = {"step": int(step), "tokens": int(step) * plan.tokens_per_step}
        if step:
            row |= {"train/loss": float(curves["downstream"][i]), "lr": float(lr[i])}
        if step == 0 or plan.evaluates(int(step)):
            row |= {f"{side}/loss": float(curve[i]) for side, curve in curves.items()}
        lines.append(row)
    (run.path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        run.write_summary(summarize(read_metrics(run.path / METRICS)))
    return run


ALL = (
    *("constant", "cosine_0.5", "cosine_1", "cosine_2", "scratch", "warmup_0", "warmup_0.5", "warmup_2"),
    *("same_constant", "same_cosine_0.5", "same_cosine_1", "same_cosine_2"),
    *("early_warmup_0", "early_warmup_1", "middle_warmup_0", "middle_warmup_1"),
)


def write_all(folder: Path, seeds: int = 3, losses: Losses = as_the_paper_found) -> Path:
    """Write every arm of `experiment=all` and return the sweep's folder."""
    for arm in ALL:
        for seed in range(seeds):
            write_run(folder, arm, seed, losses)
    return folder


__all__ = ["ALL", "Losses", "as_the_paper_found", "write_all", "write_run"]
