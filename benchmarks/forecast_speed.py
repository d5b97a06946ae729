"""Time of reading, fitting and holding out six curves of 131,296 steps, the paper's horizon.

    python benchmarks/forecast_speed.py [--steps N] [--law LAW]

The curves follow a known law with 0.5 % noise, so that the worst error on schedules that were not fitted can be told.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.features import features, units_of
from rewarm.forecast.fit import fit, points_of
from rewarm.forecast.fitted import study
from rewarm.forecast.laws import LAWS, form_of
from rewarm.forecast.options import Options
from rewarm.schedules import ScheduleSpec, lr_curve

TRUTH = {
    "L0": 2.3, "A": 0.5, "C": 0.18, "B": 0.37, "alpha": 0.5, "S_pt": 0.5, "E": 60.0, "beta": 0.3,
    "memory": 1000 * 2_260_992.0, "G": 3.0, "gamma": 0.5, "delta": 0.6,
}  # fmt: skip
FITTED = [
    ("cosine", 1.5e-4, 0.01), ("cosine", 3e-4, 0.01), ("cosine", 6e-4, 0.01),
    ("constant", 3e-5, 0.0), ("wsd", 3e-4, 0.01), ("cosine", 3e-4, 0.0),
]  # fmt: skip
UNSEEN = [
    ("infinite_cosine", 3e-4, 0.01),
    ("linear", 4.5e-4, 0.005),
    ("cosine_neox", 3e-4, 0.01),
    ("wsd", 5e-4, 0.02),
]


def trajectory(name: str, max_lr: float, warmup: float, steps: int) -> Trajectory:
    warmup_steps = round(warmup * steps)
    spec = ScheduleSpec(name, max_lr, 0.1 * max_lr, warmup_steps, steps)
    return Trajectory(lr_curve(spec, np.arange(1, steps + 1)), 2_260_992.0, 3e-5, warmup_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=131_296)
    parser.add_argument("--law", choices=LAWS, default="cpt")
    given = parser.parse_args()
    runs = [trajectory(*arm, given.steps) for arm in FITTED]
    units = units_of(runs)
    rng = np.random.default_rng(0)

    def true(of: Trajectory, steps: np.ndarray) -> np.ndarray:
        points = features(of, steps, units)
        return form_of(given.law, points, None).bind(points, units).loss(TRUTH)[0]

    steps = np.unique(np.concatenate([np.arange(0, given.steps // 50, 50), np.arange(0, given.steps + 1, 100)]))
    curves = [
        Curve(f"{name} {max_lr:g} {warmup:g}", f"{i}", of,
              {"upstream": (steps, true(of, steps) * np.exp(0.005 * rng.standard_normal(len(steps))))}, given.steps)
        for i, ((name, max_lr, warmup), of) in enumerate(zip(FITTED, runs, strict=True))
    ]  # fmt: skip
    start = time.perf_counter()
    points = points_of(curves, "upstream", units)
    found = fit(form_of(given.law, points.features, None), points, units, rng)
    print(f"fit of six curves of {given.steps:,} steps: {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    study(curves, Options(paths=(), law=given.law))
    print(f"with hold-out of each and 100 refits: {time.perf_counter() - start:.2f} s")
    for arm in UNSEEN:
        of = trajectory(*arm, given.steps)
        errors = found.predict(features(of, steps, units)) / true(of, steps) - 1
        print(f"unseen {arm[0]} {arm[1]:g}: worst error {np.abs(errors).max():.3%}, final {errors[-1]:+.3%}")


if __name__ == "__main__":
    main()
