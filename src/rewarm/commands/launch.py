"""Starts the runs of a sweep on this machine, each the ordinary command in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from rewarm.commands.board import Board, board
from rewarm.config.sweep_schema import SweepConfig
from rewarm.errors import LEFT, SIGNALS, RewarmError

FOLLOWS = "REWARM_SWEEP"
"""Set in the environment of a run that a sweep has started: it saves and leaves when that one is gone."""
SAID = re.compile(r"rewarm(?: \(process \d+\))?: (.*)")
"""How a run says the error that ends it."""


@dataclass(frozen=True)
class Begins:
    """The run that another one begins as, and the step up to which both are the same."""

    name: str
    folder: Path
    step: int


@dataclass(frozen=True)
class Job:
    """A run to start."""

    name: str
    arguments: tuple[str, ...]
    """All that its own command has, `run_dir` included."""
    folder: Path
    begins: Begins | None = field(default=None, kw_only=True)
    """What it waits for."""


class Source(Protocol):
    """Where runs to start come from."""

    def next(self) -> Job | None:
        """Return the next run to start; None where there is none, or none before another one has ended."""
        ...

    def all(self) -> Sequence[Job]:
        """Return all runs to start, whether they wait for others or not."""
        ...

    def to_leave(self) -> Sequence[str]:
        """Return the names of runs that are not worth their time any more. Asked every second or so."""
        ...

    def done(self, job: Job, code: int) -> None:
        """Take note that a run has ended with this exit code."""
        ...


@dataclass(frozen=True)
class Ended:
    """How a sweep ended."""

    error: RewarmError | None = None
    """What the first run that did not finish said, with the exit code of the sweep."""
    failed: tuple[str, ...] = ()
    """Runs that did not finish."""


class _Running:
    """The processes of runs that are running, and the signals that came meanwhile."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def pass_on(self, number: int, _: FrameType | None) -> None:
        """Pass a signal on to all runs. From a terminal Ctrl-C reaches them by itself."""
        self.came.append(number)
        if not (number == signal.SIGINT and os.isatty(0)):
            for process in list(self.processes.values()):
                process.send_signal(number)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While entered, signals are passed on."""
        previous = {number: signal.signal(number, self.pass_on) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start a run. Its standard input is a pipe whose end it sees when this process is gone."""
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**environment, FOLLOWS: "1", "PYTHONUNBUFFERED": "1"},
        )


def _listen(job: Job, process: subprocess.Popen[str], shown: Board, *, prints: bool) -> tuple[int, str]:
    """Hand on what a run says until it ends; return its exit code and the error that it ended with."""
    said = ""
    assert process.stdout is not None
    assert process.stderr is not None

    def out(stream: Iterator[str]) -> None:
        for line in stream:
            if prints:
                sys.stdout.write(f"{job.name}: {line}")

    reader = threading.Thread(target=out, args=(process.stdout,), daemon=True)
    reader.start()
    for line in process.stderr:
        text = line.rstrip("\n")
        if error := SAID.fullmatch(text):
            said = error[1]
        if text:
            shown.say(job.name, text)
    reader.join()
    code = process.wait()
    with process:  # closes the pipes; the run would see the end of its input as that of the sweep
        return code, said


def here(source: Source, options: SweepConfig, verb: str = "train") -> Ended:
    """Run everything that a source gives on this machine, `options.jobs` at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = options.jobs or cores
    threads = {"OMP_NUM_THREADS": str(max(1, cores // jobs))} if jobs > 1 else {}
    running, errors, failed, left = _Running(), [], [], set[str]()
    futures: dict[Future[tuple[int, str]], Job] = {}
    with running.listening(), board() as shown, ThreadPoolExecutor(jobs) as pool:
        while True:
            while len(futures) < jobs and not running.came and (job := source.next()) is not None:
                command = [sys.executable, "-m", "rewarm", verb, *job.arguments]
                process = running.start(command, threads | os.environ)
                running.processes[job.name] = process
                if running.came:  # between the last look and the start
                    process.send_signal(running.came[0])
                shown.starts(job.name, job.folder)
                futures[pool.submit(_listen, job, process, shown, prints=verb != "train")] = job
            if not futures:
                break
            for name in running.processes.keys() & (set(source.to_leave()) - left):
                left.add(name)
                running.processes[name].terminate()  # it saves and leaves, with LEFT
            ended, _ = wait(futures, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in ended:
                job = futures.pop(future)
                code, said = future.result()
                del running.processes[job.name]
                code = code if code >= 0 else 128 - code
                shown.ends(job.name, code)
                source.done(job, code)
                if code and not (code == LEFT and job.name in left):
                    errors.append(RewarmError(said or f"{job.name}: ended with exit code {code}", code))
                    failed.append(job.name)
            shown.refresh()
    if running.came:
        said = str(errors[0]) if errors else "stopped by a signal"
        return Ended(RewarmError(said, 128 + running.came[0]), tuple(failed))
    return Ended(errors[0] if errors else None, tuple(failed))


def follow_sweep() -> None:
    """Where a sweep has started this process, save and leave when that one is gone, however it ended."""
    if os.environ.pop(FOLLOWS, None) is None:
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="sweep", daemon=True).start()
