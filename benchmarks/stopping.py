"""Leaving arms early, judged by replay: what it saves, and whether a winner was stopped.

    python -m benchmarks.stopping [--runs FOLDER ...] [--sweeps N] [--jobs N] [--out FILE]

Finished sweeps are run again on paper: so many arms at once, each showing its losses evaluation by evaluation.
Without --runs they are made of docs/results/curves/recipes.csv: one shape or one share of replay with all max LRs,
for each seed. Three ways are compared: no stopping, `sweep.stop=forecast`, and ASHA (Optuna's
SuccessiveHalvingPruner), which ranks by present losses. ASHA knows one number, so that it is compared where there is
a goal.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from benchmarks.recipes_table import COMMON, SHAPES
from rewarm.commands.forecast import read
from rewarm.config.compose import compose_config
from rewarm.config.plan import make_plan
from rewarm.config.schema import SIDES
from rewarm.forecast.curves import FEWEST_POINTS, Curve, Trajectory
from rewarm.forecast.history import Array
from rewarm.forecast.options import Options
from rewarm.forecast.stopping import Asked, hopeless, telling_order
from rewarm.points import pareto_front
from rewarm.schedules import lr_curve
from rewarm.text import text_table

BEYOND = 100.0
"""What is added to a value that does not keep to the limit."""
TABLE = Path(__file__).parent.parent / "docs" / "results" / "curves" / "recipes.csv"
GOALS = {
    "both losses": Options(paths=()),
    "weights=1,1": Options(paths=(), weights=(1.0, 1.0)),
    "max_forgetting=0.5": Options(paths=(), max_forgetting=0.5),
    "max_forgetting=1": Options(paths=(), max_forgetting=1.0),
}


def curves_of_table(path: Path = TABLE) -> list[Curve]:
    """Return the runs of the table, as `rewarm forecast` would read them."""
    trajectories: dict[tuple[str, ...], Trajectory] = {}
    base = {shape: compose_config(*COMMON, *words) for shape, words in SHAPES.items()}
    found = []
    with path.open(newline="") as file:
        for (shape, max_lr, replay, seed), lines in groupby(
            csv.DictReader(file), lambda r: (r["shape"], r["max_lr"], r["replay"], r["seed"])
        ):
            rows, recipe = list(lines), (shape, max_lr, replay)
            if recipe not in trajectories:
                config = replace(base[shape], max_lr=float(max_lr), replay=float(replay))
                plan = make_plan(config)
                trajectories[recipe] = Trajectory(
                    lr=lr_curve(plan.schedule, np.arange(1, plan.steps + 1)),
                    tokens_per_step=plan.tokens_per_step,
                    start_lr=config.model.final_lr,
                    warmup_steps=plan.schedule.warmup_steps,
                    replay=config.replay,
                )
            steps = np.array([int(row["step"]) for row in rows])
            losses = {side: (steps, np.array([float(row[side]) for row in rows])) for side in SIDES}
            name = "_".join(recipe)
            found.append(Curve(f"{name}_{seed}", name, trajectories[recipe], losses, int(steps[-1])))
    return found


def sweeps_of_table() -> Iterator[tuple[str, list[Curve]]]:
    """Yield sweeps out of the table: one shape or one share of replay, with all max LRs, of one seed."""
    curves = curves_of_table()
    for seed in ("0", "1"):
        for place, kind in ((0, "shape"), (2, "replay")):
            for value in sorted({_words(curve)[place] for curve in curves}):
                chosen = [c for c in curves if _words(c)[place] == value and _words(c)[3] == seed]
                yield f"{kind} {value}, seed {seed}", sorted(chosen, key=lambda c: float(_words(c)[1]))


def _words(curve: Curve) -> tuple[str, str, str, str]:
    shape, max_lr, replay, seed = curve.name.rsplit("_", 3)
    return shape, max_lr, replay, seed


@dataclass
class State:
    """A sweep that is replayed."""

    curves: Sequence[Curve]
    shown: dict[str, int] = field(default_factory=dict)
    """Evaluations of each run that has begun."""
    stopped: set[str] = field(default_factory=set)
    seconds: float = 0.0

    def so_far(self, curve: Curve) -> Curve:
        """Return what a run has shown."""
        count = self.shown[curve.name]
        return replace(curve, losses={side: (s[:count], v[:count]) for side, (s, v) in curve.losses.items()})

    def ended(self, curve: Curve) -> bool:
        """Return whether a run has come to its end."""
        return self.shown.get(curve.name, 0) == len(curve.losses[SIDES[0]][0])

    @property
    def tokens(self) -> float:
        """Return the tokens that were trained on."""
        begun = [(c, self.shown[c.name]) for c in self.curves if c.name in self.shown]
        return sum(float(c.losses[SIDES[0]][0][n - 1]) * c.trajectory.tokens_per_step for c, n in begun if n)


Rule = Callable[[State, Sequence[Curve], Sequence[Curve]], set[str]]
"""From the state, the runs that are running and those that wait, to the names of those to give up."""


def by_forecast(options: Options) -> Rule:
    """Return the rule of `sweep.stop=forecast`."""

    def rule(state: State, running: Sequence[Curve], waiting: Sequence[Curve]) -> set[str]:
        seen = [state.so_far(c) for c in state.curves if state.shown.get(c.name, 0) >= FEWEST_POINTS]
        known = {c.name: c for c in seen}
        left = [*(c for c in running if state.shown[c.name] >= FEWEST_POINTS), *waiting]
        return set(hopeless(seen, {c.name: Asked(c.trajectory, known.get(c.name)) for c in left}, options))

    return rule


def by_halving(options: Options, factor: int) -> Rule:
    """Return the rule of ASHA, by the present value of the goal. Beyond the limit counts as far worse."""
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    study = optuna.create_study(
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)
    )
    trials: dict[str, optuna.Trial] = {}
    told: dict[str, int] = {}

    def rule(state: State, running: Sequence[Curve], _: Sequence[Curve]) -> set[str]:
        found = set()
        for curve in running:
            trial = trials.setdefault(curve.name, study.ask())
            for i in range(told.get(curve.name, 1), state.shown[curve.name]):  # the first is before any update
                if curve.name not in found:
                    trial.report(value_of(curve, options, i), i)
                    if trial.should_prune():
                        found.add(curve.name)
            told[curve.name] = state.shown[curve.name]
        return found

    return rule


def value_of(curve: Curve, options: Options, i: int) -> float:
    """Return the value of the goal at a run's i-th evaluation; much more where it keeps not to the limit."""
    up, down = (float(curve.losses[side][1][i]) for side in SIDES)
    weights = options.weights or (0.0, 1.0)
    lost = up - float(curve.losses["upstream"][1][0])
    over = options.max_forgetting is not None and lost > options.max_forgetting
    return weights[0] * up + weights[1] * down + (BEYOND + lost if over else 0.0)


def play(curves: Sequence[Curve], jobs: int, rule: Rule, every: int) -> State:
    """Replay a sweep: each tick, all that run show one more evaluation; each `every` ticks the rule is asked."""
    state, waiting, running, tick = State(curves), list(curves), [], 0
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(waiting.pop(0))
            state.shown[running[-1].name] = 1
        tick += 1
        for curve in running:
            state.shown[curve.name] += 1
        running = [c for c in running if not state.ended(c)]
        if tick % every == 0:
            began = time.monotonic()
            state.stopped |= rule(state, running, waiting)
            state.seconds += time.monotonic() - began
            running, waiting = ([c for c in group if c.name not in state.stopped] for group in (running, waiting))
    return state


def winners(curves: Sequence[Curve], options: Options) -> list[Curve]:
    """Return the runs that win when all are run to their ends."""
    if options.recommends:
        return [min(curves, key=lambda c: value_of(c, options, -1))]
    ends = [tuple(float(c.losses[side][1][-1]) for side in SIDES) for c in curves]
    return [curves[i] for i in pareto_front(ends)]


def judged(curves: Sequence[Curve], options: Options, state: State) -> tuple[float, int, int, float]:
    """Return the share of tokens saved, winners stopped, winners, and the regret in nats (NaN without a goal)."""
    best = winners(curves, options)
    lost = [c for c in best if c.name in state.stopped]
    whole = sum(c.planned_steps * c.trajectory.tokens_per_step for c in curves)
    regret = np.nan
    if options.recommends:
        ended = [value for c in curves if state.ended(c) and (value := value_of(c, options, -1)) < BEYOND]
        regret = min(ended, default=np.inf) - value_of(best[0], options, -1)
    return 1 - state.tokens / whole, len(lost), len(best), regret


def _regret(found: Array) -> str:
    """Return the mean and the largest of regrets, and in how many sweeps no finished run keeps to the limit."""
    told = found[np.isfinite(found)]
    none = int(np.isinf(found).sum())
    text = f"{told.mean():.4f}, at most {told.max():.4f}" if len(told) else ""
    return text + (f"; none within the limit in {none}" if none else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--sweeps", type=int)
    parser.add_argument("--goals", nargs="*", default=list(GOALS))
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--orders", nargs="*", default=["telling"], help="telling, listed, or seeds of a shuffle")
    given = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    sweeps = [(str(path), read(Options(paths=(path,)))) for path in given.runs] or list(sweeps_of_table())
    rows = []
    for goal in given.goals:
        options = GOALS[goal]
        for order in given.orders:
            ways = {"forecast": lambda: by_forecast(options)}  # noqa: B023 - called at once
            if options.recommends:
                ways |= {f"ASHA {f}": (lambda f=f: by_halving(options, f)) for f in (2, 4)}  # noqa: B023
            for way, make in ways.items():
                found, seconds = [], 0.0
                for _, curves in sweeps[: given.sweeps]:
                    listed = list(curves)
                    if order == "telling":
                        listed = [curves[i] for i in telling_order([c.trajectory for c in curves])]
                    elif order != "listed":
                        np.random.default_rng(int(order)).shuffle(listed)  # type: ignore[arg-type]
                    state = play(listed, given.jobs, make(), 1 if way != "forecast" else given.every)
                    found.append(judged(curves, options, state))
                    seconds += state.seconds
                saved, lost, of, regret = (np.array(column) for column in zip(*found, strict=True))
                cells = (
                    f"{np.median(saved):.0%}", f"{saved.min():.0%} to {saved.max():.0%}",
                    f"{lost.sum()} of {of.sum()}",
                    _regret(regret),
                    f"{seconds:.0f}",
                )  # fmt: skip
                rows.append((goal, order, way, *cells))
                sys.stdout.write(" | ".join(rows[-1]) + "\n")
                sys.stdout.flush()
    head = ("goal", "order", "way", "tokens saved", "from, to", "winners stopped", "regret", "seconds")
    sys.stdout.write(text_table(head, rows))


if __name__ == "__main__":
    main()
