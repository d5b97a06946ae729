"""Recommendations run for real: what was predicted, what came, and whether the best measured arm was better.

    python -m benchmarks.recommend --out FOLDER [--only SWEEP] [--steps N]

Five small sweeps of the built-in model are trained, and four recommendations asked of each: the least sum of both
losses, the least downstream loss, and that with at most so much forgetting. What is recommended is trained as the
forecast prints it. A measured arm that is the advice is trained with another seed, so that its loss is not its own.

Runs that are in FOLDER already are not trained again, and what came so far stands in `recommendations.json`: cut
off, it goes on where it was. For each recommendation the table has both final losses as predicted (with the band)
and as they came, whether the limit was kept, and the regret: how much worse the goal came out than for the best arm
of the sweep that keeps to the limit. Negative regret is a gain.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rewarm.commands.forecast import find
from rewarm.config.compose import compose_config
from rewarm.config.schema import SIDES
from rewarm.forecast.candidates import settings_of
from rewarm.forecast.options import parse
from rewarm.forecast.output import overrides, text
from rewarm.runs.run import open_run
from rewarm.text import text_table
from rewarm.training.run import run

BATCH, CONTEXT = 32, 128
SMALL = (
    f"train.batch_size={BATCH}", f"train.context={CONTEXT}", "train.threads=1", "data.validation_tokens=8192",
    "evaluation.every=6", "evaluation.dense_every=6", "checkpoint.every=1000000", "tracker=none", "warmup=0.03",
)  # fmt: skip
STRONG = "data=builtin_strong"


@dataclass(frozen=True)
class Sweep:
    """Arms that are trained, and the limits of forgetting, in nats, that recommendations are asked with."""

    common: tuple[str, ...]
    arms: tuple[tuple[str, ...], ...]
    """`{tenth}` is a tenth of the budget, which then is ten times as large."""
    limits: tuple[float, float]

    @property
    def asked(self) -> tuple[str, ...]:
        """Return what is asked for, as the forecast takes it."""
        return ("weights=1,1", "weights=0,1", *(f"max_forgetting={limit}" for limit in self.limits))


def _cosines(*lrs: float, more: str = "replay=0") -> tuple[tuple[str, ...], ...]:
    return tuple(("schedule=cosine", f"max_lr={lr}", more) for lr in lrs)


SWEEPS = {
    "max_lr": Sweep((STRONG,), _cosines(3e-4, 6e-4, 1.2e-3, 2.4e-3), (0.5, 1.0)),
    "shapes": Sweep(
        (STRONG,),
        (
            *(("schedule=constant", f"max_lr={lr}") for lr in (2e-4, 8e-4)),
            *_cosines(3e-4, 9e-4, 2.7e-3),
            ("schedule=wsd", "max_lr=9e-4"),
        ),
        (0.5, 1.0),
    ),
    "replay": Sweep(
        (STRONG,),
        tuple(arm for r in (0, 0.25) for arm in _cosines(4e-4, 1e-3, 2.5e-3, more=f"replay={r}")),
        (0.3, 0.8),
    ),
    "stopped": Sweep((STRONG,), _cosines(1e-4, 4e-4, 1e-3, 2e-3, more="stop={tenth}"), (0.3, 0.8)),
    "weak": Sweep((), tuple(("schedule=wsd", f"max_lr={lr}") for lr in (3e-5, 1e-4, 3e-4, 1e-3)), (0.02, 0.1)),
}


@dataclass(frozen=True)
class Row:
    """One recommendation and what came of it. Losses in nats a token, by validation set."""

    sweep: str
    goal: str
    advice: str
    predicted: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    """Bands; empty where the advice is a measured arm."""
    got: dict[str, float]
    kept: bool | None
    """Whether the limit was kept; None where there was none."""
    regret: float | None
    """Goal as it came minus that of the best arm that keeps to the limit; None where no arm does."""

    @property
    def inside(self) -> list[bool]:
        """Return for each validation set whether what came lies in the band."""
        return [self.low[side] <= self.got[side] <= self.high[side] for side in self.low]


def named(overrides: Sequence[str]) -> str:
    """Return the name of a run's folder: the values that its overrides give."""
    return "_".join(word.partition("=")[2] for word in overrides if not word.startswith("stop="))


def train(folder: Path, overrides: Sequence[str]) -> None:
    """Train a run as the command line would, unless it is there and finished."""
    if folder.exists() and open_run(folder).finished:
        return
    sys.argv = ["rewarm", "train", *overrides, f"run_dir={folder}"]
    run(compose_config(*overrides, f"run_dir={folder}"))


def finals(folder: Path) -> dict[str, float]:
    """Return the final losses of a run."""
    run = open_run(folder)
    return {side: float(run.loss(side)[1][-1]) for side in SIDES}


def recommendation(name: str, folder: Path, asked: str) -> Row | None:
    """Ask for a recommendation, train it, and return what came of it; None where nothing was recommended."""
    options = parse([str(folder / name), asked])
    findings = find(options)
    advice = findings.recommendation
    assert advice is not None
    (folder / "said").mkdir(exist_ok=True)
    (folder / "said" / f"{name}-{asked}.txt").write_text(text(findings, verbose=True))
    if advice.take == "nothing":
        return None
    if advice.chosen:
        label, settings, bands = advice.chosen.candidate.label, advice.chosen.candidate.settings, advice.chosen.sides
        predicted = advice.chosen.finals
        seed = 0
    else:
        assert advice.arm is not None
        label, settings, bands = f"measured: {advice.arm.label}", settings_of(advice.arm.curves[0]), {}
        predicted, seed = advice.arm.finals, 1
    assert settings is not None
    words = overrides(settings).split()
    place = folder / "advice" / f"{name}_{named(words)}_seed{seed}"
    train(place, (*SMALL, *SWEEPS[name].common, *words, f"seed={seed}"))
    got, goal = finals(place), advice.goal
    return Row(
        sweep=name,
        goal=asked,
        advice=label,
        predicted=predicted,
        low={side: float(band.low[-1]) for side, band in bands.items()},
        high={side: float(band.high[-1]) for side, band in bands.items()},
        got=got,
        kept=got["upstream"] - findings.start["upstream"] <= goal.limit if np.isfinite(goal.limit) else None,
        regret=None if advice.arm is None else goal.value(got) - goal.value(advice.arm.finals),
    )


def table(rows: Sequence[Row]) -> str:
    """Return the table of all recommendations, and what they come to together."""
    cells = []
    for row in rows:
        sides = []
        for side in ("upstream", "downstream"):
            band = f" ({row.low[side]:.3f} .. {row.high[side]:.3f})" if row.low else ""
            sides += [f"{row.predicted[side]:.4f}{band}", f"{row.got[side]:.4f}"]
        within = f"{sum(row.inside)} of {len(row.inside)}" if row.inside else ""
        kept = "" if row.kept is None else ("kept" if row.kept else "BROKEN")
        regret = "" if row.regret is None else f"{row.regret:+.4f}"
        cells.append((row.sweep, row.goal, row.advice, *sides, within, kept, regret))
    header = ("sweep", "goal", "advice", "upstream", "got", "downstream", "got", "inside", "limit", "regret")
    inside = [value for row in rows for value in row.inside]
    kept = [row.kept for row in rows if row.kept is not None]
    regrets = [row.regret for row in rows if row.regret is not None]
    gains = [row.regret < 0 for row in rows if row.low and row.regret is not None]
    return text_table(header, cells) + (
        f"\n{len(rows)} recommendations, {sum(bool(row.low) for row in rows)} of trainings that nobody had run: "
        f"{sum(inside)} of {len(inside)} losses inside their 90 % band, limit kept in {sum(kept)} of {len(kept)}, "
        f"{sum(gains)} of {len(gains)} trainings that nobody had run better than the best measured arm, "
        f"regret {np.mean(regrets or [0]):+.4f} on average, {max(regrets, default=0.0):+.4f} at worst\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=SWEEPS)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    tokens = given.steps * BATCH * CONTEXT
    rows: list[Row] = []
    for name in [given.only] if given.only else SWEEPS:
        sweep = SWEEPS[name]
        for arm in sweep.arms:
            stopped = any("{tenth}" in word for word in arm)
            words = [word.format(tenth=tokens) for word in arm]
            budget = f"budget={10 * tokens if stopped else tokens}"
            train(given.out / name / named(arm), (*SMALL, *sweep.common, budget, *words))
        for goal in sweep.asked:
            row = recommendation(name, given.out, goal)
            if row is None:
                print(f"{name}, {goal}: no recommendation", flush=True)
                continue
            rows.append(row)
            print(table([row]), flush=True)
            content = [row.__dict__ for row in rows]
            (given.out / "recommendations.json").write_text(json.dumps(content, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
