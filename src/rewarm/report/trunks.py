"""Arms that begin as others: where each leaves its trunk, so that what was trained once is drawn once and told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rewarm.report.arms import Arm
from rewarm.text import tokens_text


@dataclass(frozen=True)
class Branch:
    """Where an arm leaves the one that it begins as."""

    trunk: Arm
    tokens: float


def branches_of(arms: Sequence[Arm]) -> dict[int, Branch]:
    """Return where arms leave another of `arms`, by their ids: those of which every seed began as a run of it."""
    of = {str(run.path.resolve()): arm for arm in arms for run in arm.runs}
    found = {}
    for arm in arms:
        forks = [run.manifest.forked for run in arm.runs]
        trunks = [of.get(fork.run) if fork else None for fork in forks]
        trunk = trunks[0]
        if trunk is not None and trunk is not arm and all(other is trunk for other in trunks):
            steps = min(fork.step for fork in forks if fork)
            found[id(arm)] = Branch(trunk, steps * arm.one.plan.tokens_per_step)
    return found


def _lines(
    arms: Sequence[Arm], names: Mapping[int, str], branches: Mapping[int, Branch], trunk: Arm, depth: int
) -> Iterator[str]:
    for arm in arms:
        branch = branches.get(id(arm))
        if branch is not None and branch.trunk is trunk:
            yield f"{'  ' * depth}- {names[id(arm)]}, from {tokens_text(branch.tokens)} tokens on"
            yield from _lines(arms, names, branches, arm, depth + 1)


def tree(arms: Sequence[Arm], names: Sequence[str]) -> str:
    """Return which arms begin as which, as nested lists in Markdown; empty where none does."""
    branches, named = branches_of(arms), {id(arm): name for arm, name in zip(arms, names, strict=True)}
    if not branches:
        return ""
    alone = sum(arm.tokens * len(arm.runs) for arm in arms)
    once = sum(branch.tokens * len(arm.runs) for arm in arms if (branch := branches.get(id(arm))))
    lines = [
        f"What arms have in common was trained once: {tokens_text(alone - once)} tokens for {tokens_text(alone)}."
    ]
    for arm in arms:
        if id(arm) not in branches and any(branch.trunk is arm for branch in branches.values()):
            lines += ["", f"- {named[id(arm)]}", *_lines(arms, named, branches, arm, 1)]
    return "\n".join(lines) + "\n"
