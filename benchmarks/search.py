"""`rewarm search` judged by replay: tokens until the best of all is found, beside Optuna's samplers and the grid.

    python -m benchmarks.search [--repetitions N] [--slow N] [--ways WAY ...]

The 128 recipes of docs/results/curves/recipes.csv are the space, each seed a world of its own: what a search asks to
be run is looked up. Found is the best when a recipe has been run that keeps to the limit and whose value is within
0.005 nats of the best of all. Optuna's samplers get the limit as a constraint, and the recipe as shape, max LR and
replay, the two numbers in their order. Repetitions of rewarm differ in the order in which the recipes are listed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from benchmarks.recipes_table import MAX_LRS, REPLAYS, SHAPES
from benchmarks.stopping import GOALS, curves_of_table, value_of
from rewarm.commands.searching import WORTH
from rewarm.forecast.curves import Curve
from rewarm.forecast.options import Options
from rewarm.forecast.search import FEWEST, propose
from rewarm.forecast.stopping import Asked, telling_order
from rewarm.text import text_table

CLOSE = 0.005
"""Nats within which the best is found."""
World = Mapping[str, Curve]
Way = Callable[[World, Options, int], Iterator[str]]
"""From a world, a goal and a repetition to the recipes in the order in which they are run."""


def rewarm(world: World, options: Options, repetition: int) -> Iterator[str]:
    """Yield what `rewarm search` would run with one run at a time, none left early, until it ends."""
    names = list(world)
    np.random.default_rng(repetition).shuffle(names)
    order = [names[i] for i in telling_order([world[name].trajectory for name in names])][:FEWEST]
    yield from order
    while len(order) < len(names):
        left = {name: Asked(world[name].trajectory) for name in names if name not in order}
        found = propose([world[name] for name in order], left, [], options)
        if found is None or found.gain < WORTH:
            return
        order.append(found.name)
        yield found.name


def optunas(name: str) -> Way:
    """Return the way of one of Optuna's samplers. A recipe that is asked for again costs nothing."""
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)

    def way(world: World, options: Options, repetition: int) -> Iterator[str]:
        limited = options.max_forgetting is not None
        constrained = {"constraints_func": lambda trial: [trial.user_attrs["over"]]} if limited else {}
        if name == "RandomSampler":
            constrained = {}
        study = optuna.create_study(sampler=getattr(optuna.samplers, name)(seed=repetition, **constrained))
        run: set[str] = set()
        for _ in range(1000):
            trial = study.ask()
            shape = trial.suggest_categorical("shape", list(SHAPES))
            lr = MAX_LRS[trial.suggest_int("max_lr", 0, len(MAX_LRS) - 1)]
            replay = REPLAYS[trial.suggest_int("replay", 0, len(REPLAYS) - 1)]
            recipe = f"{shape}_{lr:g}_{replay:g}"
            upstream, downstream = (float(world[recipe].losses[s][1][-1]) for s in ("upstream", "downstream"))
            lost = upstream - float(world[recipe].losses["upstream"][1][0])
            trial.set_user_attr("over", lost - options.max_forgetting if options.max_forgetting is not None else 0.0)
            weights = options.weights or (0.0, 1.0)
            study.tell(trial, weights[0] * upstream + weights[1] * downstream)
            if recipe not in run:
                run.add(recipe)
                yield recipe
            if len(run) == len(world):
                return

    return way


def found_after(way: Way, world: World, options: Options, repetition: int) -> tuple[float, float]:
    """Return after how many runs the best is found, infinite where it never is, and after how many the way ends."""
    best = min(value_of(curve, options, -1) for curve in world.values())
    found, count = np.inf, 0
    for count, name in enumerate(way(world, options, repetition), 1):
        if value_of(world[name], options, -1) <= best + CLOSE:
            found = min(found, count)
            if way is not rewarm:
                break
    return found, count if way is rewarm else np.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--slow", type=int, default=5, help="repetitions of rewarm and of Optuna's GP")
    optuna_ways = ("RandomSampler", "TPESampler", "NSGAIISampler", "GPSampler")
    parser.add_argument("--ways", nargs="*", default=["rewarm", *optuna_ways])
    given = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    worlds = [{c.arm: c for c in curves_of_table() if c.name.endswith(f"_{seed}")} for seed in (0, 1)]
    rows = []
    for goal in ("weights=1,1", "max_forgetting=0.5", "max_forgetting=1"):
        for name in given.ways:
            way = rewarm if name == "rewarm" else optunas(name)
            times = given.slow if name in ("rewarm", "GPSampler") else given.repetitions
            told = [found_after(way, world, GOALS[goal], i) for world in worlds for i in range(times)]
            runs, ends = np.array([t[0] for t in told]), np.array([t[1] for t in told])
            quarters = [f"{q:.1f}" for q in np.percentile(runs, [25, 50, 75], method="nearest")]
            end = "" if np.isnan(ends).all() else f"{np.median(ends):.0f}"
            missed = str(int(np.isinf(runs).sum()) or "")
            rows.append((goal, name, quarters[1], f"{quarters[0]} to {quarters[2]}", end, missed))
            sys.stdout.write(" | ".join(rows[-1]) + "\n")
            sys.stdout.flush()
    head = ("goal", "way", "runs until the best is found", "quartiles", "ends after", "never found")
    sys.stdout.write(text_table(head, rows))


if __name__ == "__main__":
    main()
