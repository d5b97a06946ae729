"""A run too short for a profile; what a profile holds is tested with a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewarm.training.profiling import StepProfiler


def test_a_run_too_short_for_a_profile_says_so_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with StepProfiler(tmp_path / "profile", 3) as profiler:
        profiler.step()
    assert caplog.messages == ["profile=true: 3 steps are too few to be profiled; give a larger budget"]
    assert not (tmp_path / "profile").exists()
    StepProfiler(tmp_path / "profile", 4)
    assert (tmp_path / "profile").exists()
