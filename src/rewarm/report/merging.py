"""What averages of checkpoints come to, beside the arms of the sweep: a table, words and a figure."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rewarm.config.schema import SIDES
from rewarm.errors import DataError
from rewarm.report.arms import Arm
from rewarm.runs.run import Run
from rewarm.text import text_table

log = logging.getLogger(__name__)

FOLDER, STEM = "report", "merge"
"""Where in a run's folder the files lie, and what their names begin with."""
SAME = 1e-3
"""Nats by which two scores of one model may differ, on different machines."""
Losses = tuple[float, float]
"""Upstream and downstream loss, nats a token."""


@dataclass(frozen=True)
class Row:
    """An average that was scored."""

    label: str
    scores: Mapping[str, float]
    made_of: Mapping[str, float]
    """The weight of each model in it, by its name."""
    alpha: float | None = None
    """How far it lies on the line from start to end."""

    @property
    def losses(self) -> Losses:
        """Return both losses."""
        return self.scores["upstream/loss"], self.scores["downstream/loss"]

    @property
    def is_end(self) -> bool:
        """Return whether it is one of the models themselves."""
        return len([weight for weight in self.made_of.values() if weight]) == 1


@dataclass(frozen=True)
class Point:
    """Where an arm of the sweep ended, the mean of its seeds."""

    name: str
    losses: Losses
    seeds: int


@dataclass(frozen=True)
class Merged:
    """What `rewarm merge` has found and left in the folder of a run."""

    run: str
    rows: tuple[Row, ...]
    said: tuple[str, ...]
    figure: Path | None = None
    """Its figure, as SVG."""

    @property
    def on_line(self) -> bool:
        """Return whether its averages lie on a line between two models, in their order."""
        return any(row.alpha is not None for row in self.rows)

    @property
    def title(self) -> str:
        """Return what was averaged."""
        ends = " and ".join(Path(name).name for name in self.rows[0].made_of)
        return f"averages of {ends if self.on_line else self.run}"


def merged_of(arms: Sequence[Arm]) -> list[Merged]:
    """Return what has been found for the runs of arms. Raises `DataError` where a file of it is damaged."""
    runs = [run for arm in arms for run in arm.runs]
    return _running(arms) + [m for run in runs for m in read_merged(run.path, run.name, _end(run))]


def _end(run: Run) -> Losses:
    up, down = (float(run.loss(side)[1][-1]) for side in SIDES)
    return up, down


def read_merged(folder: Path, name: str, end: Losses) -> list[Merged]:
    """Return what has been found for the run of this name in a folder, which ends at these losses.

    What was found when it had another end, as it was extended since, is left out, with a line in the log. Raises
    `DataError` for a damaged file.
    """
    found = []
    for path in sorted((folder / FOLDER).glob(f"{STEM}*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = [Row(r["label"], r["scores"], r["made_of"], r["alpha"]) for r in content["rows"]]
            for row in rows:
                math.hypot(*row.losses)
            ends = [row.losses for row in rows if row.alpha == 1 or row.label == "end"]
            if any(abs(a - b) > SAME for losses in ends for a, b in zip(losses, end, strict=True)):
                log.warning("%s: is of another end of the run and left out; merge again", path)
                continue
            found.append(Merged(name, tuple(rows), tuple(content["verdict"]), path.with_suffix(".svg")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: is not what rewarm merge wrote; merge again, or remove it") from error
    return found


def _running(arms: Sequence[Arm]) -> list[Merged]:
    """Return what the running averages of arms came to, the mean of their seeds; nothing where none kept one."""
    rows = []
    for arm in arms:
        logged = [[run.metrics.curve(f"{side}/loss_avg")[1] for run in arm.runs] for side in SIDES]
        if all(len(curve) for curves in logged for curve in curves):
            scores = {f"{s}/loss": fmean(c[-1] for c in curves) for s, curves in zip(SIDES, logged, strict=True)}
            rows.append(Row(arm.name, scores, {}))
    return [Merged("each run while it went", tuple(rows), ())] if rows else []


def points_of(arms: Sequence[Arm]) -> list[Point]:
    """Return where arms ended."""
    found = []
    for arm in arms:
        up, down = zip(*map(_end, arm.runs), strict=True)
        found.append(Point(arm.name, (fmean(up), fmean(down)), len(arm.runs)))
    return found


def seed_noise(arms: Sequence[Arm]) -> float | None:
    """Return the standard deviation of a final loss over seeds, pooled over arms and sides; None for single seeds."""
    squares, freedom = 0.0, 0
    for arm in arms:
        for side in SIDES:
            ends = [float(run.loss(side)[1][-1]) for run in arm.runs]
            squares += sum((end - fmean(ends)) ** 2 for end in ends)
            freedom += len(ends) - 1
    return math.sqrt(squares / freedom) if freedom else None


def lead(losses: Losses, points: Sequence[Point]) -> float:
    """Return by how much losses lie beyond the front of some points; below 0: a point is better on both by so much.

    To each point they are ahead by so much on one of the two losses at least: the additive epsilon indicator of
    Zitzler et al. 2003.
    """
    return min(max(theirs - own for theirs, own in zip(point.losses, losses, strict=True)) for point in points)


def _beaten(row: Row, points: Sequence[Point]) -> list[Point]:
    """Return the points that an average is better than on both losses."""
    return [p for p in points if row.losses[0] < p.losses[0] and row.losses[1] < p.losses[1]]


def verdict(rows: Sequence[Row], points: Sequence[Point], noise: float | None) -> str:
    """Return in words how the averages compare with the arms: beyond their front, on it, or dominated by one."""
    mixed = [row for row in rows if not row.is_end]
    if not mixed or not points:
        return ""
    best = max(mixed, key=lambda row: (len(_beaten(row, points)), lead(row.losses, points)))
    by = lead(best.losses, points)
    beaten = _beaten(best, points)
    ahead = min((min(p.losses[0] - best.losses[0], p.losses[1] - best.losses[1]) for p in beaten), default=by)
    # Both are means, of one and of so many seeds.
    fewest = min(point.seeds for point in points)
    margin = None if noise is None else 1.96 * noise * math.sqrt(1 + 1 / fewest)
    known = "one seed, so that nobody can say whether that is noise"
    if margin is not None:
        within = "within" if abs(ahead) <= margin else "beyond"
        known = f"{within} what seeds differ by, {margin:.3f} (95 %)"
    if by >= 0:
        those = ", ".join(p.name for p in beaten)
        if len(beaten) == len(points) > 1:
            those = f"each of the {len(points)} arms of the sweep"
        if beaten:
            return f"{best.label} is better on both losses than {those}, by {ahead:.3f} nats or more ({known})."
        return f"{best.label} lies on the front: no arm comes within {by:.3f} nats of it on both losses ({known})."
    better = min(points, key=lambda point: lead(best.losses, [point])).name
    nearest = f"{best.label} comes nearest, and {better} is better on both losses by {-by:.3f} nats or more"
    return f"No average lies on the front: {nearest} ({known})."


def recovered(row: Row, end: Losses, decayed: Losses) -> tuple[float | None, float | None]:
    """Return which share of what a decay gains over the end of a run an average gains, by side; None: no gain."""
    shares = []
    for own, undecayed, annealed in zip(row.losses, end, decayed, strict=True):
        gain = undecayed - annealed
        shares.append((undecayed - own) / gain if gain > 0 else None)
    return shares[0], shares[1]


def table(rows: Sequence[Row]) -> str:
    """Return the losses of all averages as text."""
    cells = [(row.label, *(f"{loss:.4f}" for loss in row.losses)) for row in rows]
    return text_table(("", "upstream", "downstream"), cells)


def to_markdown(merged: Merged) -> str:
    """Return what has been found for a run as Markdown."""
    lines = [f"{merged.title[0].upper()}{merged.title[1:]}:", "", "| | upstream | downstream |", "|---|--:|--:|"]
    lines += ["| " + " | ".join([row.label, *(f"{loss:.4f}" for loss in row.losses)]) + " |" for row in merged.rows]
    return "\n".join([*lines, "", *merged.said]) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """Return the scores of all averages as CSV."""
    keys = list(rows[0].scores)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("label", "alpha", *keys))
    for row in rows:
        writer.writerow((row.label, "" if row.alpha is None else row.alpha, *(repr(row.scores[key]) for key in keys)))
    return file.getvalue()


def as_json(rows: Sequence[Row], points: Sequence[Point], noise: float | None, said: Sequence[str]) -> dict[str, Any]:
    """Return everything that was found."""
    return {
        "rows": [
            {"label": row.label, "alpha": row.alpha, "made_of": dict(row.made_of), "scores": dict(row.scores)}
            for row in rows
        ],
        "arms": [{"name": p.name, "seeds": p.seeds, **dict(zip(SIDES, p.losses, strict=True))} for p in points],
        "seed_noise": noise,
        "verdict": list(said),
    }


def draw(rows: Sequence[Row], points: Sequence[Point], path: Path, *, proxy: bool = False) -> list[Path]:
    """Draw losses over alpha, where there is one, and against each other beside the arms: `path` with endings.

    `proxy` is as in `style.save`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from rewarm.style import PALE, PALETTE, STYLE, save

    line = [row for row in rows if row.alpha is not None]
    with rc_context(STYLE):
        figure = Figure(figsize=(9.5 if line else 5.5, 4.2), layout="constrained")
        panels = figure.subplots(1, 2 if line else 1, squeeze=False)[0]
        if line:
            for side, colour, number in zip(SIDES, PALETTE, (0, 1), strict=False):
                alphas = [row.alpha for row in line if row.alpha is not None]
                panels[0].plot(alphas, [row.losses[number] for row in line], "o-", color=colour, label=side, ms=4)
            panels[0].set(title="On the line", xlabel="alpha: 0 start, 1 end", ylabel="loss (nats a token)")
            panels[0].legend()
        plane = panels[-1]
        plane.set(title="Both losses", xlabel="downstream loss (nats a token)", ylabel="upstream loss (nats a token)")
        if points:
            x, y = zip(*((p.losses[1], p.losses[0]) for p in points), strict=True)
            plane.plot(x, y, "s", color=PALE, ms=6, label="arms of the sweep")
            for at, p in zip(zip(x, y, strict=True), points, strict=True):
                right = at[0] > (min(x) + max(x)) / 2  # so that the name stays within the figure
                where: dict[str, Any] = {"ha": "right", "xytext": (-5, 4)} if right else {"xytext": (5, 4)}
                plane.annotate(p.name, at, textcoords="offset points", fontsize=7, **where)
        x, y = zip(*((row.losses[1], row.losses[0]) for row in rows), strict=True)
        plane.plot(x, y, "o-" if line else "o", color=PALETTE[2], ms=4, label="averages")
        for row in rows if not line else (line[0], line[-1]):
            at = (row.losses[1], row.losses[0])
            plane.annotate(row.label, at, xytext=(4, -10), textcoords="offset points", fontsize=8)
        plane.legend()
        return save(figure, path, proxy=proxy)
