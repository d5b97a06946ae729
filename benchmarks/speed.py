"""The speed of `rewarm train`, as the run itself tells it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

QUIET = (
    *("tracker=none", "data.validation_tokens=4096", "evaluation.every=100000", "evaluation.dense_until=0"),
    *("checkpoint.every=100000", "train.log_every=5"),
)


def run_speeds(overrides: Sequence[str], environment: Mapping[str, str]) -> list[float] | str:
    """Return the tokens a second of each few steps of a run, or the last line of its complaint.

    Neither evaluation nor checkpoints are in them, nor are the first steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rewarm", "train", f"run_dir={folder}/run", *overrides, *QUIET]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no word"])[-1]
        rows = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()]
    return [row["tokens_per_second"] for row in rows if row.get("tokens_per_second")]
