"""Curves of known laws, as trainers would have logged them."""

from __future__ import annotations

import numpy as np

from rewarm.forecast.curves import Curve, Trajectory
from rewarm.forecast.features import Units, features, units_of
from rewarm.forecast.laws import LAWS, form_of
from rewarm.schedules import ScheduleSpec, lr_curve

TOKENS_PER_STEP = 2048.0
FINAL_LR = 3e-5
TRUTH = {
    "upstream": {"L0": 2.3, "A": 0.5, "C": 0.18, "B": 0.37},
    "downstream": {"L0": 2.6, "A": 0.4, "C": 0.2, "B": -0.5},
    "shapes": {
        "alpha": 0.5, "S_pt": 0.5, "E": 60.0, "beta": 0.3, "memory": 150 * TOKENS_PER_STEP,
        "G": 3.0, "gamma": 0.5, "delta": 0.6, "rho": 0.05,
    },
}  # fmt: skip
"""Parameters in the units of `UNITS`: those of the papers' example fits, near enough."""


def trajectory(
    name: str, max_lr: float, *, warmup: float = 0.01, steps: int = 2000, replay: float = 0.0
) -> Trajectory:
    warmup_steps = round(warmup * steps)
    spec = ScheduleSpec(name, max_lr, 0.1 * max_lr, warmup_steps, steps)
    lr = lr_curve(spec, np.arange(1, steps + 1))
    return Trajectory(lr, TOKENS_PER_STEP, FINAL_LR, warmup_steps, replay)


UNITS: Units = units_of([trajectory("constant", 6e-4)])


def losses(
    law: str, of: Trajectory, side: str, steps: np.ndarray, replay_term: str | None = None, units: Units = UNITS
) -> np.ndarray:
    """Return the losses that the true law gives after each of `steps`."""
    points = features(of, steps, units)
    form = form_of(law, points, None)
    if replay_term and LAWS[law].shift:
        form = type(form)(law, form.history_known, form.histories_differ, replay_term)
    values = TRUTH[side] | TRUTH["shapes"]
    return form.bind(points, units).loss(values)[0]


def curve(
    name: str,
    of: Trajectory,
    *,
    law: str = "cpt",
    noise: float = 0.005,
    seed: int = 0,
    replay_term: str | None = None,
) -> Curve:
    """Return a measured curve of both validation sets, with log-normal noise."""
    last = len(of.lr)
    steps = np.unique(np.concatenate([np.arange(0, 60, 5), np.linspace(0, last, 60)]).astype(int))
    rng = np.random.default_rng([seed, sum(map(ord, name))])
    measured = {}
    for side in ("upstream", "downstream"):
        true = losses(law, of, side, steps, replay_term)
        measured[side] = (steps, true * np.exp(noise * rng.standard_normal(len(steps))))
    return Curve(name, name, of, measured, last)


def arms(law: str = "cpt", noise: float = 0.005) -> list[Curve]:
    """Return four arms that tell the parameters of every law apart."""
    found = [
        ("low", trajectory("cosine", 1.5e-4)),
        ("high", trajectory("cosine", 6e-4)),
        ("constant", trajectory("constant", 3e-5, warmup=0.0)),
        ("wsd", trajectory("wsd", 3e-4)),
    ]
    return [curve(name, of, law=law, noise=noise) for name, of in found]
