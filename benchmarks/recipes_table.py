"""A table of finished runs with both losses, to judge searches by: each recipe's curves, with two seeds.

    python -m benchmarks.recipes_table --out FOLDER [--csv FILE]

Trains the built-in model on the strong shift, once for each recipe and seed: four shapes of the learning rate, eight
maxima, four shares of replay, 48 updates of 32 sequences of 128 tokens. Runs that are in FOLDER already are not
trained again. FILE then holds a line for each evaluation of each run.
"""

from __future__ import annotations

import argparse
import csv
import random
from itertools import product
from pathlib import Path

from benchmarks.recommend import SMALL, STRONG, train
from rewarm.config.schema import SIDES
from rewarm.runs.run import find_runs, open_run
from rewarm.schedules import lr

SHAPES = {
    "cosine": ("schedule=cosine",),
    "linear": ("schedule=linear",),
    "wsd_20": ("schedule=wsd", "schedule.decay_fraction=0.2"),
    "wsd_50": ("schedule=wsd", "schedule.decay_fraction=0.5"),
}
MAX_LRS = tuple(float(f"{2e-4 * 1.5**i:.3g}") for i in range(8))
REPLAYS = (0.0, 0.05, 0.15, 0.3)
SEEDS = (0, 1)
COMMON = (*SMALL, STRONG, f"budget={48 * 32 * 128}", "evaluation.every=8", "evaluation.dense_every=8")
COLUMNS = ("shape", "max_lr", "replay", "seed", "step", "tokens", "lr", *SIDES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    for seed in SEEDS:
        recipes = list(product(SHAPES, MAX_LRS, REPLAYS))
        random.Random(0).shuffle(recipes)  # cut off, the table holds a little of everything
        for shape, max_lr, replay in recipes:
            place = given.out / f"{shape}_{max_lr:g}_{replay:g}_{seed}"
            train(place, (*COMMON, *SHAPES[shape], f"max_lr={max_lr}", f"replay={replay}", f"seed={seed}"))
    if given.csv:
        write(given.out, given.csv)


def write(folder: Path, path: Path) -> None:
    """Write a line for each evaluation of each finished run in `folder`."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        for place in find_runs([folder]):
            run = open_run(place)
            if not run.finished:
                continue
            *shape, max_lr, replay, seed = place.name.split("_")
            losses = {
                side: dict(zip(*(a.tolist() for a in run.loss(side, against="step")), strict=True)) for side in SIDES
            }
            for step in map(int, losses["upstream"]):
                rate = lr(run.plan.schedule, step) if step else 0.0
                cells = (f"{losses[side][step]:.5f}" for side in SIDES)
                row = ("_".join(shape), max_lr, replay, seed, step, step * run.plan.tokens_per_step, f"{rate:.6g}")
                lines.writerow((*row, *cells))


if __name__ == "__main__":
    main()
