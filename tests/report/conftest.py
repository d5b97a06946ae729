"""One synthetic sweep, and its report, for all tests that only read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.commands.report import report
from tests.report.runs import write_all


@pytest.fixture(scope="session")
def reported(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Return a sweep of every arm with two seeds, whose report has been written."""
    return made_once("reported", lambda folder: report([str(write_all(folder, seeds=2))]))
