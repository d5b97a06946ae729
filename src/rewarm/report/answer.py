"""The answer that comes first: which arm, what it gains and costs, whether that is noise, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from rewarm.report.arms import Arm
from rewarm.report.claims import Test
from rewarm.report.select import is_scratch, latest
from rewarm.report.views import Look
from rewarm.runs.words import own_command, sweep_words
from rewarm.text import text_table, tokens_text


@dataclass(frozen=True)
class Outcome:
    """What an arm came to: losses at the end minus those at its start, by seed, in nats a token."""

    look: Look
    downstream: dict[int, float]
    upstream: dict[int, float]

    @cached_property
    def total(self) -> dict[int, float]:
        """Return the sum of both changes by seed: what the arms are ranked by."""
        return {
            seed: change + self.upstream[seed] for seed, change in self.downstream.items() if seed in self.upstream
        }

    def cells(self) -> tuple[str, str, str]:
        """Return the name, and by how much the perplexity on the new and on the old data changed."""
        return self.look.name, change_text(self.downstream), change_text(self.upstream)


@dataclass(frozen=True)
class Answer:
    """What the arms of one setting say about their question."""

    question: str
    outcomes: tuple[Outcome, ...]
    """The best first."""
    said: tuple[str, ...]
    """Sentences, the most important first."""
    command: str
    """What to run next."""

    def text(self) -> str:
        """Return the answer for a terminal."""
        table = text_table(("perplexity", "new data", "old data"), [outcome.cells() for outcome in self.outcomes])
        parts = [self.question, *self.said, "", table.rstrip("\n")] if self.outcomes else [self.question, *self.said]
        return "\n".join(part for i, part in enumerate(parts) if part or i) + f"\nnext: {self.command}\n"


def change_text(by_seed: dict[int, float]) -> str:
    """Return the mean change of a loss as a change of the perplexity in per cent."""
    mean = fmean(by_seed.values()) if by_seed else math.nan
    return f"{100 * math.expm1(mean):+.1f} %"


def _outcome(arm: Arm, look: Look, tokens: float) -> Outcome:
    changes = []
    for side in ("downstream", "upstream"):
        start, end = arm.at(side, 0), arm.at(side, tokens)
        changes.append({seed: end[seed] - start[seed] for seed in end})
    return Outcome(look, *changes)


def _sentence(outcome: Outcome, why: str) -> str:
    _, new, old = outcome.cells()
    return f"{outcome.look.title} {why}: perplexity {new} on the new data, {old} on the old."


def _noise(best: Outcome, other: Outcome) -> str:
    """Return whether the best is ahead of another arm by more than seeds differ."""
    shared = sorted(best.total.keys() & other.total.keys())
    test = Test("", tuple(other.total[seed] - best.total[seed] for seed in shared), 0.0)
    names = f"{best.look.name} over the next, {other.look.name}"
    if not shared:
        return f"Whether the lead of {names}, is noise is not known: they share no seed."
    ahead = f"The lead of {names}, is {test.mean:.3f} nats a token, both losses together"
    if len(shared) == 1:
        return f"{ahead}; with one seed nobody can say whether that is noise."
    low, high = test.interval
    verdict = "beyond the noise" if test.holds else "within the noise"
    return f"{ahead} (95 %: {low:.3f} to {high:.3f}, {len(shared)} seeds): {verdict}."


def _next(arms: Sequence[Arm], compared: Sequence[Outcome]) -> str:
    """Return the command that says more: what goes on, more seeds, or what else could be tried."""
    runs = [run for arm in arms for run in arm.runs]
    unfinished = [run for run in runs if not run.finished and not run.stopped]
    folder = runs[0].path.parent if len(runs) > 1 else runs[0].path
    if unfinished and (command := own_command(unfinished[0])):
        return command
    one_seed = len(compared) > 1 and max(len(outcome.total) for outcome in compared) == 1
    if one_seed and (words := sweep_words(runs)):
        return "rewarm train " + shlex.join([*words, "seeds=3"])
    return f"rewarm forecast {shlex.quote(str(folder))}"


def answer(arms: Sequence[Arm], looks: Sequence[Look]) -> Answer:
    """Return what arms of one setting say.

    Those are compared that learn the new data from the latest checkpoint and went as far as the longest of them.
    """
    look_of = {id(arm): look for arm, look in zip(arms, looks, strict=True)}
    learning = latest([arm for arm in arms if arm.config.data.train == "downstream" and not is_scratch(arm)])
    finished = [arm for arm in learning if all(run.finished for run in arm.runs)]
    end = max((arm.tokens for arm in finished), default=0.0)
    whole = [arm for arm in finished if arm.tokens > 0.95 * end]
    outcomes = sorted(
        (_outcome(arm, look_of[id(arm)], end) for arm in whole), key=lambda outcome: fmean(outcome.total.values())
    )
    questions = dict.fromkeys(arm.config.experiment.question for arm in arms if arm.config.experiment.question)
    question = " ".join(questions) or ("Which arm?" if len(arms) > 1 else "")
    said = []
    if outcomes:
        best = outcomes[0]
        ranked = "has the least sum of both losses" if len(outcomes) > 1 else f"ends after {tokens_text(end)} tokens"
        said.append(_sentence(best, ranked))
        for side, why in (("downstream", "learns the new data best"), ("upstream", "keeps the old data best")):
            top = min(outcomes, key=lambda outcome: fmean(getattr(outcome, side).values()))
            if top is not best:
                said.append(_sentence(top, why))
        if len(outcomes) > 1:
            said.append(_noise(best, outcomes[1]))
        [arm] = [arm for arm in whole if look_of[id(arm)] is best.look]
        if arm.one.checkpoints:
            command = shlex.join(["rewarm", "merge", arm.config.init, str(arm.one.path)])
            said.append(
                f"An average of its start and its end may forget less and learn as much, untrained: {command}"
            )
    early = [look_of[id(arm)].name for arm in whole if arm.one.plan.early_stop() and not arm.constant]
    if early:
        said.append(
            f"Stopped before the learning rate had come down, and not to be judged by this: {', '.join(early)}."
        )
    given_up = [arm for arm in learning if any(run.stopped for run in arm.runs)]
    if given_up:
        names = ", ".join(look_of[id(arm)].name for arm in given_up)
        said.append(f"Left early by sweep.stop=forecast, as they could not win, and not compared: {names}.")
    if left := len(learning) - len(whole) - len(given_up):
        said.append(f"Left out, as they stopped earlier or are not finished: {left} of {len(learning)} arms.")
    return Answer(question, tuple(outcomes), tuple(said), _next(arms, outcomes))
