"""Sweeps: what `-m` adds to a verb.

Hydra launches the runs of a sweep; here is what makes the same command find the same folders again, so that a run
that is done is not run twice and one that was cut continues, and what is said when all have ended.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from rewarm import study
from rewarm.config import SIDES
from rewarm.errors import RewarmError, UserError
from rewarm.rundir import RunFolder

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_SWEEP = re.compile(r"[+~]*(seeds?|arm|run_dir|dry_run|tracker|hydra)\b")
"""Overrides that leave a sweep the sweep that it is: more seeds or arms of it go into the same folder."""


def is_sweep(arguments: Sequence[str]) -> bool:
    """Return whether the command line asks for a sweep."""
    return any(a in ("-m", "--multirun") for a in arguments)


def asks_for_study(arguments: Sequence[str]) -> bool:
    """Return whether Optuna chooses what a sweep tries."""
    return "hydra/sweeper=optuna" in arguments


def _parse(arguments: Sequence[str]) -> list[Override]:
    """Return the overrides as Hydra reads them; none where there is a mistake, which Hydra then reports."""
    try:
        return OverridesParser.create().parse_overrides([a for a in arguments if "=" in a and not a.startswith("-")])
    except HydraException:
        return []


def _default_dir(overrides: Sequence[Override]) -> str:
    """Return the folder of a sweep that names none: the same question finds the same folder again."""
    lines = {o.key_or_group: str(o.input_line) for o in overrides}
    names = [line.split("=", 1)[1] for key, line in lines.items() if key == "experiment"]
    swept = [o.key_or_group for o in overrides if o.is_sweep_override() and o.key_or_group != "seed"]
    label = "-".join([*names, *swept]) or "sweep"
    telling = sorted(line for line in lines.values() if not SAME_SWEEP.match(line))
    digest = hashlib.sha256("\n".join(telling).encode()).hexdigest()[:8]
    return f"runs/{re.sub(r'[^A-Za-z0-9_.-]', '-', label)}-{digest}"


def _seeds(value: str) -> str:
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"seeds={value}: must be a number of seeds, at least 1")
    return "seed=" + ",".join(map(str, range(int(value))))


def prepare(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra takes them. Raises `UserError` where they ask for half a sweep.

    `seeds=3` becomes a sweep over `seed`, a sweep without a folder gets one, and the folder of each run is named
    after what the sweep varies: what all runs share would make names too long.
    """
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if not is_sweep(arguments):
        if "seeds" in given:
            raise UserError(f"seeds={given['seeds']}: repeats the arms of a sweep; add -m")
        name = given.get("experiment", "null")
        if name != "null" and "arm" not in given:
            raise UserError(f"experiment={name}: is a sweep over arms; add -m, or choose one with arm=…")
        return list(arguments)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("-m: a sweep starts processes of its own; start it without torchrun, or one run of it with")
    if "seeds" in given and "seed" in given:
        raise UserError(f"seeds={given['seeds']}: cannot go with seed={given['seed']}; give one of them")
    if "," in given.get("experiment", ""):
        raise UserError(
            f"experiment={given['experiment']}: give one at a time; experiment=all joins the paper's five"
        )
    prepared = [_seeds(given["seeds"]) if a.startswith("seeds=") else a for a in arguments]
    overrides = _parse(prepared)
    if "run_dir" not in given:
        prepared.append(f"run_dir={_default_dir(overrides)}")
    if asks_for_study(arguments):
        prepared += study.prepare(given)
    fixed = ["run_dir", "seed", *(o.key_or_group for o in overrides if not o.is_sweep_override())]
    return [*prepared, f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]"]


def finished_runs(folder: Path) -> tuple[list[RunFolder], list[RunFolder]]:
    """Return the runs of a sweep that have finished, and those that have not."""
    runs = [RunFolder(path) for path in sorted(folder.iterdir()) if path.is_dir() and "seed=" in path.name]
    done = [run for run in runs if run.read_summary() is not None]
    return done, [run for run in runs if run not in done]


def table(folder: Path) -> str:
    """Return the comparison of all runs of a sweep: loss before, at the peak and at the end, on both sides."""
    done, undone = finished_runs(folder)
    width = max((len(run.path.name) for run in (*done, *undone)), default=0) + 2
    head = "".join(f"{name:>9}" for name in ("start", "peak", "end"))
    lines = ["", f"{'nats a token':<{width}}{'upstream':>27}{'downstream':>29}", f"{'':<{width}}{head}  {head}"]
    for run in done:
        summary = run.read_summary()
        assert summary is not None
        cells = (
            "".join("        -" if (value := summary[side][key]) is None else f"{value:>9.4f}" for key in KEYS)
            for side in SIDES
        )
        lines.append(f"{run.path.name:<{width}}{'  '.join(cells)}")
    lines += [f"{run.path.name:<{width}}  did not finish" for run in undone]
    lines.append(f"next: rewarm report {folder}")
    return "\n".join(lines) + "\n"


def pareto(folder: Path) -> str:
    """Return the runs of a sweep that no other beats on both final losses, from the least forgetting on."""
    finals = {}
    for run in finished_runs(folder)[0]:
        summary = run.read_summary()
        assert summary is not None
        losses = tuple(summary[side]["final"] for side in SIDES)
        if None not in losses:
            finals[run.path.name] = losses
    front = [
        name
        for name, mine in finals.items()
        if not any(
            other != mine and all(o <= m for o, m in zip(other, mine, strict=True)) for other in finals.values()
        )
    ]
    width = max(map(len, front), default=0) + 2
    lines = ["", f"{f'Pareto front: {len(front)} of {len(finals)} runs':<{width}}  upstream  downstream"]
    for name in sorted(front, key=finals.__getitem__):
        upstream, downstream = finals[name]
        lines.append(f"{name:<{width}}{upstream:>10.4f}{downstream:>12.4f}")
    return "\n".join(lines) + "\n"


KEYS = ("start", "peak", "final")


def failure(folder: Path, first: RewarmError) -> RewarmError:
    """Return the error that ends a sweep of which `first` is what its first failed run said."""
    done, undone = finished_runs(folder)
    error = RewarmError(
        f"{len(undone)} of {len(done) + len(undone)} runs did not finish; the same command runs only those "
        f"(the first said: {first})"
    )
    error.exit_code = first.exit_code
    return error


# --- signals -------------------------------------------------------------------------------------------------------


class _Stop:
    """What this process remembers of a signal that ended one of its runs: it starts no other run of the sweep."""

    error: RewarmError | None = None


def stop_after(error: RewarmError) -> None:
    """Let this process start no more runs: its user, or the scheduler, wants it to end."""
    _Stop.error = error


def check_may_start() -> None:
    """Raise the error of the run that a signal ended in this process, if there was one."""
    if _Stop.error is not None:
        raise _Stop.error


def _children() -> list[int]:
    """Return the process ids of this process's children; none where there is no /proc."""
    found: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return found


@contextmanager
def passing_on_signals() -> Iterator[list[int]]:
    """While entered, pass the signals that ask a run to stop on to the processes that train; yield those that came.

    Without this a signal would end the parent at once, and its workers in the middle of a step. Ctrl-C reaches the
    workers by itself, as the terminal sends it to all.
    """
    came: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGINT and os.isatty(0):
            return
        for child in _children():
            os.kill(child, number)

    previous = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
