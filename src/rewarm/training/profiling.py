"""`profile=true`: where the time of a step goes."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from rewarm.cache import make_dir

log = logging.getLogger(__name__)

WAIT, WARM_UP, ACTIVE = 4, 1, 3
"""Steps that are let pass, because the first ones compile and allocate; that are profiled for nothing; that count."""
ROWS = 40


def make_profiler(folder: Path, steps: int) -> StepProfiler | None:
    """Return the profiler of a run that has `steps` left; None, and a warning, where they are too few."""
    wait = min(WAIT, steps - WARM_UP - ACTIVE)
    if wait < 0:
        log.warning("profile=true: %d steps are too few to be profiled; give a larger budget", steps)
        return None
    return StepProfiler(folder, wait)


class StepProfiler:
    """Profiles a few steps into a folder: `trace.json` for a trace viewer (Perfetto), and `table.txt` to read."""

    def __init__(self, folder: Path, wait: int) -> None:
        self.folder = make_dir(folder, "run_dir")
        activities = [ProfilerActivity.CPU]
        self._by = "self_cpu_time_total"
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            self._by = "self_device_time_total"
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=wait, warmup=WARM_UP, active=ACTIVE, repeat=1),
            on_trace_ready=self._write,
        )

    def __enter__(self) -> Self:
        self._profile.__enter__()  # type: ignore[no-untyped-call]
        return self

    def step(self) -> None:
        """Say that a step has ended."""
        self._profile.step()

    def _write(self, found: profile) -> None:
        found.export_chrome_trace(str(self.folder / "trace.json"))
        table = found.key_averages().table(sort_by=self._by, row_limit=ROWS, max_name_column_width=60)
        (self.folder / "table.txt").write_text(f"{ACTIVE} steps\n{table}\n", encoding="utf-8")
        log.info("profile of %d steps: %s", ACTIVE, self.folder / "table.txt")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._profile.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
