"""Views of arms: which of them are looked at together, what they differ in, and which figures show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewarm.report.arms import Arm
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
class View:
    """Arms that are looked at together."""

    id: str
    title: str
    caption: str
    arms: tuple[Arm, ...]
    details: tuple[str, ...]
    """What each arm differs in from the others; empty where its name says it."""
    figures: Mapping[str, str]
    """Names of the figures by what they show: a side's loss, or `both` perplexities."""


@dataclass(frozen=True)
class Plan:
    """How a view is made."""

    id: str
    title: str
    caption: str
    choose: Callable[[Sequence[Arm]], list[Arm]]
    """Returns the arms to show, none where the view cannot be had."""
    detail: Callable[[Arm], str]
    figures: Mapping[str, str]


@dataclass(frozen=True)
class Look:
    """What an arm is called and how it looks, in every figure and table."""

    name: str
    color: int
    """Index into the palette."""
    dash: str
    """solid, dashed or dotted."""
    detail: str
    """What it differs in from the others, as the first view that shows it says; empty where its name does."""

    @property
    def title(self) -> str:
        """Return its name and its detail."""
        return f"{self.name} ({self.detail})" if self.detail else self.name


DASHES = ("solid", "dashed", "dotted")
GREY = 6
"""The last color of the palette, which baselines have; all before it are for other arms."""


def number(value: float) -> str:
    """Return a learning rate as people write it: 3e-4, 1.5e-4."""
    if value <= 0:
        return "0"
    exponent = math.floor(math.log10(value) + 1e-9)
    return f"{value / 10**exponent:.3g}e{exponent}"


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.3g} %"


def _warmup(arm: Arm) -> str:
    share = arm.config.warmup
    return f"warm-up {percent(share)}" if share else "no warm-up"


def max_lr_text(arm: Arm) -> str:
    """Return what an arm's learning rate does."""
    if is_scratch(arm):
        return "from scratch"
    lr = number(arm.config.max_lr)
    return f"constant {lr}" if arm.config.schedule.name == "constant" else f"max LR {lr}"


def _start(arm: Arm) -> str:
    """Return which checkpoint an arm starts from: its step, where its folder is named for it."""
    begun = arm.one.manifest.init
    name = Path(begun.folder).name if begun and begun.folder else arm.config.init.rpartition("@")[2]
    return name.replace("step-", "step ").replace("step", "step ").replace("step  ", "step ")


def _early(arm: Arm) -> str:
    return "from scratch" if is_scratch(arm) else f"{_start(arm)}, {_warmup(arm)}"


def _replay(arm: Arm) -> str:
    return f"replay {percent(arm.config.replay)}"


def _schedule(arm: Arm) -> str:
    return arm.config.schedule.name


def _max_lrs(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms that differ in max LR alone, one that lies not above pre-training's end too, and baselines."""
    family = max_lr_family(arms)
    if not family:
        return []
    same = family[0].recipe.key("max_lr")
    family = sorted((arm for arm in arms if arm.recipe.key("max_lr") == same), key=lambda arm: arm.config.max_lr)
    baselines = [arm for arm in (constant_arm(arms), scratch_arm(arms)) if arm is not None]
    return [*family, *baselines]


def _same_data(arms: Sequence[Arm]) -> list[Arm]:
    family, constant = max_lr_family(arms, train="upstream"), constant_arm(arms, train="upstream")
    return [*family, *([constant] if constant else [])] if family else []


def _early_and_scratch(arms: Sequence[Arm]) -> list[Arm]:
    family, scratch = early_family(arms), scratch_arm(arms)
    return [*family, scratch] if family and scratch else []


def _learning(arms: Sequence[Arm]) -> list[Arm]:
    return [arm for arm in arms if not is_scratch(arm) and arm.config.data.train == "downstream"]


def _replays(arms: Sequence[Arm]) -> list[Arm]:
    group = {_replay(arm): arm for arm in largest(_learning(arms), "replay")}
    return list(group.values()) if len(group) > 1 else []


def _schedules(arms: Sequence[Arm]) -> list[Arm]:
    pure = [arm for arm in _learning(arms) if is_pure(arm)]
    group = {_schedule(arm): arm for arm in largest(pure, "schedule", "max_lr", "min_lr_ratio", "warmup")}
    return list(group.values()) if len(group) > 2 else []


def _sides(name: str) -> dict[str, str]:
    return {side: f"{name}-{side}" for side in ("downstream", "upstream")}


PLANS = (
    Plan(
        "warm-up",
        "Length of the warm-up",
        "The same re-warming with warm-ups of other lengths, as shares of the horizon.",
        warmup_family,
        _warmup,
        {"downstream": "figure-1a", "upstream": "figure-1b"},
    ),
    Plan(
        "max-lr",
        "Max LR",
        "The same recipe with other max LRs. Grey, where it was run: a constant LR, and training from scratch.",
        _max_lrs,
        max_lr_text,
        {"downstream": "figure-2", "upstream": "figure-3", "both": "figure-4"},
    ),
    Plan(
        "same-data",
        "Same data",
        "Re-warmed on the very data of pre-training: no shift.",
        _same_data,
        max_lr_text,
        {"upstream": "figure-5", "both": "figure-6"},
    ),
    Plan(
        "earlier",
        "Earlier checkpoints",
        "The same re-warming from checkpoints that had been trained for less long.",
        early_family,
        _early,
        {"downstream": "figure-7", "upstream": "figure-8"},
    ),
    Plan(
        "scratch",
        "Earlier checkpoints and scratch",
        "The same re-warming from checkpoints that had been trained for less long, and from random weights.",
        _early_and_scratch,
        _early,
        {"downstream": "figure-9"},
    ),
    Plan(
        "replay",
        "Replay",
        "Shares of each batch that come from the old data.",
        _replays,
        _replay,
        _sides("replay"),
    ),
    Plan("schedules", "Schedules", "Other shapes of the schedule.", _schedules, _schedule, _sides("schedules")),
)


def _shown(plan: Plan, arms: Sequence[Arm]) -> View:
    details = tuple("" if "=" in arm.name else plan.detail(arm) for arm in arms)
    return View(plan.id, plan.title, plan.caption, tuple(arms), details, plan.figures)


def views_of(arms: Sequence[Arm]) -> list[View]:
    """Return the views that `arms`, of one setting, allow, and one of the arms that none of these shows."""
    chosen = [(plan, plan.choose(arms)) for plan in PLANS]
    views = [_shown(plan, found) for plan, found in chosen if len(found) > 1]
    drawn = {id(arm) for view in views for arm in view.arms}
    rest = [arm for arm in arms if id(arm) not in drawn]
    if rest:
        title, caption = ("Other arms", "Arms of no other figure.") if views else ("Arms", "All arms.")
        views.append(_shown(Plan("arms", title, caption, list, max_lr_text, _sides("arms")), rest))
    return views


def in_order(arms: Sequence[Arm], views: Sequence[View]) -> list[Arm]:
    """Return `arms` in the order in which the views show them."""
    shown = {id(arm): arm for view in views for arm in view.arms}
    return list(shown.values()) + [arm for arm in arms if id(arm) not in shown]


def looks_of(arms: Sequence[Arm], views: Sequence[View]) -> list[Look]:
    """Return the look of each of the arms of one setting: baselines are grey, no two others alike until 18 are."""
    details = {id(arm): text for view in reversed(views) for arm, text in zip(view.arms, view.details, strict=True)}
    baselines = {id(constant_arm(arms)): "dashed", id(scratch_arm(arms)): "dotted"}
    names, looks, colored = [arm.name for arm in arms], [], 0
    for i, arm in enumerate(arms):
        name = arm.name if names.count(arm.name) == 1 else f"{arm.name} ({i + 1})"
        color, dash = colored % GREY, DASHES[colored // GREY % len(DASHES)]
        if id(arm) in baselines:
            color, dash = GREY, baselines[id(arm)]
        else:
            colored += 1
        looks.append(Look(name, color, dash, details.get(id(arm), "")))
    return looks
