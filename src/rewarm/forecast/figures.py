"""The forecast's figures: how held-out runs were predicted, what is predicted, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rewarm.forecast.curves import Curve
from rewarm.forecast.fitted import Study
from rewarm.forecast.history import Array
from rewarm.forecast.holdout import Errors
from rewarm.forecast.output import Findings, steps_of
from rewarm.forecast.recommend import Outcome
from rewarm.style import MARKERS, PALE, PALETTE, STYLE, in_tokens, legend_below, save

MOST_CURVES = len(PALETTE)
"""Predicted curves that one figure can show apart."""


def _axes(rows: int, columns: int, height: float) -> tuple[Figure, Array]:
    figure = Figure(figsize=(4.6 * columns + 1.4, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=rows > 1)
    return figure, axes


def _tokens_axis(axes: Axes, study: Study) -> None:
    in_steps = all(curve.trajectory.tokens_per_step == 1 for curve in study.curves)
    axes.set_xlabel("steps" if in_steps else "tokens")
    in_tokens(axes)


def _loss_range(axes: Axes, values: Sequence[Array]) -> None:
    """Show what the values cover but for their most extreme hundredth: a spike must not flatten the rest."""
    joined = np.concatenate([np.asarray(v, dtype=float) for v in values])
    low, high = np.quantile(joined, [0.0, 0.995])
    margin = 0.06 * max(high - low, 1e-3)
    axes.set_ylim(low - margin, high + margin)


def fit_figure(study: Study) -> Figure:
    """Draw each run's measured losses against their prediction, and the errors below, for each validation set.

    Runs are predicted by fits that never saw them, where anything was held out.
    """
    sides = list(study.sides)
    figure, axes = _axes(2, len(sides), 6.4)
    held = bool(study.held_out)
    figure.suptitle(
        f"law {study.law}: measured losses (points), predicted "
        + ("without the run (lines)" if held else "(fit, lines)")
    )
    of = {curve.name: curve.trajectory for curve in study.curves}
    for column, side in enumerate(sides):
        top, bottom = axes[0, column], axes[1, column]
        shown = _shown(study, side)
        for e, colour, marker in zip(shown, cycle(PALETTE), cycle(MARKERS), strict=False):
            tokens = e.steps * of[e.run].tokens_per_step
            every = max(1, len(tokens) // 40)
            top.plot(tokens[::every], e.measured[::every], marker, color=colour, ms=3, alpha=0.55, mew=0)
            top.plot(tokens, e.predicted, color=colour, lw=1.5, label=e.run)
            bottom.plot(tokens, 100 * e.relative, color=colour, lw=1.2)
        bottom.axhline(0, color="black", lw=0.8)
        bottom.axhspan(-1, 1, color=PALE, alpha=0.15, lw=0)
        limit = max(1.5, 1.1 * float(np.quantile(np.abs(np.concatenate([100 * e.relative for e in shown])), 0.995)))
        bottom.set_ylim(-limit, limit)
        _loss_range(top, [v for e in shown for v in (e.measured, e.predicted)])
        top.set_title(f"{side} loss (nats a token)")
        bottom.set_title(f"{side}: error of the prediction (%)")
        _tokens_axis(bottom, study)
    legend_below(figure, axes[0, 0])
    return figure


def _shown(study: Study, side: str) -> list[Errors]:
    fitted = study.sides[side]
    return fitted.held_out or fitted.in_sample


def _measured(axes: Axes, curves: Sequence[Curve], side: str) -> list[Array]:
    drawn = []
    for i, curve in enumerate(curves):
        steps, losses = curve.losses[side]
        tokens = steps * curve.trajectory.tokens_per_step
        axes.plot(tokens, losses, ".-", color=PALE, lw=0.7, ms=3, alpha=0.7, label="" if i else "measured runs")
        drawn.append(losses)
    return drawn


def curves_figure(findings: Findings) -> Figure:
    """Draw the predicted curves with their bands over what was measured, for each validation set."""
    study = findings.study
    figure, axes = _axes(1, len(study.sides), 4.4)
    shown = findings.predicted[:MOST_CURVES]
    left_out = len(findings.predicted) - len(shown)
    figure.suptitle(
        "predicted loss curves with 90 % bands"
        + (f" (first {MOST_CURVES} of {left_out + MOST_CURVES})" if left_out else "")
    )
    for column, (name, side) in enumerate(study.sides.items()):
        panel = axes[0, column]
        drawn = _measured(panel, study.curves, name)
        for outcome, colour in zip(shown, cycle(PALETTE), strict=False):
            candidate = outcome.candidate
            steps = steps_of(candidate)
            band = side.predict(candidate.trajectory, steps)
            tokens = steps * candidate.trajectory.tokens_per_step
            label = candidate.label + (" (extrapolates)" if candidate.beyond else "")
            panel.plot(tokens, band.loss, color=colour, lw=1.7, ls="--" if candidate.beyond else "-", label=label)
            panel.fill_between(tokens, band.low, band.high, color=colour, alpha=0.13, lw=0)
            drawn.append(band.loss)
        _loss_range(panel, drawn)
        panel.set_title(f"{name} loss (nats a token)")
        _tokens_axis(panel, study)
    legend_below(figure, axes[0, 0])
    return figure


def pareto_figure(findings: Findings) -> Figure:
    """Draw the predicted front of final upstream against downstream loss, with the runs that were measured."""
    study = findings.study
    figure, axes = _axes(1, 1, 4.8)
    panel = axes[0, 0]

    def points(found: Sequence[Outcome]) -> tuple[list[float], list[float]]:
        return [o.final("downstream") for o in found], [o.final("upstream") for o in found]

    panel.plot(*points(findings.searched), ".", color=PALE, ms=4, alpha=0.5, label="candidates")
    front = points(findings.front)
    panel.plot(*front, "-o", color=PALETTE[0], ms=4, lw=1.5, label="predicted Pareto front")
    shown = list(zip(*front, strict=True))
    for curve, marker in zip(study.curves, cycle(MARKERS), strict=False):
        if not {"upstream", "downstream"} <= curve.losses.keys():
            continue
        x, y = curve.losses["downstream"][1][-1], curve.losses["upstream"][1][-1]
        panel.plot(x, y, marker, color=PALETTE[1], ms=7, mec="white", label=f"run {curve.name}")
        shown.append((float(x), float(y)))
    advice = findings.recommendation
    if advice and advice.chosen:
        chosen = advice.chosen
        up, down = chosen.sides["upstream"], chosen.sides["downstream"]
        errors = [[[b.loss[-1] - b.low[-1]], [b.high[-1] - b.loss[-1]]] for b in (down, up)]
        panel.errorbar(
            down.loss[-1], up.loss[-1], xerr=errors[0], yerr=errors[1],
            fmt="*", ms=13, color=PALETTE[2], capsize=3, label=f"recommended, 90 %:\n{chosen.label}",
        )  # fmt: skip
    if findings.start:
        panel.axhline(findings.start["upstream"], color="black", lw=0.8, ls=":", label="upstream loss before")
    # Bad candidates lie far off, and would press what matters into a corner.
    for limit, values in zip((panel.set_xlim, panel.set_ylim), zip(*shown, strict=True), strict=True):
        margin = 0.25 * max(max(values) - min(values), 0.02)
        limit(min(values) - margin, max(values) + margin)
    panel.set_xlabel("final downstream loss (nats a token)")
    panel.set_ylabel("final upstream loss (nats a token)")
    panel.set_title("lower left is better")
    panel.legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )
    return figure


def draw(findings: Findings, folder: Path) -> list[str]:
    """Draw what the findings hold into `folder`, each figure as PNG and as SVG; return the names of all files."""
    proxy = findings.study.proxied
    with rc_context(STYLE):
        figures = {"forecast-fit": fit_figure(findings.study)}
        if findings.predicted:
            figures["forecast-curves"] = curves_figure(findings)
        if findings.searched:
            figures["forecast-pareto"] = pareto_figure(findings)
        return [path.name for name, figure in figures.items() for path in save(figure, folder / name, proxy=proxy)]
