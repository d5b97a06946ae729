"""What a report says of the arms of one setting: verdicts, charts and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewarm.report.charts import Chart, charts_of
from rewarm.report.claims import Verdict, judge
from rewarm.report.records import Arm, Run, arms_of, settings_of
from rewarm.report.tables import Row, rows_of, si


@dataclass(frozen=True)
class Study:
    """Everything that follows from arms that can be compared."""

    name: str
    arms: tuple[Arm, ...]
    verdicts: tuple[Verdict, ...]
    charts: tuple[Chart, ...]
    rows: tuple[Row, ...]


def studies_of(runs: Sequence[Run]) -> list[Study]:
    """Return a study for each setting among `runs`, the largest first."""
    studies = []
    for arms in settings_of(arms_of(runs)):
        config = arms[0].one.config
        name = f"{config['model']['name']} on {config['data']['name']}, horizon {si(arms[0].one.horizon)} tokens"
        studies.append(Study(name, tuple(arms), tuple(judge(arms)), tuple(charts_of(arms)), tuple(rows_of(arms))))
    return studies
