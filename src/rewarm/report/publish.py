"""Puts a report into Weights & Biases: figures, table, and a dashboard made by code.

Panels that need only the runs' own metrics are a saved workspace, which needs an account. The same panels are also
logged as charts of a run of their own, so that without an account `wandb sync` of the offline folder shows them too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewarm.report.charts import Chart
from rewarm.report.study import Study
from rewarm.report.tables import cell, headings
from rewarm.tracking import wandb_mode

log = logging.getLogger(__name__)

PANELS = {"upstream/loss": "Upstream loss", "downstream/loss": "Downstream loss", "lr": "Learning rate"}


def dashboard(entity: str, project: str, name: str) -> Any:  # noqa: ANN401 - a wandb_workspaces Workspace
    """Return the workspace of a sweep: both losses, LR, loss scale and the trade-off, over tokens, grouped by arm."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as ws

    panels: Any = reports  # it fills its namespace at run time
    curves = [
        panels.LinePlot(title=title, x="tokens", y=[key])
        for key, title in (PANELS | {"loss_scale": "Loss scale"}).items()
    ]
    tradeoff = panels.ScatterPlot(title="Trade-off", x="downstream/loss", y="upstream/loss")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[ws.Section(name="Re-warming", panels=[*curves, tradeoff], is_open=True)],
        settings=ws.WorkspaceSettings(x_axis="tokens"),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == name],
            groupby=[ws.Metric("JobType")],
        ),
    )


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
                data=[[line.label, line.x[0], line.y[0]] for line in chart.lines],
            )
            logged["charts/tradeoff"] = wandb.plot.scatter(points, "downstream", "upstream", title=chart.title)
    columns = headings(study.rows)
    logged["arms"] = wandb.Table(
        columns=list(columns.values()), data=[[cell(row, key) for key in columns] for row in study.rows]
    )
    return logged


def publish(
    folder: Path, name: str, studies: Sequence[Study], figures: Sequence[Path], tracker: Mapping[str, Any]
) -> None:
    """Log the report of the sweep `name` as a W&B run; with an account, save the dashboard too.

    `tracker` is the `tracker` group of the runs' config: the report goes where they went.
    """
    import wandb

    mode = wandb_mode(str(tracker["mode"]))
    if mode == "offline":
        log.warning("W&B: offline, into %s/wandb; `wandb sync` uploads it", folder)
    run = wandb.init(
        project=tracker["project"],
        entity=tracker["entity"],
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
        if mode == "online":
            _save_dashboard(run.entity, run.project, name)
    finally:
        run.finish()


def _save_dashboard(entity: str, project: str, name: str) -> None:
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        workspace = dashboard(entity, project, name)
    except ImportError:
        log.warning("W&B: the dashboard needs wandb-workspaces; pip install 'rewarm[dashboard]'")
        return
    log.warning("W&B: dashboard at %s", workspace.save().url)
