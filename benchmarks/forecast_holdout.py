"""How well held-out arms of a finished sweep are predicted from three of its runs.

    python -m benchmarks.forecast_holdout SWEEP [--fit "NAME;NAME;NAME"] [--law LAW]

Without `--fit` the runs with the lowest, the highest and the middle max LR are fitted, so that the others lie
between. For each law: the errors of every other run, those of the naive guess that it goes as the fitted run with the
nearest max LR did, and whether the law meets the targets: final losses within 1 %, curves after warm-up within 2 %
mean absolute error. Exit code 1 where `--law` (cpt: no choosing after the fact) misses them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rewarm.commands.forecast import read, usable
from rewarm.forecast.features import units_of
from rewarm.forecast.fitted import score, sides_of
from rewarm.forecast.holdout import Errors, hold_out, pick
from rewarm.forecast.laws import LAWS
from rewarm.forecast.options import Options

FINAL, CURVE = 0.01, 0.02


def spanning(curves: list) -> list[str]:
    ranked = sorted(curves, key=lambda c: (float(c.trajectory.lr.max()), c.name))
    return [ranked[i].name for i in (0, len(ranked) // 2, -1)]


def errors_of_law(law: str, curves: list, names: list[str]) -> list[Errors]:
    units = units_of([c.trajectory for c in curves])
    fitted = pick(curves, names)
    others = [i for i in range(len(curves)) if i not in fitted]
    return [e for side in sides_of(curves) for e in hold_out(law, None, curves, side, units, 0, [others])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--fit", default="")
    parser.add_argument("--law", choices=LAWS, default="cpt")
    given = parser.parse_args()
    curves = usable(read(Options(paths=(given.sweep,))), "cpt")
    curves = [c for c in curves if c.finished and c.trajectory.replay == 0 and c.trajectory.shifted]
    names = [name for name in given.fit.split(";") if name] or spanning(curves)
    print(f"fitted: {', '.join(names)}; predicted: {', '.join(c.name for c in curves if c.name not in names)}")
    met = {}
    for law in LAWS:
        errors = errors_of_law(law, curves, names)
        finals = [abs(e.final) for e in errors]
        means = [e.curve for e in errors if e.curve is not None]
        met[law] = good = max(finals) <= FINAL and max(means) <= CURVE
        print(f"\n{law}: score {score(errors):.4f}, worst final {max(finals):.2%}, worst curve {max(means):.2%}"
              f" -> {'meets' if good else 'misses'} the targets")  # fmt: skip
        for e in errors:
            warmup = "" if e.warmup is None else f"  in warm-up {e.warmup:.2%}"
            beyond = f"  extrapolated: {'; '.join(e.beyond)}" if e.beyond else ""
            final = f"final {e.final:+.2%} (naive {e.naive:+.2%})"
            print(f"  {e.run:<32}{e.side:<12}{final}  curve {e.curve:.2%}{warmup}{beyond}")
    return 0 if met[given.law] else 1


if __name__ == "__main__":
    sys.exit(main())
