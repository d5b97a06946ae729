"""Starts the runs of a sweep: each the ordinary command in a process of its own, here or as a job of SLURM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from rewarm.commands.board import Board, board
from rewarm.config.schema import SlurmConfig, SweepConfig, conf_dir
from rewarm.errors import SIGNALS, RewarmError, UserError
from rewarm.runs.run import read_summary
from rewarm.storage import make_dir

FOLLOWS = "REWARM_SWEEP"
"""Set in the environment of a run that a sweep has started: it saves and leaves when that one is gone."""
SAID = re.compile(r"rewarm(?: \(process \d+\))?: (.*)")
"""How a run says the error that ends it."""
SCRIPT = conf_dir().parent / "scripts" / "slurm"
"""What a job of SLURM runs: inside the package, or in a checkout."""
POLL = 5.0
"""Seconds between two looks at SLURM's queue."""


@dataclass(frozen=True)
class Job:
    """A run to start."""

    name: str
    arguments: tuple[str, ...]
    """All that its own command has, `run_dir` included."""
    folder: Path


class Source(Protocol):
    """Where runs to start come from."""

    def next(self) -> Job | None:
        """Return the next run to start; None where there is none, or none before another one has ended."""
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
    return process.wait(), said


def here(source: Source, options: SweepConfig, verb: str = "train") -> Ended:
    """Run everything that a source gives on this machine, `options.jobs` at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = options.jobs or cores
    threads = {"OMP_NUM_THREADS": str(max(1, cores // jobs))} if jobs > 1 else {}
    running, errors, failed = _Running(), [], []
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
            ended, _ = wait(futures, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in ended:
                job = futures.pop(future)
                code, said = future.result()
                del running.processes[job.name]
                code = code if code >= 0 else 128 - code
                shown.ends(job.name, code)
                source.done(job, code)
                if code:
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


# --- SLURM ---------------------------------------------------------------------------------------------------------


def _slurm(*command: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return what a command of SLURM's prints. Raises `UserError` where there is none, or with what it says."""
    try:
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise UserError(f"sweep.launcher=slurm: there is no {command[0]} here; start it where SLURM is") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines()
        raise UserError(f"sweep.launcher=slurm: {command[0]}: {said[0] if said else error}") from error


def _states(number: str) -> dict[str, str]:
    """Return the state of each task of an array that is still in SLURM's queue, by its index."""
    try:
        lines = _slurm("squeue", "--noheader", "--array", "--format=%K %T", f"--jobs={number}").splitlines()
    except UserError:  # a job that has left the queue for long is unknown
        return {}
    return dict(line.split(maxsplit=1) for line in lines if line.strip())


def _flags(asked: SlurmConfig) -> list[str]:
    """Return the options of sbatch for what each run is to get."""
    return [
        *([f"--partition={asked.partition}"] if asked.partition else []),
        *([f"--account={asked.account}"] if asked.account else []),
        *([f"--gpus-per-task={asked.gpus}"] if asked.gpus is not None else []),
        *([f"--cpus-per-task={asked.cpus}"] if asked.cpus else []),
        *([f"--time={asked.minutes}"] if asked.minutes else []),
        *asked.options,
    ]


def on_slurm(source: Source, options: SweepConfig, folder: Path) -> Ended:
    """Run everything that a source gives as an array of jobs, each by `scripts/slurm`, and wait for them.

    Ctrl-C leaves the jobs in the queue, and says how to cancel them; the same command then waits for them again.
    """
    place = make_dir(folder / ".slurm", "run_dir")
    written = place / "array"
    number, jobs = "", []
    while (job := source.next()) is not None:
        jobs.append(job)
    if not jobs:
        return Ended()
    if written.exists():
        number, *names = written.read_text().split("\n")
        if not _states(number):
            number = ""
        elif {job.name for job in jobs} - set(names):
            raise UserError(
                f"{folder}: SLURM's job {number} is running some of its runs; wait for it, or scancel {number}"
            )
        else:
            by_name = {job.name: job for job in jobs}
            jobs = [by_name[name] for name in names if name in by_name]
            order = {name: str(i) for i, name in enumerate(names)}
    if not number:
        order = {job.name: str(i) for i, job in enumerate(jobs)}
        for job in jobs:
            (place / order[job.name]).write_text("\n".join(job.arguments) + "\n")
        at_once = f"%{options.jobs}" if options.jobs else ""
        array, output = f"--array=0-{len(jobs) - 1}{at_once}", f"--output={place.resolve()}/%a.log"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where `rewarm` is
        flags = (array, output, *_flags(options.slurm))
        environment = os.environ | {"PATH": path}
        number = _slurm("sbatch", "--parsable", *flags, str(SCRIPT), str(place.resolve()), environment=environment)
        number = number.strip().partition(";")[0]
        written.write_text("\n".join((number, *(job.name for job in jobs))))
    return _await(source, jobs, number, order, place)


def _await(source: Source, jobs: Sequence[Job], number: str, order: dict[str, str], place: Path) -> Ended:
    """Show the jobs of an array until all have left the queue."""
    came: list[int] = []
    previous = {n: signal.signal(n, lambda n, _: came.append(n)) for n in SIGNALS}
    left = {job.name: job for job in jobs}
    errors, failed = [], []
    try:
        with board() as shown:
            shown.note(f"SLURM's job {number}; what the runs say is in {place}/*.log")
            while left and not came:
                states = _states(number)
                for name, job in list(left.items()):
                    state = states.get(order[name])
                    if state is not None:
                        shown.state(name, job.folder, f"{state.lower()} ({number}_{order[name]})")
                        continue
                    del left[name]
                    code = 0 if read_summary(job.folder) is not None else 1
                    shown.ends(name, code)
                    source.done(job, code)
                    if code:
                        errors.append(RewarmError(f"{name}: did not finish; see {place / order[name]}.log", 1))
                        failed.append(name)
                shown.refresh()
                if left and not came:
                    time.sleep(POLL)
    finally:
        for n, handler in previous.items():
            signal.signal(n, handler)
    if came:
        text = f"the jobs stay in SLURM's queue; scancel {number} ends them, the same command waits for them again"
        return Ended(RewarmError(text, 128 + came[0]), tuple(left))
    return Ended(errors[0] if errors else None, tuple(failed))
