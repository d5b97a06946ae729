"""Which charts the arms allow, as plain data: matplotlib and the page draw the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rewarm.report.records import Arm, Values, thin
from rewarm.report.select import (
    constant_arm,
    early_family,
    is_pure,
    is_scratch,
    largest,
    max_lr_family,
    scratch_arm,
    warmup_family,
)


@dataclass(frozen=True)
class Line:
    """One arm in a chart: the mean over seeds, and what lies between the lowest and the highest of them."""

    label: str
    arm: str
    color: int
    """Index into the palette."""
    dash: str
    """solid, dashed or dotted."""
    tokens: list[float]
    x: list[float]
    """The tokens once more where tokens are on the x axis."""
    y: list[float]
    low: list[float]
    high: list[float]
    warmup: float
    """Tokens at which the warm-up ends; 0: there is none."""
    seeds: int


@dataclass(frozen=True)
class Chart:
    """One figure."""

    id: str
    title: str
    caption: str
    kind: str
    """curve: y against tokens; path: both perplexities, coloured by tokens; points: one point for each arm."""
    x_label: str
    y_label: str
    lines: list[Line]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    front: list[int]
    """points: the lines on the Pareto front, in order."""


DASHES = ("solid", "dashed", "dotted")
COLORS = 7


def number(value: float) -> str:
    """Return a learning rate as people write it: 3e-4, 1.5e-4."""
    if value <= 0:
        return "0"
    exponent = math.floor(math.log10(value) + 1e-9)
    return f"{value / 10**exponent:.3g}e{exponent}"


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.3g} %"


def warmup_label(arm: Arm) -> str:
    """Return how long an arm's warm-up is."""
    share = float(arm.one.recipe["warmup"])
    return f"warm-up {percent(share)}" if share else "no warm-up"


def lr_label(arm: Arm) -> str:
    """Return what an arm's learning rate does."""
    if is_scratch(arm):
        return "from scratch"
    lr = number(float(arm.one.recipe["max_lr"]))
    return f"constant {lr}" if arm.one.constant else f"max LR {lr}"


def init_name(arm: Arm) -> str:
    """Return which checkpoint an arm starts from: its step, where its folder is named for it."""
    init = str(arm.one.recipe["init"])
    folder = (arm.one.manifest.get("init") or {}).get("folder")
    name = Path(folder).name if folder else init.rpartition("@")[2]
    return name.replace("step-", "step ").replace("step", "step ").replace("step  ", "step ")


def early_label(arm: Arm) -> str:
    """Return checkpoint and warm-up."""
    return "from scratch" if is_scratch(arm) else f"{init_name(arm)}, {warmup_label(arm)}"


def replay_label(arm: Arm) -> str:
    """Return an arm's share of old data."""
    return f"replay {percent(float(arm.one.recipe['replay']))}"


def schedule_label(arm: Arm) -> str:
    """Return the name of an arm's schedule."""
    return str(arm.one.recipe["schedule"]["name"])


def own_label(arm: Arm) -> str:
    """Return an arm's own name."""
    return arm.name


Label = Callable[[Arm], str]
Style = Callable[[Sequence[Arm]], list[tuple[int, str]]]


def _early_style(arms: Sequence[Arm]) -> list[tuple[int, str]]:
    """Return a color for each checkpoint; arms without warm-up are dashed."""
    inits = list(dict.fromkeys(str(arm.one.recipe["init"]) for arm in arms))
    return [
        (
            inits.index(str(arm.one.recipe["init"])) % COLORS,
            "dotted" if is_scratch(arm) else "solid" if arm.one.recipe["warmup"] else "dashed",
        )
        for arm in arms
    ]


def _style(arms: Sequence[Arm]) -> list[tuple[int, str]]:
    """Return color and dash of each arm; baselines are dashed and dotted, and more arms than colors repeat them."""
    styles = []
    for i, arm in enumerate(arms):
        dash = "dotted" if is_scratch(arm) else "dashed" if arm.one.constant else DASHES[i // COLORS % 3]
        styles.append((i % COLORS, dash))
    return styles


def _line(arm: Arm, label: str, style: tuple[int, str], at: Values, **values: Values) -> Line:
    """Return the line of `arm` through the points whose tokens are `at`; `values` are its x, y, low and high."""
    lists = {name: values[name].tolist() if name in values else [] for name in ("x", "y", "low", "high")}
    return Line(
        label, arm.name, *style, tokens=at.tolist(), **lists, warmup=arm.one.warmup_tokens, seeds=len(arm.runs)
    )


def _curve_line(arm: Arm, side: str, label: str, style: tuple[int, str], until: float) -> Line:
    tokens, losses = arm.grid(side)
    mean = losses.mean(axis=0)
    shown = np.flatnonzero(tokens <= until)
    at, _ = thin(tokens[shown], mean[shown])
    kept = np.isin(tokens, at)
    at, y, low, high = (row[kept] for row in (tokens, mean, losses.min(axis=0), losses.max(axis=0)))
    return _line(arm, label, style, at, x=at, y=y, low=low, high=high)


def _range(values: Iterable[float]) -> tuple[float, float]:
    found = [value for value in values if math.isfinite(value)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _in_sight(arms: Sequence[Arm], lines: Sequence[Line]) -> list[Line]:
    """Return the lines that the axes must hold: a start from random weights would flatten all others."""
    return [line for arm, line in zip(arms, lines, strict=True) if not is_scratch(arm)] or list(lines)


def curve_chart(
    chart_id: str, title: str, caption: str, arms: Sequence[Arm], side: str, label: Label, style: Style
) -> Chart:
    """Return the chart of one side's loss against tokens, as far as all arms that have finished go."""
    finished = [arm.tokens for arm in arms if all(run.summary is not None for run in arm.runs)]
    until = min(finished, default=max(arm.tokens for arm in arms))
    lines = [_curve_line(arm, side, label(arm), style, until) for arm, style in zip(arms, style(arms), strict=True)]
    low, high = _range(
        value for line in _in_sight(arms, lines) for values in (line.low, line.high) for value in values
    )
    # A start from random weights would flatten all others: its end shows where that is near them.
    ends = [line.y[-1] for line in lines if high < line.y[-1] < high + (high - low)]
    high = max([high, *(end + 0.05 * (high - low) for end in ends)])
    lines = [line for line in lines if min(line.low) <= high]
    end = max(line.tokens[-1] for line in lines)
    return Chart(
        id=chart_id,
        title=title,
        caption=caption,
        kind="curve",
        x_label="tokens",
        y_label=f"{side} loss (nats a token)",
        lines=lines,
        x_range=(0.0, end),
        y_range=(low, high),
        front=[],
    )


def _path_line(arm: Arm, label: str, style: tuple[int, str], until: float) -> Line:
    up_tokens, up = arm.grid("upstream")
    down_tokens, down = arm.grid("downstream")
    tokens = np.intersect1d(up_tokens, down_tokens)
    tokens = tokens[tokens <= until]
    up_ppl = np.exp(up.mean(axis=0)[np.isin(up_tokens, tokens)])
    down_ppl = np.exp(down.mean(axis=0)[np.isin(down_tokens, tokens)])
    at, _ = thin(tokens, up_ppl)
    kept = np.isin(tokens, at)
    return _line(arm, label, style, tokens[kept], x=down_ppl[kept], y=up_ppl[kept])


def path_chart(chart_id: str, title: str, caption: str, arms: Sequence[Arm], label: Label) -> Chart:
    """Return the chart of upstream perplexity against downstream perplexity, coloured by tokens."""
    arms = [arm for arm in arms if not is_scratch(arm)]
    until = max(arm.tokens for arm in arms)
    lines = [_path_line(arm, label(arm), style, until) for arm, style in zip(arms, _style(arms), strict=True)]
    return Chart(
        id=chart_id,
        title=title,
        caption=caption,
        kind="path",
        x_label="downstream perplexity",
        y_label="upstream perplexity",
        lines=lines,
        x_range=_range(value for line in lines for value in line.x),
        y_range=_range(value for line in lines for value in line.y),
        front=[],
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other is better than on both axes (lower is better), by the first."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def tradeoff_chart(arms: Sequence[Arm], labels: Sequence[str]) -> Chart:
    """Return the chart of where all arms ended: upstream against downstream loss, with the Pareto front."""
    lines = []
    for i, (arm, label) in enumerate(zip(arms, labels, strict=True)):
        x, y = np.array([(run.loss("downstream")[1][-1], run.loss("upstream")[1][-1]) for run in arm.runs]).T
        middle = {"x": x.mean(keepdims=True), "y": y.mean(keepdims=True)}
        spread = {"low": y.min(keepdims=True), "high": y.max(keepdims=True)}
        lines.append(_line(arm, label, (i % COLORS, "solid"), np.array([arm.tokens]), **middle, **spread))
    points = [(line.x[0], line.y[0]) for line in lines]
    return Chart(
        id="tradeoff",
        title="What is learned, and what is lost",
        caption="Where each arm ended. Left is better on the new data, down is better on the old; the line is the "
        "Pareto front.",
        kind="points",
        x_label="final downstream loss (nats a token)",
        y_label="final upstream loss (nats a token)",
        lines=lines,
        x_range=_range(x for x, _ in points),
        y_range=_range(y for _, y in points),
        front=pareto_front(points),
    )


def lr_chart(arms: Sequence[Arm], labels: Sequence[str]) -> Chart:
    """Return the chart of the learning rates that were used."""
    lines = []
    for arm, label, style in zip(arms, labels, _style(arms), strict=True):
        tokens, lr = thin(*arm.one.curve("lr"))
        values = lr.tolist()
        at = tokens.tolist()
        lines.append(Line(label, arm.name, *style, at, at, values, values, values, arm.one.warmup_tokens, 1))
    return Chart(
        id="learning-rates",
        title="Learning rates",
        caption="The learning rate of every arm, as it was used.",
        kind="curve",
        x_label="tokens",
        y_label="learning rate",
        lines=lines,
        x_range=(0.0, max(line.tokens[-1] for line in lines)),
        y_range=_range([0.0, *(value for line in lines for value in line.y)]),
        front=[],
    )


def labels_of(arms: Sequence[Arm]) -> list[str]:
    """Return a label for each of `arms`, no two of them alike."""
    names = [arm.name for arm in arms]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def charts_of(arms: Sequence[Arm]) -> list[Chart]:
    """Return the charts that `arms`, of one setting, allow: the paper's figures 1 to 9 first."""
    found: list[Chart] = []
    drawn: set[str] = set()

    def curves(
        numbers: str, title: str, caption: str, chosen: Sequence[Arm], sides: Sequence[str], label: Label
    ) -> None:
        drawn.update(arm.name for arm in chosen)
        style = _early_style if label is early_label else _style
        for side, part in zip(sides, numbers.split(), strict=True):
            found.append(curve_chart(f"figure-{part}", f"{title}: {side} loss", caption, chosen, side, label, style))

    family = warmup_family(arms)
    if len(family) > 1:
        caption = "The same re-warming with warm-ups of other lengths, as shares of the horizon."
        curves("1a 1b", "Length of the warm-up", caption, family, ("downstream", "upstream"), warmup_label)
    family = max_lr_family(arms)
    baselines = [arm for arm in (constant_arm(arms), scratch_arm(arms)) if arm is not None]
    if family and len(family) + len(baselines) > 1:
        chosen = [*family, *baselines]
        caption = "Re-warmed to other max LRs, against a constant LR and against training from scratch."
        curves("2 3", "Max LR", caption, chosen, ("downstream", "upstream"), lr_label)
        found.append(path_chart("figure-4", "Max LR: both perplexities", PATH, chosen, lr_label))
    same, constant = max_lr_family(arms, train="upstream"), constant_arm(arms, train="upstream")
    if same:
        chosen = [*same, *([constant] if constant else [])]
        curves(
            "5", "Same data", "Re-warmed on the very data of pre-training: no shift.", chosen, ("upstream",), lr_label
        )
        found.append(path_chart("figure-6", "Same data: both perplexities", PATH, chosen, lr_label))
    family = early_family(arms)
    if family:
        caption = "The same re-warming from checkpoints that had been trained for less long."
        curves("7 8", "Earlier checkpoints", caption, family, ("downstream", "upstream"), early_label)
        scratch = scratch_arm(arms)
        if scratch is not None:
            title = "Earlier checkpoints and scratch"
            curves(
                "9", title, f"{caption} And from random weights.", [*family, scratch], ("downstream",), early_label
            )
    for vary, title, label, caption in (
        (("replay",), "Replay", replay_label, "Shares of each batch that come from the old data."),
        (
            ("schedule", "max_lr", "min_lr_ratio", "warmup"),
            "Schedules",
            schedule_label,
            "Other shapes of the schedule.",
        ),
    ):
        plain = [a for a in arms if not is_scratch(a) and a.one.recipe["train"] == "downstream"]
        plain = plain if vary == ("replay",) else [a for a in plain if is_pure(a)]
        group = largest(plain, *vary)
        if len({label(arm) for arm in group}) > (1 if vary == ("replay",) else 2):
            distinct = list({label(arm): arm for arm in group}.values())
            name = title.lower()
            curves(f"{name}-downstream {name}-upstream", title, caption, distinct, ("downstream", "upstream"), label)
    rest = [arm for arm in arms if arm.name not in drawn]
    if rest:
        caption = "Arms that none of the figures above shows."
        curves("arms-downstream arms-upstream", "Arms", caption, rest, ("downstream", "upstream"), own_label)
    learning = [arm for arm in arms if arm.one.recipe["train"] == "downstream"] or list(arms)
    return [*found, tradeoff_chart(learning, labels_of(learning)), lr_chart(arms, labels_of(arms))]


PATH = (
    "Each point is an evaluation, its colour the tokens so far; a ring marks the start, a square the warm-up's end."
)
