"""What a terminal shows of the runs of a sweep: one live table, or plain lines where there is no terminal."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rewarm.config.schema import SIDES
from rewarm.errors import RewarmError
from rewarm.runs.run import is_run, open_run

PROGRESS = re.compile(r"[\d,]+ tokens: loss ")
"""The lines of a run that the table holds in another form."""
EVERY = 2.0
"""Seconds between two looks into the folders of runs."""


@dataclass
class Row:
    """One run in the table."""

    folder: Path
    state: str
    began: float
    tokens: int = 0
    """Tokens at which it was when it began."""
    ended: bool = False
    cells: tuple[str, str, str] = ("", "", "")
    """What is shown of it; its files are not read again when it has ended."""


class Board:
    """Plain lines, each under the name of its run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def starts(self, name: str, folder: Path) -> None:  # noqa: ARG002 - the table reads it
        """Say that a run starts."""
        self._write(f"{name}: starts")

    def say(self, name: str, text: str) -> None:
        """Hand on a line of a run."""
        self._write(f"rewarm: {name}: {text[8:]}" if text.startswith("rewarm: ") else f"{name}: {text}")

    def ends(self, name: str, code: int) -> None:
        """Take note that a run has ended."""

    def state(self, name: str, folder: Path, state: str) -> None:
        """Take note of what the state of a run is, in the words of who has it."""

    def note(self, text: str) -> None:
        """Write a line that is about all runs."""
        self._write(text)

    def refresh(self) -> None:
        """Show what is new."""

    def _write(self, line: str) -> None:
        with self._lock:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


class LiveBoard(Board):
    """A table of all runs that have begun, each with its losses and the time that is left."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live = live
        self._rows: dict[str, Row] = {}
        self._shown = 0.0

    def starts(self, name: str, folder: Path) -> None:
        """Take the run into the table."""
        self._rows[name] = Row(folder, "running", time.monotonic(), _tokens(folder))

    def say(self, name: str, text: str) -> None:
        """Show a line above the table, unless the table says it."""
        if not PROGRESS.match(text):
            self._write(f"rewarm: {name}: {text[8:]}" if text.startswith("rewarm: ") else f"{name}: {text}")

    def ends(self, name: str, code: int) -> None:
        """Say in the table how the run ended."""
        if row := self._rows.get(name):
            row.state = "finished" if code == 0 else "saved" if code >= 128 or code == 75 else "failed"
            row.cells, row.ended = _cells(row), True
        self._shown = 0.0

    def state(self, name: str, folder: Path, state: str) -> None:
        """Say in the table what the state is."""
        row = self._rows.setdefault(name, Row(folder, state, time.monotonic(), _tokens(folder)))
        row.state = state

    def refresh(self) -> None:
        """Draw the table anew, every few seconds."""
        if time.monotonic() - self._shown < EVERY:
            return
        self._shown = time.monotonic()
        table = Table("run", "", *SIDES, "left", box=None, pad_edge=False)
        for name, row in self._rows.items():
            if not row.ended:
                row.cells = _cells(row)
            table.add_row(name, row.state, *row.cells)
        self._live.update(table, refresh=True)

    def _write(self, line: str) -> None:
        self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _tokens(folder: Path) -> int:
    try:
        run = open_run(folder) if is_run(folder) else None
    except RewarmError:  # it says so itself
        return 0
    return max(run.trained, 0) * run.plan.tokens_per_step if run else 0


def _cells(row: Row) -> tuple[str, str, str]:
    """Return the last losses of a run, and how long it will take."""
    try:
        run = open_run(row.folder) if is_run(row.folder) else None
        losses = [run.loss(side)[1].tolist() for side in SIDES] if run else [[], []]
    except RewarmError:
        return "", "", ""
    upstream, downstream = (f"{found[-1]:.4f}" if found else "" for found in losses)
    if run is None or row.state != "running":
        return upstream, downstream, ""
    done, whole = max(run.trained, 0) * run.plan.tokens_per_step, run.plan.steps * run.plan.tokens_per_step
    speed = (done - row.tokens) / max(time.monotonic() - row.began, 1e-9)
    seconds = (whole - done) / speed if speed > 0 else 0.0
    left = "" if seconds == 0 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return upstream, downstream, left


@contextmanager
def board() -> Iterator[Board]:
    """Yield a live table in a terminal, else plain lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Board()
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveBoard(live)
