"""Chooses arms by what they are: re-warmed, constant, from scratch, or differing in one thing alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from rewarm.report.arms import Arm


def families(arms: Sequence[Arm], *vary: str) -> list[list[Arm]]:
    """Return the groups of arms that differ in nothing but `vary`, the largest first."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.recipe.key(*vary), []).append(arm)
    return sorted(groups.values(), key=lambda group: (len(group), min(len(arm.runs) for arm in group)), reverse=True)


def largest(arms: Sequence[Arm], *vary: str) -> list[Arm]:
    """Return the largest group of arms that differ in nothing but `vary`, or none."""
    found = families(arms, *vary)
    return found[0] if found else []


def start_loss(arm: Arm) -> float:
    """Return the upstream loss that an arm started from: how converged its first checkpoint was."""
    return fmean(arm.at("upstream", 0).values())


def _warm(arms: Sequence[Arm], train: str = "downstream") -> list[Arm]:
    """Return the re-warmed arms from a pretrained model, on one side's data alone."""
    return [
        arm
        for arm in arms
        if arm.rewarmed and arm.config.data.train == train and not is_scratch(arm) and is_pure(arm)
    ]


def is_pure(arm: Arm) -> bool:
    """Return whether an arm's batches come from one side alone."""
    return arm.config.replay == 0


def is_scratch(arm: Arm) -> bool:
    """Return whether an arm starts from random weights."""
    return arm.config.init == "scratch"


def latest(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms whose `init` is the most converged one: that with the lowest upstream loss at the start."""
    by_init: dict[str, list[Arm]] = {}
    for arm in arms:
        by_init.setdefault(arm.config.init, []).append(arm)
    return min(by_init.values(), key=lambda group: min(map(start_loss, group))) if by_init else []


def max_lr_family(arms: Sequence[Arm], train: str = "downstream") -> list[Arm]:
    """Return the re-warmed arms that differ in max LR alone, from the lowest to the highest."""
    family = largest(latest(_warm(arms, train)), "max_lr")
    return sorted(family, key=lambda arm: arm.config.max_lr)


def warmup_family(arms: Sequence[Arm]) -> list[Arm]:
    """Return the re-warmed arms that differ in warm-up alone, from none to the longest."""
    return sorted(largest(latest(_warm(arms)), "warmup"), key=lambda arm: arm.config.warmup)


def constant_arm(arms: Sequence[Arm], train: str = "downstream") -> Arm | None:
    """Return the arm that stays at the LR at which pre-training ended."""
    found = [a for a in arms if a.constant and a.config.data.train == train and is_pure(a) and not is_scratch(a)]
    return max(latest(found), key=lambda arm: len(arm.runs), default=None)


def scratch_arm(arms: Sequence[Arm]) -> Arm | None:
    """Return the arm that starts from random weights, on downstream data alone."""
    found = [a for a in arms if is_scratch(a) and a.config.data.train == "downstream" and is_pure(a)]
    return max(found, key=lambda arm: len(arm.runs), default=None)


def early_family(arms: Sequence[Arm]) -> list[Arm]:
    """Return the re-warmed arms that differ in nothing but their checkpoint (and warm-up), the latest first.

    A warm-up that only one of the checkpoints has compares nothing, and is left out.
    """
    for family in families(_warm(arms), "init", "warmup"):
        inits: dict[float, set[str]] = {}
        for arm in family:
            inits.setdefault(arm.config.warmup, set()).add(arm.config.init)
        shared = [arm for arm in family if len(inits[arm.config.warmup]) > 1]
        if shared:
            return sorted(shared, key=lambda arm: (start_loss(arm), arm.config.warmup))
    return []


def reference_arm(family: Sequence[Arm]) -> Arm | None:
    """Return the arm whose max LR is nearest to the peak of pre-training."""

    def distance(arm: Arm) -> float:
        return abs(math.log(arm.config.max_lr / arm.config.model.peak_lr))

    return min(family, key=distance, default=None)
