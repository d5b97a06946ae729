"""Every command of the README is run as it stands, made small by overrides that go behind it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, rewarm

BLOCKS = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]
# The set-up scripts themselves run in CI before this test does.
OURS = [c.removeprefix("scripts/") for c in COMMANDS if c.removeprefix("scripts/").startswith("rewarm ")]


def test_the_readme_shows_commands() -> None:
    assert len(OURS) >= 6
    for command in COMMANDS:
        program = command.split()[0]
        assert program == "rewarm" or (ROOT / program).is_file(), command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files that the README's commands name."""
    (tmp_path / "old").mkdir()
    lines = [json.dumps({"text": f"line {n}: " + "some old and some new text " * 9}) for n in range(300)]
    (tmp_path / "old" / "part.jsonl").write_text("\n".join(lines))
    (tmp_path / "new.jsonl").write_text("\n".join(lines).replace("old", "fresh"))
    done = rewarm("train", *SMALL, "init=scratch", "budget=128", "run_dir=made", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "made" / "checkpoints" / "step-1").rename(tmp_path / "path" / "to" / "checkpoint")
    return tmp_path


@pytest.mark.parametrize("command", OURS)
def test_a_command_of_the_readme_works(command: str, folder: Path) -> None:
    _, *arguments = shlex.split(command)
    if "scale=paper" not in arguments and "-h" not in arguments:
        arguments += [override for override in SMALL if arguments[0] != "schedule" or "budget" not in override]
    done = rewarm(*arguments, cwd=folder)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.strip()
