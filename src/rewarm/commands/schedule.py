"""`rewarm schedule`: the learning-rate curve that training would use, drawn and tabulated without a model."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rewarm.commands.begin import begin
from rewarm.config.plan import Plan
from rewarm.config.schema import Config
from rewarm.schedules import Curve, landmarks, lr_curve
from rewarm.storage import make_dir


def _write_csv(path: Path, plan: Plan, curve: Curve) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "tokens", "lr"))
        writer.writerows((step, step * plan.tokens_per_step, repr(float(lr))) for step, lr in enumerate(curve))


def _draw(path: Path, config: Config, plan: Plan, curve: Curve) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from rewarm.style import PALETTE, STYLE, in_tokens

    with rc_context(STYLE):
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.add_subplot()
        tokens = np.arange(len(curve)) * plan.tokens_per_step
        axes.plot(tokens, curve, color=PALETTE[0])
        for name, step in landmarks(plan.schedule).items():
            if 1 < step < len(curve) - 1:
                axes.axvline(step * plan.tokens_per_step, color="0.6", linestyle=":", linewidth=1)
                at = (step * plan.tokens_per_step, curve.max() * 1.05)
                axes.annotate(name, at, xytext=(3, 0), textcoords="offset points", fontsize=8, color="0.35")
        axes.set(xlabel="tokens", ylabel="learning rate", title=f"{config.schedule.name}, max LR {config.max_lr:g}")
        axes.set_ylim(0, curve.max() * 1.12)
        in_tokens(axes)
        figure.savefig(path)


def schedule(arguments: Sequence[str]) -> None:
    """Draw and tabulate the curve that the arguments ask for."""
    asked = begin("schedule", arguments)
    if asked is not None:
        preview(asked.config, asked.plan)


def preview(config: Config, plan: Plan) -> None:
    """Write `schedule.csv` (step, tokens, lr; one row a step) and `schedule.png`, and print the landmarks."""
    folder = make_dir(Path(config.run_dir), "run_dir")
    curve = lr_curve(plan.schedule, np.arange(plan.steps + 1))
    _write_csv(folder / "schedule.csv", plan, curve)
    _draw(folder / "schedule.png", config, plan, curve)
    sys.stdout.write(f"{'':<15}{'step':>10}{'tokens':>18}{'lr':>12}\n")
    marks = landmarks(plan.schedule)
    if plan.steps < plan.schedule.total_steps:
        marks = {name: step for name, step in marks.items() if step <= plan.steps} | {"stop": plan.steps}
    for name, step in marks.items():
        row = f"{step:>10,}{step * plan.tokens_per_step:>18,}{curve[min(step, plan.steps)]:>12.4g}"
        sys.stdout.write(f"{name:<15}{row}\n")
    sys.stdout.write(f"{folder / 'schedule.csv'}\n{folder / 'schedule.png'}\n")
