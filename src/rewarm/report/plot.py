"""Draws charts with matplotlib, as PNG and SVG."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rewarm.points import spread_out
from rewarm.report.charts import Chart
from rewarm.style import MARKERS, PALETTE, STYLE, in_tokens, legend_below, save

DASHES: dict[str, Any] = {"solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1.2, 1.6))}
ARROW: dict[str, Any] = {"arrowstyle": "-|>", "color": "#666666", "shrinkA": 0, "shrinkB": 4, "lw": 0.9}
SIZE = (7.4, 4.7)
"""Inches: about the width of a README at 130 dots an inch."""


def _frame(axes: Axes, chart: Chart) -> None:
    axes.set_title(chart.title, pad=10)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_xlim(*chart.x_range)
    axes.set_ylim(*chart.y_range)


def _curve(figure: Figure, axes: Axes, chart: Chart) -> None:
    for line in chart.lines:
        color = PALETTE[line.look.color]
        axes.plot(line.x, line.y, color=color, linestyle=DASHES[line.look.dash], label=line.label)
        if line.seeds > 1 and line.low:
            axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.22, linewidth=0)
    ends = {line.warmup for line in chart.lines if 0 < line.warmup <= chart.x_range[1]}
    for end in sorted(ends):
        axes.axvline(end, color="#888888", linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
    if ends:
        axes.annotate(
            "warm-up ends",
            (max(ends), 0.985),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color="#666666",
        )
    in_tokens(axes)
    if chart.id == "learning-rates":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    seeds = {line.seeds for line in chart.lines if line.low}
    if seeds and max(seeds) > 1:
        count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        axes.set_xlabel(f"{chart.x_label}  (mean of {count} seeds, shaded from the lowest to the highest)")
    legend_below(figure, axes)


def _path(figure: Figure, axes: Axes, chart: Chart) -> None:
    """Draw how both perplexities move: colour is tokens, the marker is the arm."""
    norm = Normalize(0.0, max(line.tokens[-1] for line in chart.lines) or 1.0)
    for i, line in enumerate(chart.lines):
        points = np.column_stack([line.x, line.y])
        segments = np.stack([points[:-1], points[1:]], axis=1)
        axes.add_collection(LineCollection(list(segments), colors="#bbbbbb", linewidths=0.9, zorder=1))
        shown = spread_out(len(points), 26)
        tokens = np.array(line.tokens)[shown]
        marker = MARKERS[i % len(MARKERS)]
        x, y = points[shown].T
        axes.scatter(x, y, c=tokens, cmap="viridis", norm=norm, s=26, marker=marker, zorder=2)
        axes.plot([], [], marker, color="#555555", markersize=5.5, label=line.label)
        # The arrow says which way it goes: at a third of the way, where lines lie apart.
        k = max(1, len(points) // 3)
        axes.annotate("", points[min(k + 1, len(points) - 1)], points[k - 1], arrowprops=ARROW, zorder=3)
        axes.plot(*points[0], "o", markersize=13, markerfacecolor="none", markeredgecolor="#222222", zorder=3)
        if line.warmup > 0:
            at = np.interp(line.warmup, line.tokens, line.x), np.interp(line.warmup, line.tokens, line.y)
            axes.plot(*at, "s", markersize=11, markerfacecolor="none", markeredgecolor="#222222", zorder=3)
    axes.plot([], [], "o", markersize=11, markerfacecolor="none", markeredgecolor="#222222", label="start")
    if any(line.warmup > 0 for line in chart.lines):
        axes.plot([], [], "s", markersize=9, markerfacecolor="none", markeredgecolor="#222222", label="warm-up ends")
    bar = figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes, format=EngFormatter(sep=""), pad=0.015)
    bar.set_label("tokens")
    bar.outline.set_visible(False)
    legend_below(figure, axes)


def _points(figure: Figure, axes: Axes, chart: Chart) -> None:
    front = [chart.lines[i] for i in chart.front]
    axes.plot([line.x[0] for line in front], [line.y[0] for line in front], color="#999999", linewidth=1.2, zorder=1)
    for i, line in enumerate(chart.lines):
        color = PALETTE[line.look.color]
        marker = MARKERS[tuple(DASHES).index(line.look.dash)]
        face = color if i in chart.front else "white"
        axes.plot(
            line.x, line.y, marker, color=color, markerfacecolor=face, markersize=8,
            markeredgewidth=1.8, label=line.label, zorder=3, linestyle="none",
        )  # fmt: skip
        axes.plot([line.x[0]] * 2, [line.low[0], line.high[0]], color=color, linewidth=1, zorder=2)
        if chart.start and not line.far:
            axes.annotate("", (line.x[0], line.y[0]), chart.start, arrowprops=ARROW | {"alpha": 0.35}, zorder=1)
    styles = itertools.product(DASHES.values(), (".", "+", "x"))
    for (label, points, on_line), (dash, marker) in zip(chart.averages, itertools.cycle(styles), strict=False):
        x, y = zip(*points, strict=True)
        style = dash if on_line else "none"
        axes.plot(x, y, marker, linestyle=style, color="#555555", linewidth=0.9, markersize=6, label=label, zorder=2)
    if chart.start:
        axes.plot(*chart.start, "o", markersize=12, color="#222222", markerfacecolor="none", label="start")
    axes.set_xlabel(f"{chart.x_label}; filled: on the Pareto front")
    legend_below(figure, axes)


DRAW = {"curve": _curve, "path": _path, "points": _points}


def draw(chart: Chart, folder: Path, *, proxy: bool = False) -> list[Path]:
    """Write `folder/ID.png` and `folder/ID.svg` and return them; `proxy` as in `style.save`."""
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        _frame(axes, chart)
        DRAW[chart.kind](figure, axes, chart)
        return save(figure, folder / chart.id, proxy=proxy)


def draw_all(charts: Sequence[Chart], folder: Path, *, proxy: bool = False) -> list[Path]:
    """Draw all charts into `folder`; `proxy` as in `style.save`."""
    return [path for chart in charts for path in draw(chart, folder, proxy=proxy)]
