"""What trackers are told of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.config.schema import Config
from rewarm.errors import PreemptedError
from rewarm.training.run import run


# wandb imports what Python has deprecated, and leaves a file open at exit.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_run_that_is_continued_goes_on_under_its_name_in_wandb(
    small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    with pytest.raises(PreemptedError):
        run(small("init=scratch", "tracker=wandb", "max_hours=1e-6"))
    name = json.loads((folder / "manifest.json").read_text())["id"]
    run(small("init=scratch", "tracker=wandb"))
    assert json.loads((folder / "manifest.json").read_text())["id"] == name
    parts = [path.name for path in folder.glob("wandb/offline-run-*/run-*.wandb")]
    assert parts == [f"run-{name}.wandb"] * 2
