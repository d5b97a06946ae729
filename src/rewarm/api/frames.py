"""Runs as a table of pandas."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rewarm.runs.run import find_runs, open_run

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def read_runs(*paths: str | os.PathLike[str]) -> pd.DataFrame:
    """Return a row for each step that the runs at or under `paths` have logged.

    Columns: `run` (its folder's name), `arm`, `seed`, `finished`, and what `metrics.jsonl` holds, such as `step`,
    `tokens`, `lr`, `train/loss`, `upstream/loss`, `downstream/loss` (nats a token); NaN where a step has none.
    Damage is said in the log. Raises `UserError` where there is no run, `DataError` where one cannot be read.
    """
    import pandas as pd

    frames = []
    for run in map(open_run, find_runs([Path(path) for path in paths])):
        if run.damage:
            log.warning("%s", run.damage)
        columns = {name: run.metrics[name] for name in run.metrics.columns}
        arm = run.config.arm.name or run.name.split(",seed=")[0]
        own = {"run": run.name, "arm": arm, "seed": run.seed, "finished": run.finished}
        frames.append(pd.DataFrame(own | columns, index=np.arange(len(run.metrics.steps))))
    table = pd.concat(frames, ignore_index=True)
    return table.astype({"step": np.int64, "tokens": np.int64})
