"""How every figure looks: one palette, one legend, one axis of tokens, and the files that a figure is written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter

from rewarm.text import marked

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
"""Okabe and Ito's colours, which people with any kind of colour vision can tell apart; no yellow on white."""
DARK = ("#4AA3E8", "#F0804A", "#2FC397", "#E39CC6", "#F0B63C", "#8FD3F8", "#A6A6AE")
"""The same for a dark page."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PALE = "#9a9a9a"
"""For what stands behind: runs that were measured, points that are no answer."""
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
    "savefig.dpi": 130,
    "svg.fonttype": "none",
    "svg.hashsalt": "rewarm",
}
"""Matplotlib's settings, for `rc_context`: figures are both made and saved under them."""


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend of `axes`, if it has one, under the figure, where it can hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = 2 if max(map(len, labels)) > 24 else 3 if len(labels) < 9 else 4
    size = 9.5 if len(labels) < 9 else 8.5
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=size)


def in_tokens(axes: Axes) -> None:
    """Write the numbers of the x axis as people write tokens: 500k, 2M."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def save(figure: Figure, path: Path, *, proxy: bool = False) -> list[Path]:
    """Write the figure to `path` with the endings .png and .svg added, and return both paths.

    Where a `proxy` stands in for old data, all its words say so.
    """
    for words in figure.findobj(Text) if proxy else ():
        assert isinstance(words, Text)
        words.set_text(marked(words.get_text(), proxy=True))
    png, svg = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")
    figure.savefig(png)
    figure.savefig(svg, metadata={"Date": None})
    return [png, svg]
