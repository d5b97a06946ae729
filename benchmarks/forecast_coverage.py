"""How often what was measured lies in the forecast's 90 % bands, inside of what was fitted and outside of it.

    python -m benchmarks.forecast_coverage [--replicas N] [--public FOLDER] [SWEEP ...]

Runs of known laws are made N times (18) with other errors: each logged loss jitters by 0.05 to 0.5 %, and each run
drifts about its law by 0 to 0.3 %, with a memory of a fifth of the run. Five arms are fitted, eleven predicted. Then
the curves of the experiments in docs/results/local, as their page holds them: four of seven arms are fitted, ten
times. `--public` takes the curves of `benchmarks.forecast_public`, each SWEEP a folder of runs.

A row tells how many predicted runs a number was given for, how many final losses and how many points of their curves
after the warm-up were in their band, half the median band, and the median error. Exit code 1 where the bands of known
laws hold less than 85 % of finals or points, or inside more than 97 % of finals.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from tests.forecast.synthetic import losses, trajectory

from benchmarks.forecast_public import FITTED, PREDICTED
from rewarm.commands.forecast import read
from rewarm.config.values import parse_tokens
from rewarm.forecast.coverage import Seen
from rewarm.forecast.csv_curves import read_csv
from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.fitted import study
from rewarm.forecast.laws import LAWS
from rewarm.forecast.options import Logged, Options
from rewarm.schedules import ScheduleSpec, lr_curve

PAGE = Path("docs/results/local/index.html")
JITTERS, DRIFTS = (0.0005, 0.0015, 0.005), (0.0, 0.001, 0.003)
LEAST, MOST = 0.85, 0.97
KNOWN = {
    "cosine 1.5e-4": trajectory("cosine", 1.5e-4), "cosine 3e-4": trajectory("cosine", 3e-4),
    "cosine 6e-4": trajectory("cosine", 6e-4), "constant 3e-5": trajectory("constant", 3e-5, warmup=0.0),
    "wsd 3e-4": trajectory("wsd", 3e-4),
}  # fmt: skip
ASKED = {
    "cosine 2.2e-4": trajectory("cosine", 2.2e-4), "cosine 4.5e-4": trajectory("cosine", 4.5e-4),
    "cosine 3e-4, two thirds": trajectory("cosine", 3e-4, steps=1300), "linear 3.5e-4": trajectory("linear", 3.5e-4),
    "infinite 3e-4": trajectory("infinite_cosine", 3e-4), "constant 3e-4": trajectory("constant", 3e-4),
    "wsd 1.5e-4": trajectory("wsd", 1.5e-4), "wsd 5e-4": trajectory("wsd", 5e-4),
    "cosine 9e-4": trajectory("cosine", 9e-4), "cosine 3e-4, twice as long": trajectory("cosine", 3e-4, steps=4000),
    "wsd 3e-4, thrice as long": trajectory("wsd", 3e-4, steps=6000),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One predicted run on one validation set. Shares of the loss."""

    name: str
    beyond: bool
    final: bool
    curve: float
    """Share of the points after the warm-up that lie in the band."""
    half: float
    error: float


def cases(fitted: Sequence[Curve], asked: Sequence[Curve], law: str) -> Iterator[Case]:
    """Yield how the asked runs lie in the bands of a study of the fitted ones, where a number is given for them."""
    result, seen = study(list(fitted), Options(paths=(), law=law)), Seen.of(fitted)
    for curve in asked:
        if seen.withheld(curve.trajectory, curve.last_step):
            continue
        for side, found in result.sides.items():
            steps, measured = curve.losses[side]
            after = steps > curve.trajectory.warmup_steps
            band = found.predict(curve.trajectory, steps[after])
            within = (band.low <= measured[after]) & (measured[after] <= band.high)
            yield Case(
                curve.name,
                bool(seen.beyond(curve.trajectory, curve.last_step)),
                bool(within[-1]),
                float(within.mean()),
                float(np.log(band.high[-1] / band.loss[-1])),
                float(abs(np.log(band.loss[-1] / measured[-1]))),
            )


def logged(name: str, of: Trajectory, law: str, rng: np.random.Generator, jitter: float, drift: float) -> Curve:
    """Return a run of a known law as it would have been logged: with a drift of its own, and jitter."""
    last = len(of.lr)
    steps = np.unique(np.concatenate([np.arange(0, 60, 5), np.linspace(0, last, 60)]).astype(int))
    way = steps / last
    kernel = drift**2 * np.exp(-np.abs(way[:, None] - way) / 0.2)
    found = {}
    for side in ("upstream", "downstream"):
        drifted = rng.multivariate_normal(np.zeros(len(way)), kernel) * np.minimum(1, way / 0.05)
        noise = drifted + jitter * rng.standard_normal(len(way))
        found[side] = (steps, losses(law, of, side, steps) * np.exp(noise))
    return Curve(name, name, of, found, last)


def known(law: str, replica: int) -> Iterator[Case]:
    """Yield the cases of one replica of a known law."""
    rng = np.random.default_rng([replica, 7])
    noise = (law, rng, JITTERS[replica % 3], DRIFTS[replica // 3 % 3])
    runs = [[logged(name, of, *noise) for name, of in group.items()] for group in (KNOWN, ASKED)]
    return cases(*runs, law)


def experiments() -> list[Curve]:
    """Return the re-warmed arms of docs/results/local, means over their seeds, from the page's charts and configs."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', PAGE.read_text(), re.DOTALL)
    assert text is not None
    page = json.loads(text[1])
    charts = {chart["id"]: chart["lines"] for chart in page["settings"][0]["charts"]}
    measured: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for chart, side in (("2", "downstream"), ("3", "upstream"), ("1a", "downstream"), ("1b", "upstream")):
        for line in charts[f"figure-{chart}"]:
            steps = np.round(np.array(line["x"]) / 4096).astype(np.int64)
            measured.setdefault(line["arm"], {}).setdefault(side, (steps, np.array(line["y"])))
    found = []
    for run in page["runs"]:
        arm, _, seed = run["name"].partition(",seed=")
        if arm in measured and arm != "scratch" and seed == "0":
            said = dict(re.findall(r"^ *(\w+): (\S+)$", run["config"].split("\nmodel:")[0], re.MULTILINE))
            lr, whole = float(said["max_lr"]), round(parse_tokens("horizon", said["horizon"]) / 4096)
            lowest, warmup = float(said["min_lr_ratio"]) * lr, round(float(said["warmup"]) * whole)
            spec = ScheduleSpec(said["name"], lr, lowest, warmup, whole)
            last = int(measured[arm]["upstream"][0][-1])
            of = Trajectory(lr_curve(spec, np.arange(1, last + 1)), 4096.0, 1e-4, spec.warmup_steps)
            found.append(Curve(arm, arm, of, measured[arm], last))
    return found


def parts(curves: Sequence[Curve], fitted: int, most: int = 10) -> Iterator[tuple[list[Curve], list[Curve]]]:
    """Yield some ways to fit so many of the curves and to predict the others."""
    ways = list(combinations(range(len(curves)), fitted))
    for i in np.random.default_rng(1).permutation(len(ways))[:most]:
        yield [curves[j] for j in ways[i]], [c for j, c in enumerate(curves) if j not in ways[i]]


def public(folder: Path) -> Iterator[tuple[list[Curve], list[Curve]]]:
    """Yield the published split of public curves, and five splits of four against five."""
    for size in sorted({path.name.split("_")[0] for path in folder.glob("*_cosine_24000.csv")}):
        curves = {name: read_csv(folder / f"{size}_{name}.csv", Logged()) for name in (*FITTED, *PREDICTED)}
        yield [curves[name] for name in FITTED], [curves[name] for name in PREDICTED]
        yield from parts(list(curves.values()), 4, 5)


def row(label: str, found: Sequence[Case]) -> str:
    if not found:
        return f"  {label:<28} none"
    final, curve = np.mean([case.final for case in found]), np.mean([case.curve for case in found])
    half, error = (np.median([getattr(case, name) for case in found]) for name in ("half", "error"))
    return f"  {label:<28}{len(found):>5}  final {final:4.0%}  curve {curve:4.0%}  half {half:.2%}  error {error:.2%}"


def show(title: str, found: Sequence[Case], *, each: bool = False) -> None:
    print(title)
    print(row("inside", [case for case in found if not case.beyond]))
    print(row("outside", [case for case in found if case.beyond]), flush=True)
    for name in dict.fromkeys(case.name for case in found) if each else ():
        print(row(f"  {name}", [case for case in found if case.name == name]), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", type=Path, nargs="*")
    parser.add_argument("--replicas", type=int, default=18)
    parser.add_argument("--public", type=Path)
    given = parser.parse_args()
    every: list[Case] = []
    for law in LAWS:
        found = [case for replica in range(given.replicas) for case in known(law, replica)]
        show(f"known law {law}", found)
        every += found
    show("all known laws", every, each=True)
    show("docs/results/local, cpt", [c for split in parts(experiments(), 4) for c in cases(*split, "cpt")])
    for law in ("multipower", "single") if given.public else ():
        show(f"public curves, {law}", [c for split in public(given.public) for c in cases(*split, law)])
    for sweep in given.sweeps:
        runs = [curve for curve in read(Options(paths=(sweep,))) if curve.finished]
        show(f"{sweep}, cpt", [c for split in parts(runs, max(3, len(runs) - 2)) for c in cases(*split, "cpt")])
    inside, outside = ([case for case in every if case.beyond == beyond] for beyond in (False, True))
    held = [np.mean([getattr(c, of) for c in group]) for group in (inside, outside) for of in ("final", "curve")]
    return 0 if min(held) >= LEAST and held[0] <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
