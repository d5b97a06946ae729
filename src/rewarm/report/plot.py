"""Draws charts with matplotlib, as PNG and SVG."""

from __future__ import annotations

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

from rewarm.report.charts import Chart, Line

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
"""Okabe and Ito's colours, which people with any kind of colour vision can tell apart; no yellow on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: dict[str, Any] = {"solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1.2, 1.6))}
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.9,
    "svg.fonttype": "none",
    "svg.hashsalt": "rewarm",
}
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
        color = PALETTE[line.color]
        axes.plot(line.x, line.y, color=color, linestyle=DASHES[line.dash], label=line.label)
        if line.seeds > 1:
            axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.22, linewidth=0)
    for end in sorted({line.warmup for line in chart.lines if line.warmup > 0}):
        axes.axvline(end, color="#888888", linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
    last = max((line.warmup for line in chart.lines), default=0.0)
    if last > 0:
        axes.annotate(
            "warm-up ends",
            (last, 0.985),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color="#666666",
        )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if chart.id == "learning-rates":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    seeds = {line.seeds for line in chart.lines}
    if max(seeds) > 1:
        count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        axes.set_xlabel(f"{chart.x_label}  (mean of {count} seeds, shaded from the lowest to the highest)")
    _legend(figure, axes)


def _legend(figure: Figure, axes: Axes) -> None:
    """Put the legend under the axes, where it can hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) > 24 else 3 if len(labels) < 9 else 4
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=9.5 if len(labels) < 9 else 8.5
    )


def _path(figure: Figure, axes: Axes, chart: Chart) -> None:
    """Draw how both perplexities move: colour is tokens, the marker is the arm."""
    norm = Normalize(0.0, max(line.tokens[-1] for line in chart.lines))
    for i, line in enumerate(chart.lines):
        points = np.column_stack([line.x, line.y])
        segments = np.stack([points[:-1], points[1:]], axis=1)
        axes.add_collection(LineCollection(list(segments), colors="#bbbbbb", linewidths=0.9, zorder=1))
        shown = np.unique(np.linspace(0, len(points) - 1, 26).round().astype(np.int64))
        tokens = np.array(line.tokens)[shown]
        marker = MARKERS[i % len(MARKERS)]
        x, y = points[shown].T
        axes.scatter(x, y, c=tokens, cmap="viridis", norm=norm, s=26, marker=marker, zorder=2)
        axes.plot([], [], marker, color="#555555", markersize=5.5, label=line.label)
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
    _legend(figure, axes)


def _points(figure: Figure, axes: Axes, chart: Chart) -> None:
    front = [chart.lines[i] for i in chart.front]
    axes.plot([line.x[0] for line in front], [line.y[0] for line in front], color="#999999", linewidth=1.2, zorder=1)
    for i, line in enumerate(chart.lines):
        face = PALETTE[line.color] if i in chart.front else "white"
        axes.plot(
            line.x, line.y, MARKERS[i // 7 % 7], color=PALETTE[line.color], markerfacecolor=face, markersize=8,
            markeredgewidth=1.8, label=line.label, zorder=2, linestyle="none",
        )  # fmt: skip
        axes.plot([line.x[0]] * 2, [line.low[0], line.high[0]], color=PALETTE[line.color], linewidth=1, zorder=1)
    _legend(figure, axes)


DRAW = {"curve": _curve, "path": _path, "points": _points}


def draw(chart: Chart, folder: Path) -> list[Path]:
    """Write `folder/ID.png` and `folder/ID.svg` and return them."""
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        _frame(axes, chart)
        DRAW[chart.kind](figure, axes, chart)
        paths = [folder / f"{chart.id}.{kind}" for kind in ("png", "svg")]
        figure.savefig(paths[0], dpi=130)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def draw_all(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Draw all charts into `folder`."""
    return [path for chart in charts for path in draw(chart, folder)]


__all__ = ["PALETTE", "Line", "draw", "draw_all"]
