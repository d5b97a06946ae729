"""Starts the runs of a sweep as jobs of SLURM, each by `scripts/slurm`, and waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rewarm.commands.board import board
from rewarm.commands.launch import Ended, Job, Source
from rewarm.config.shipped import conf_dir
from rewarm.config.sweep_schema import SlurmConfig, SweepConfig
from rewarm.errors import LEFT, SIGNALS, RewarmError, UserError
from rewarm.runs.run import read_summary
from rewarm.storage import make_dir

SCRIPT = conf_dir().parent / "scripts" / "slurm"
"""What a job of SLURM runs: inside the package, or in a checkout."""
POLL = 5.0
"""Seconds between two looks at SLURM's queue."""


def _slurm(*command: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return what a command of SLURM's prints. Raises `UserError` where there is none, or with what it says."""
    try:
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise UserError(f"sweep.launcher=slurm: there is no {command[0]} here; start it where SLURM is") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines()
        raise UserError(f"sweep.launcher=slurm: {command[0]}: {said[0] if said else error}") from error


def _states(numbers: Iterable[str]) -> dict[str, str]:
    """Return the state of each task of some arrays that is still in SLURM's queue, by its number such as 17_3."""
    try:
        asked = f"--jobs={','.join(sorted(numbers))}"
        lines = _slurm("squeue", "--noheader", "--array", "--format=%F_%K %T", asked).splitlines()
    except UserError:  # jobs that have left the queue for long are unknown
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
    """Run everything that a source gives as jobs of SLURM, each by `scripts/slurm`, and wait for them.

    Runs that wait for the same run are an array, which SLURM starts when that has ended. Ctrl-C leaves the jobs in
    the queue, and says how to cancel them; the same command then waits for them again.
    """
    place = make_dir(folder / ".slurm", "run_dir")
    written = place / "jobs"
    jobs = {job.name: job for job in source.all()}
    if not jobs:
        return Ended()
    lines = written.read_text().splitlines() if written.exists() else []
    queued = {name: number for number, _, name in (line.partition(" ") for line in lines)}
    arrays = {number.partition("_")[0] for number in queued.values()}
    if not (queued and _states(arrays)):
        queued = _submit(list(jobs.values()), options, place, written)
    elif jobs.keys() - queued.keys():
        numbers = " ".join(sorted(arrays))
        raise UserError(
            f"{folder}: SLURM's jobs {numbers} are running some of its runs; wait for them, or scancel {numbers}"
        )
    return _await(source, {name: (jobs[name], number) for name, number in queued.items() if name in jobs}, place)


def _submit(jobs: Sequence[Job], options: SweepConfig, place: Path, written: Path) -> dict[str, str]:
    """Put runs into SLURM's queue, and return the number of each by its name.

    Each array is `written` down as soon as it is in the queue: a command that is killed between two must not put the
    first into it once more.
    """
    numbers: dict[str, str] = {}
    index = {job.name: i for i, job in enumerate(jobs)}
    for job in jobs:
        (place / str(index[job.name])).write_text("\n".join(job.arguments) + "\n")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # `rewarm`
    while len(numbers) < len(jobs):
        left = [job for job in jobs if job.name not in numbers]
        first = next(job.begins.name if job.begins else None for job in left if not _waits(job, index, numbers))
        array = [job for job in left if (job.begins.name if job.begins else None) == first]
        tasks = ",".join(str(index[job.name]) for job in array) + (f"%{options.jobs}" if options.jobs else "")
        waits = [f"--dependency=afterany:{numbers[first]}"] if first in numbers else []
        flags = (f"--array={tasks}", f"--output={place.resolve()}/%a.log", *waits, *_flags(options.slurm))
        said = _slurm("sbatch", "--parsable", *flags, str(SCRIPT), str(place.resolve()), environment=environment)
        numbers |= {job.name: f"{said.strip().partition(';')[0]}_{index[job.name]}" for job in array}
        written.write_text("".join(f"{number} {name}\n" for name, number in numbers.items()))
    return numbers


def _waits(job: Job, left: Mapping[str, int], numbers: Mapping[str, str]) -> bool:
    """Return whether a run waits for one that is not in the queue yet."""
    return job.begins is not None and job.begins.name in left and job.begins.name not in numbers


def _await(source: Source, queued: Mapping[str, tuple[Job, str]], place: Path) -> Ended:
    """Show runs that are in SLURM's queue, each with its number, until all have left it."""
    came: list[int] = []
    previous = {n: signal.signal(n, lambda n, _: came.append(n)) for n in SIGNALS}
    left = dict(queued)
    arrays = sorted({number.partition("_")[0] for _, number in queued.values()})
    errors, failed, told = [], [], set[str]()
    try:
        with board() as shown:
            shown.note(f"SLURM's jobs {' '.join(arrays)}; what the runs say is in {place}/*.log")
            while left and not came:
                states = _states(arrays)
                for name, (job, number) in list(left.items()):
                    state = states.get(number)
                    if state is not None:
                        shown.state(name, job.folder, f"{state.lower()} ({number})")
                        continue
                    del left[name]
                    code = 0 if read_summary(job.folder) is not None else LEFT if name in told else 1
                    shown.ends(name, code)
                    source.done(job, code)
                    if code and name not in told:
                        log = place / f"{number.partition('_')[2]}.log"
                        errors.append(RewarmError(f"{name}: did not finish; see {log}", 1))
                        failed.append(name)
                for name in [name for name in source.to_leave() if name in left and name not in told]:
                    told.add(name)
                    running = states.get(left[name][1]) == "RUNNING"
                    # The script hands the signal on, and the run saves in its own time. A job that waits just goes.
                    _slurm("scancel", *(("--signal=TERM", "--batch") if running else ()), left[name][1])
                shown.refresh()
                if left and not came:
                    time.sleep(POLL)
    finally:
        for n, handler in previous.items():
            signal.signal(n, handler)
    if came:
        cancel = f"scancel {' '.join(arrays)}"
        text = f"the jobs stay in SLURM's queue; {cancel} ends them, the same command waits for them again"
        return Ended(RewarmError(text, 128 + came[0]), tuple(left))
    return Ended(errors[0] if errors else None, tuple(failed))
