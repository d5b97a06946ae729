"""Puts a report into Weights & Biases: figures, charts, table and files, as a run of their own.

Without an account `wandb sync` of the offline folder shows them too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewarm.config.sweep_schema import TrackerConfig
from rewarm.report.arms_table import cell, headings
from rewarm.report.charts import Chart
from rewarm.report.findings import Study
from rewarm.tracking import wandb_mode

log = logging.getLogger(__name__)


def _series(chart: Chart) -> Any:  # noqa: ANN401 - a wandb chart
    import wandb

    return wandb.plot.line_series(
        xs=[line.x for line in chart.lines],
        ys=[line.y for line in chart.lines],
        keys=[line.label for line in chart.lines],
        title=chart.title,
        xname=chart.x_label,
    )


def _content(study: Study, figures: Sequence[Path]) -> dict[str, Any]:
    import wandb

    logged: dict[str, Any] = {
        f"figures/{path.stem}": wandb.Image(str(path)) for path in figures if path.suffix == ".png"
    }
    for chart in study.charts:
        if chart.kind == "curve":
            logged[f"charts/{chart.id}"] = _series(chart)
        elif chart.kind == "points":
            points = wandb.Table(
                columns=["arm", "downstream", "upstream"],
                data=[[line.label, line.x[0], line.y[0]] for line in chart.lines]
                + [[row.label, *row.losses[::-1]] for merged in study.merged for row in merged.rows],
            )
            logged["charts/tradeoff"] = wandb.plot.scatter(points, "downstream", "upstream", title=chart.title)
    columns = headings(study.rows)
    logged["arms"] = wandb.Table(
        columns=list(columns.values()), data=[[cell(row, key) for key in columns] for row in study.rows]
    )
    if study.merged:
        rows = [[m.run, row.label, *row.losses] for m in study.merged for row in m.rows]
        logged["averages"] = wandb.Table(columns=["run", "average", "upstream", "downstream"], data=rows)
    return logged


def publish(
    folder: Path, name: str, studies: Sequence[Study], figures: Sequence[Path], tracker: TrackerConfig
) -> None:
    """Log the report of the sweep `name` as a W&B run.

    `tracker` is the `tracker` group of the runs' config: the report goes where they went.
    """
    import wandb

    mode = wandb_mode(tracker.mode)
    if mode == "offline":
        log.warning("W&B: offline, into %s/wandb; `wandb sync` uploads it", folder)
    run = wandb.init(
        project=tracker.project,
        entity=tracker.entity,
        name=f"report of {name}",
        group=name,
        job_type="report",
        dir=str(folder),
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
    )
    try:
        for study in studies:
            run.log(_content(study, [path for path in figures if path.parent == folder or study is not studies[0]]))
            for verdict in study.verdicts:
                run.summary[f"claim {verdict.number}"] = verdict.verdict
        artifact = wandb.Artifact(f"report-{name}".replace(",", "-").replace("=", "-"), type="report")
        for path in sorted(folder.iterdir()):
            if path.is_file():
                artifact.add_file(str(path))
        run.log_artifact(artifact)
    finally:
        run.finish()
