"""One synthetic sweep, and its report, for all tests that only read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewarm.report.command import report
from tests.report.runs import write_all


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep of every arm with two seeds, whose report has been written."""
    folder = write_all(tmp_path_factory.mktemp("sweep"), seeds=2)
    report([str(folder)])
    return folder
