"""Every command of the README, the tutorial and the how-to runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL
from tests.data.test_indexed import sequences, write
from tests.documented import blocks, commands, run, sections, write_texts
from tests.hub import Hub
from tests.hub.content import pythia
from tests.training.killing import Command

ALONE = [
    pytest.param(text, id=f"{page}: {title}")
    for page in ("README.md", "docs/how-to.md")
    for title, text in sections((ROOT / page).read_text())
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint for `init=path/to/checkpoint`."""
    folder = tmp_path_factory.mktemp("checkpoint")
    made = Command(["train", *SMALL, "init=scratch", "budget=128", "run_dir=run"], folder / "said", cwd=folder)
    assert made.wait() == 0, made.output
    return folder / "run" / "checkpoints" / "step-1"


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Path, hub: Hub) -> Path:
    """Return a folder, and a hub, with everything that the pages name."""
    write_texts(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "path" / "to" / "checkpoint")
    (tmp_path / "tokens").mkdir()
    write(tmp_path / "tokens", sequences(300))
    for suffix in (".idx", ".bin"):
        (tmp_path / "tokens" / f"document{suffix}").rename(tmp_path / "tokens" / f"pile_document{suffix}")
    hub.add("model", "HuggingFaceTB/SmolLM2-135M", {"main": pythia(3)})
    return tmp_path


@pytest.mark.parametrize("text", ALONE)
def test_the_commands_of_a_section_run(text: str, folder: Path) -> None:
    run(text, folder)


def test_the_tutorial_runs_from_beginning_to_end(tmp_path: Path) -> None:
    run((ROOT / "docs" / "tutorial.md").read_text(), tmp_path)
    assert (tmp_path / "runs" / "max_lr" / "report" / "index.html").is_file()
    assert (tmp_path / "runs" / "max_lr" / "report" / "forecast.json").is_file()


def test_the_pages_show_every_verb() -> None:
    shown = set()
    for page in ("README.md", "docs/tutorial.md", "docs/how-to.md"):
        for block in blocks((ROOT / page).read_text()):
            shown |= {arguments[0] for arguments in commands(block) or []}
    assert shown == {"train", "eval", "prepare", "schedule", "report", "forecast", "search", "diagnose", "merge"}
