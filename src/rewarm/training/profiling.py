"""`profile=true`: where the time of a step goes."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from rewarm.storage import make_dir

log = logging.getLogger(__name__)

WAIT, WARM_UP, ACTIVE = 4, 1, 3
"""Steps of torch.profiler.schedule. The first ones are passed over because they compile and allocate."""
ROWS = 40


class StepProfiler:
    """Profiles a few steps into a folder: `trace.json` for a trace viewer (Perfetto), and `table.txt` to read.

    Without a folder it does nothing, nor where the run has too few `steps` left, of which it warns.
    """

    def __init__(self, folder: Path | None, steps: int) -> None:
        self._profile: profile | None = None
        wait = min(WAIT, steps - WARM_UP - ACTIVE)
        if folder is None:
            return
        if wait < 0:
            log.warning("profile=true: %d steps are too few to be profiled; give a larger budget", steps)
            return
        self._folder = make_dir(folder, "run_dir")
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
        if self._profile is not None:
            self._profile.__enter__()  # type: ignore[no-untyped-call]
        return self

    def step(self) -> None:
        """Say that a step has ended."""
        if self._profile is not None:
            self._profile.step()

    def _write(self, found: profile) -> None:
        found.export_chrome_trace(str(self._folder / "trace.json"))
        averages = found.key_averages()
        # The parts of a step have little time of their own: among the operations they would fall below ROWS.
        parts = [event for event in averages if event.is_user_annotation]
        lines = [
            f"{ACTIVE} steps",
            *(f"{event.key}: {event.cpu_time_total / ACTIVE / 1000:.1f} ms a step" for event in parts),
            averages.table(sort_by=self._by, row_limit=ROWS, max_name_column_width=60),
        ]
        (self._folder / "table.txt").write_text("\n".join((*lines, "")), encoding="utf-8")
        log.info("profile of %d steps: %s", ACTIVE, self._folder / "table.txt")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._profile.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
