"""The figures for papers as plain data: what each view draws, where all arms ended, and their learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewarm.points import pareto_front
from rewarm.report.arms import Arm, thin
from rewarm.report.merging import Merged
from rewarm.report.select import is_scratch
from rewarm.report.trunks import branches_of
from rewarm.report.views import Look, View
from rewarm.runs.metrics import Values


@dataclass(frozen=True)
class Line:
    """One arm in a chart: the mean over seeds, and what lies between the lowest and the highest of them."""

    label: str
    look: Look
    tokens: list[float]
    x: list[float]
    """The tokens once more where tokens are on the x axis."""
    y: list[float]
    low: list[float]
    high: list[float]
    warmup: float
    """Tokens at which the warm-up ends; 0: there is none."""
    seeds: int
    far: bool
    """Whether it starts from random weights: the axes need not hold it."""


@dataclass(frozen=True)
class Chart:
    """One figure."""

    id: str
    title: str
    kind: str
    """curve: y against tokens; path: both perplexities, coloured by tokens; points: one point for each arm."""
    x_label: str
    y_label: str
    lines: list[Line]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    front: list[int]
    """points: the lines on the Pareto front, in order."""
    start: tuple[float, float] | None = None
    """points: where the arms began."""
    averages: Sequence[tuple[str, list[tuple[float, float]], bool]] = ()
    """points: averages of weights: what they are, both losses of each, and whether they lie on a line."""


def _leaves(arms: Sequence[Arm]) -> dict[int, float]:
    """Return the tokens from which on each of some arms is drawn: where it leaves another of them, else 0."""
    branches = branches_of(arms)
    return {id(arm): branches[id(arm)].tokens if id(arm) in branches else 0.0 for arm in arms}


def _line(arm: Arm, label: str, look: Look, at: Values, **values: Values) -> Line:
    """Return the line of `arm` through the points whose tokens are `at`; `values` are its x, y, low and high."""
    lists = {name: values[name].tolist() if name in values else [] for name in ("x", "y", "low", "high")}
    return Line(
        label, look, at.tolist(), **lists, warmup=arm.one.warmup_tokens, seeds=len(arm.runs), far=is_scratch(arm)
    )


def _curve_line(arm: Arm, side: str, label: str, look: Look, span: tuple[float, float]) -> Line:
    tokens, losses = arm.grid(side)
    mean = losses.mean(axis=0)
    shown = np.flatnonzero((span[0] <= tokens) & (tokens <= span[1]))
    at, _ = thin(tokens[shown], mean[shown])
    kept = np.isin(tokens, at)
    at, y, low, high = (row[kept] for row in (tokens, mean, losses.min(axis=0), losses.max(axis=0)))
    return _line(arm, label, look, at, x=at, y=y, low=low, high=high)


def _range(values: Iterable[float]) -> tuple[float, float]:
    found = [value for value in values if math.isfinite(value)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _in_sight(lines: Sequence[Line]) -> list[Line]:
    """Return the lines that the axes must hold: a start from random weights would flatten all others."""
    return [line for line in lines if not line.far] or list(lines)


def _curves(name: str, title: str, side: str, view: View, labels: Sequence[str], looks: Sequence[Look]) -> Chart:
    """Return the chart of one side's loss against tokens, as far as all arms that have finished go."""
    finished = [arm.tokens for arm in view.arms if all(run.finished for run in arm.runs)]
    until = min(finished, default=max(arm.tokens for arm in view.arms))
    each, leaves = zip(view.arms, labels, looks, strict=True), _leaves(view.arms)
    lines = [_curve_line(arm, side, label, look, (leaves[id(arm)], until)) for arm, label, look in each]
    lines = [line for line in lines if line.y]
    low, high = _range(value for line in _in_sight(lines) for values in (line.low, line.high) for value in values)
    # A start from random weights would flatten all others: its end shows where that is near them.
    ends = [line.y[-1] for line in lines if high < line.y[-1] < high + (high - low)]
    high = max([high, *(end + 0.05 * (high - low) for end in ends)])
    lines = [line for line in lines if min(line.low) <= high]
    end = max(line.tokens[-1] for line in lines)
    y_label = f"{side} loss (nats a token)"
    return Chart(name, f"{title}: {side} loss", "curve", "tokens", y_label, lines, (0.0, end or 1.0), (low, high), [])


def _path_line(arm: Arm, label: str, look: Look, since: float) -> Line:
    up_tokens, up = arm.grid("upstream")
    down_tokens, down = arm.grid("downstream")
    tokens = np.intersect1d(up_tokens, down_tokens)
    tokens = tokens[tokens >= since]
    up_ppl = np.exp(up.mean(axis=0)[np.isin(up_tokens, tokens)])
    down_ppl = np.exp(down.mean(axis=0)[np.isin(down_tokens, tokens)])
    at, _ = thin(tokens, up_ppl)
    kept = np.isin(tokens, at)
    return _line(arm, label, look, tokens[kept], x=down_ppl[kept], y=up_ppl[kept])


def _paths(name: str, title: str, view: View, labels: Sequence[str], looks: Sequence[Look]) -> Chart:
    """Return the chart of upstream perplexity against downstream perplexity, coloured by tokens."""
    each, leaves = zip(view.arms, labels, looks, strict=True), _leaves(view.arms)
    lines = [_path_line(arm, label, look, leaves[id(arm)]) for arm, label, look in each if not is_scratch(arm)]
    lines = [line for line in lines if line.y]
    return Chart(
        name,
        f"{title}: both perplexities",
        "path",
        "downstream perplexity",
        "upstream perplexity",
        lines,
        _range(value for line in lines for value in line.x),
        _range(value for line in lines for value in line.y),
        [],
    )


def _tradeoff(arms: Sequence[Arm], looks: Sequence[Look], merged: Sequence[Merged]) -> Chart:
    """Return the chart of where all arms ended: upstream against downstream loss, with the Pareto front."""
    lines = []
    for arm, look in zip(arms, looks, strict=True):
        x, y = np.array([(run.loss("downstream")[1][-1], run.loss("upstream")[1][-1]) for run in arm.runs]).T
        middle = {"x": x.mean(keepdims=True), "y": y.mean(keepdims=True)}
        spread = {"low": y.min(keepdims=True), "high": y.max(keepdims=True)}
        lines.append(_line(arm, look.name, look, np.array([arm.tokens]), **middle, **spread))
    points = [(line.x[0], line.y[0]) for line in lines]
    starts = {
        tuple(run.loss(side)[1][0] for side in ("downstream", "upstream"))
        for arm in arms
        if not is_scratch(arm)
        for run in arm.runs
    }
    start = min(starts, key=sum, default=None)  # that of the latest checkpoint
    shown = [(line.x[0], line.y[0]) for line in _in_sight(lines)] + ([start] if start else [])
    averages = [(m.title, [(row.losses[1], row.losses[0]) for row in m.rows], m.on_line) for m in merged]
    shown += [point for _, found, _ in averages for point in found]
    return Chart(
        "tradeoff",
        "What is learned, and what is lost",
        "points",
        "final downstream loss (nats a token)",
        "final upstream loss (nats a token)",
        lines,
        _range(x for x, _ in shown),
        _range(y for _, y in shown),
        pareto_front(points),
        start,
        averages,
    )


def _learning_rates(arms: Sequence[Arm], looks: Sequence[Look]) -> Chart:
    """Return the chart of the learning rates of all updates, which of arms that leave a trunk is their tree.

    Of arms whose curves are the same, the first stands.
    """
    lines: dict[str, Line] = {}
    leaves = _leaves(arms)
    for arm, look in zip(arms, looks, strict=True):
        run = arm.one
        steps = np.arange(1, run.plan.steps + 1, dtype=float)
        tokens, lr = thin(steps * run.plan.tokens_per_step, run.lr)
        shown = (leaves[id(arm)] <= tokens) & (tokens <= arm.tokens)
        if shown.any():
            line = _line(arm, look.name, look, tokens[shown], x=tokens[shown], y=lr[shown], low=lr[:0], high=lr[:0])
            lines.setdefault(repr(line.y), line)
    drawn = list(lines.values())
    end = max((line.tokens[-1] for line in drawn), default=1.0)
    top = _range([0.0, *(value for line in drawn for value in line.y)])
    return Chart(
        "learning-rates",
        "Learning rates",
        "curve",
        "tokens",
        "learning rate",
        drawn,
        (0.0, end or 1.0),
        (0.0, top[1]),
        [],
    )


def charts_of(
    arms: Sequence[Arm], views: Sequence[View], looks: Sequence[Look], merged: Sequence[Merged]
) -> list[Chart]:
    """Return the figures of `views` of `arms`, each arm with its look: the paper's figures 1 to 9 first."""
    look_of: Mapping[int, Look] = {id(arm): look for arm, look in zip(arms, looks, strict=True)}
    found = []
    for view in views:
        own = [look_of[id(arm)] for arm in view.arms]
        labels = [
            f"{look.name}: {detail}" if detail else look.name for look, detail in zip(own, view.details, strict=True)
        ]
        for what, name in view.figures.items():
            if what == "both":
                found.append(_paths(name, view.title, view, labels, own))
            else:
                found.append(_curves(name, view.title, what, view, labels, own))
    learning = [arm for arm in arms if arm.config.data.train == "downstream"] or list(arms)
    tradeoff = _tradeoff(learning, [look_of[id(arm)] for arm in learning], merged)
    return [*found, tradeoff, _learning_rates(arms, looks)]
