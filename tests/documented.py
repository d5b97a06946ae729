"""The commands of the documentation, as a reader would type them, made small.

The blocks of a page that are marked `bash` are run in order, in a folder with the files that they name. A block is
either shell, and run as it stands, or commands of `rewarm`, one a line, which are made small in one way: `smaller`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conftest import SMALL
from tests.hub.content import SHAPE
from tests.training.killing import Command

BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
"""As where rewarm is installed: its `python3` comes first."""
PROGRAMS = ("rewarm ", "scripts/rewarm ")


def blocks(text: str) -> list[str]:
    return BLOCK.findall(text)


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield title and text of each section of a page that has something to run."""
    for part in re.split(r"^## ", text, flags=re.MULTILINE):
        if blocks(part):
            yield part.partition("\n")[0], part


def commands(block: str) -> list[list[str]] | None:
    """Return the arguments of the `rewarm` commands of a block; None for a block of shell."""
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    if not lines[0].startswith(PROGRAMS):
        return None
    assert all(line.startswith(PROGRAMS) for line in lines), f"shell among commands: {block}"
    return [shlex.split(line)[1:] for line in lines]


def _scaled(argument: str) -> str:
    """Return an argument with 1,280 tokens, ten steps, for each million of a budget, a horizon or a stop."""
    key, _, value = argument.partition("=")
    if key not in ("budget", "horizon", "stop"):
        return argument
    return f"{key}=" + ",".join(str(round(float(part.removesuffix("M")) * 1280)) for part in value.split(","))


def smaller(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command with overrides behind them that make it take a second.

    Budgets and horizons keep their proportions, and nothing goes to W&B but where a tracker is named. What trains
    nothing stays as it is.
    """
    verb, given = arguments[0], list(arguments[1:])
    untrained = (
        verb in ("schedule", "report", "forecast", "diagnose", "merge") or "dry_run=true" in given or "--cfg" in given
    )
    if verb == "search":  # its space is checked as printed, and nothing trained
        return [*arguments, "dry_run=true"]
    if untrained:
        return list(arguments)
    names = {argument.partition("=")[0].partition(".")[0] for argument in given}
    small = [o for o in SMALL if not (o.startswith("budget=") and "budget" in names)]
    small = [o for o in small if not (o.startswith("tracker=") and "tracker" in names)]
    small += ["checkpoint.every=1"] if any(o.startswith("checkpoint.every=") for o in given) else []
    if "scale=paper" in given:
        small += [f"model.{key}={value}" for key, value in SHAPE.items()]
    return [verb, *map(_scaled, given), *small, "evaluation.every=2", "evaluation.dense_every=2"]


def run(text: str, folder: Path) -> None:
    """Run everything in a part of a page, in `folder`; raise an `AssertionError` at the first that fails."""
    for number, block in enumerate(blocks(text)):
        found = commands(block)
        if found is None:
            done = subprocess.run(
                ["bash", "-euc", block], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block}\n{done.stderr}"
            continue
        for line, arguments in enumerate(found):
            command = Command(smaller(arguments), folder / f"said-{number}-{line}", cwd=folder)
            assert command.wait() == 0, f"{' '.join(arguments)}\n{command.output[-3000:]}"
            assert command.output.strip(), arguments


def write_texts(folder: Path) -> None:
    """Write the texts that the pages name: `old/`, `new.jsonl`."""
    texts = (f"line {n}: " + "some old and some new text " * 9 for n in range(300))
    lines = [json.dumps({"text": text, "meta": {"set": "prose"}}) for text in texts]
    (folder / "old").mkdir()
    (folder / "old" / "part.jsonl").write_text("\n".join(lines))
    (folder / "new.jsonl").write_text("\n".join(lines).replace("old", "fresh"))
