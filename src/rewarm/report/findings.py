"""What a report says of the arms of one setting: the answer, views, verdicts, charts and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewarm.report.answer import Answer, answer
from rewarm.report.arms import Arm, arms_of, settings_of
from rewarm.report.arms_table import Row, rows_of
from rewarm.report.charts import Chart, charts_of
from rewarm.report.claims import Verdict, judge
from rewarm.report.merging import Merged, merged_of
from rewarm.report.trunks import tree
from rewarm.report.views import Look, View, in_order, looks_of, views_of
from rewarm.runs.run import Run
from rewarm.text import tokens_text


@dataclass(frozen=True)
class Study:
    """Everything that follows from arms that can be compared."""

    name: str
    arms: tuple[Arm, ...]
    looks: tuple[Look, ...]
    """Of each arm."""
    views: tuple[View, ...]
    answer: Answer
    verdicts: tuple[Verdict, ...]
    """On those of the paper's claims that the arms were made for."""
    charts: tuple[Chart, ...]
    rows: tuple[Row, ...]
    merged: tuple[Merged, ...]
    """What `rewarm merge` has found for runs of the arms."""
    tree: str
    """Which arms begin as which, as Markdown; empty where none does."""

    @property
    def proxied(self) -> bool:
        """Return whether what is called upstream is a proxy of the old data."""
        return self.arms[0].config.proxied


def _study(found: Sequence[Arm]) -> Study:
    config = found[0].config
    views = views_of(found)
    arms = in_order(found, views)
    looks = looks_of(arms, views)
    merged = merged_of(arms)
    return Study(
        name=f"{config.model.name} on {config.data.name}, horizon {tokens_text(found[0].one.horizon)} tokens",
        arms=tuple(arms),
        looks=tuple(looks),
        views=tuple(views),
        answer=answer(arms, looks),
        verdicts=tuple(verdict for verdict in judge(arms) if not verdict.missing),
        charts=tuple(charts_of(arms, views, looks, merged)),
        rows=tuple(rows_of(arms, looks)),
        merged=tuple(merged),
        tree=tree(arms, [look.name for look in looks]),
    )


def studies_of(runs: Sequence[Run]) -> list[Study]:
    """Return a study for each setting among `runs`, the largest first."""
    return [_study(arms) for arms in settings_of(arms_of(runs))]
