"""Runs the command in processes that can be killed at any moment, and compares what runs leave behind.

Each process is forked from a server that has imported everything, so that it starts in a fraction of a second;
what it executes from then on is the command as a user gives it.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tests.hub.content import jsonl, pile

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "init=scratch",
    *("model.hidden_size=32", "model.layers=2", "model.heads=2", "model.intermediate_size=64"),
    *("train.batch_size=4", "train.context=32", "train.micro_batch_size=2", "train.threads=1", "train.log_every=2"),
    *("budget=1536", "replay=0.3", "data.validation_tokens=256", "data.shuffle_window=16"),
    *("evaluation.every=4", "evaluation.dense_every=4", "checkpoint.every=3"),
    *("precision=fp32", "device=cpu", "tracker=none"),
)
"""A run of 12 steps with accumulation, one or two sequences of replay in a step, and four checkpoints."""
PHASES = {
    "the loop": r"loop\.py.* in train",
    "tokenising": r"producer\.py.* in _fill",
    "a store's shard": r"producer\.py.* in commit",
    "gradients": r"loop\.py.* in _accumulate_gradients",
    "an update": r"loop\.py.* in update",
    "an evaluation": r"loop\.py.* in evaluate",
    "a checkpoint's copy": r"snapshot\.py.* in copy",
    "a checkpoint's files": r"folder\.py.* in write",
    "a manifest, or another file renamed into place": r"storage\.py.* in write_durably",
    "retention": r"checkpoints/.* in prune",
    "the end": r"(recorder|summary)\.py.* in (finish|table)",
}
"""What a thread of a run is doing, by a line of its stack."""
SPEEDS = ("tokens_per_second", "mfu")
WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate"}


@dataclass(frozen=True)
class Fault:
    """Strikes when the process is about to change the file system under `folder` for the `at`-th time."""

    folder: str
    at: int
    kind: str
    """kill (SIGKILL), stop (SIGSTOP), term (SIGTERM), term2 (two at once), enospc, or note."""
    note: str = ""
    """note: file that takes down all changes."""
    call: str = ""
    """Strikes when the main thread calls a function of this name for the `at`-th time instead."""

    def install(self) -> None:
        if self.call:
            self._watch_calls()
        else:
            self._watch_changes()

    def _watch_calls(self) -> None:
        seen = 0

        def hook(frame: FrameType, event: str, _: object) -> None:
            nonlocal seen
            if event == "call" and frame.f_code.co_name == self.call:
                seen += 1
                if seen == self.at:
                    sys.setprofile(None)
                    self._strike("")

        sys.setprofile(hook)

    def _watch_changes(self) -> None:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event == "open":
                path, _, flags = arguments
                writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            else:
                path, writes = (arguments[0] if arguments else None), event in WRITES
            if not writes or not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self.folder):
                return
            seen += 1
            if self.kind == "note":
                os.write(trace, f"{event} {os.fspath(path)}\n".encode())
            elif seen == self.at:
                self._strike(os.fspath(path))

        if self.kind == "note":
            trace = os.open(self.note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(hook)

    def _strike(self, path: str) -> None:
        if self.kind == "enospc":
            raise OSError(errno.ENOSPC, "No space left on device", path)
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}.get(self.kind, signal.SIGTERM)
        for _ in range(2 if self.kind == "term2" else 1):
            os.kill(os.getpid(), number)


def _command(
    arguments: Sequence[str], environment: dict[str, str], cwd: str, output: str, stacks: str, fault: Fault | None
) -> None:
    from rewarm.cli import main

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv = ["rewarm", *arguments]
    faulthandler.register(signal.SIGRTMIN, file=os.open(stacks, os.O_WRONLY | os.O_CREAT), all_threads=True)
    if fault is not None:
        fault.install()
    main()


class Command:
    """`rewarm ARGUMENTS`, started; `output` is what it wrote so far to stdout and stderr."""

    def __init__(
        self,
        arguments: Sequence[str],
        output: Path,
        fault: Fault | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        # The server that processes are forked from looks for modules only there.
        os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT / "src", ROOT)))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.training.preload"])
        self._output, self._stacks = output, output.with_suffix(".stacks")
        self._stacks.unlink(missing_ok=True)
        own = os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {})
        target = (list(arguments), own, str(cwd or Path.cwd()), str(output), str(self._stacks), fault)
        self.process: ForkServerProcess = context.Process(target=_command, args=target)
        self.process.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit code, or None if it still runs after `seconds`."""
        self.process.join(seconds)
        return self.process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill_and_tell(self) -> set[str] | None:
        """Kill the process; return the `PHASES` that its threads were in just before. None if it ended by itself."""
        self.kill(signal.SIGRTMIN)  # kills as well, before the handler is there
        told = ""
        while self.wait(0.001) is None:
            before, told = told, self._stacks.read_text() if self._stacks.exists() else ""
            if told and told == before:
                break
        if self.process.exitcode is None:
            self.kill()
            self.wait()
        # Python writes down the stacks of threads that run on: now and then it is killed by what it finds there.
        if self.process.exitcode not in (-signal.SIGKILL, -signal.SIGRTMIN, -signal.SIGSEGV):
            return None
        return {phase for phase, line in PHASES.items() if re.search(line, told)}

    def is_stopped(self) -> bool:
        """Return whether a SIGSTOP holds the process."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    @property
    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""


class Runs:
    """Runs of one set of overrides in folders of their own, against the one that nobody disturbed.

    With `own_store` each run tokenises small files into a store of its own while it trains, of many shards; replay
    goes through the old text more than once.
    """

    def __init__(self, folder: Path, *overrides: str, own_store: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._overrides = (*TINY, *(_files(folder) if own_store else ()), *overrides)
        self._own_store = own_store
        self._number = 0
        self.reference = self.new()
        self.finish(self.reference)  # the first one also tokenises
        self.reference = self.new()
        start = time.monotonic()
        self.finish(self.reference)
        self.seconds = time.monotonic() - start

    def new(self) -> Path:
        """Return the folder of a run that is still to begin."""
        self._number += 1
        return self.folder / f"run-{self._number}"

    def start(self, run: Path, fault: Fault | None = None, *overrides: str) -> Command:
        arguments = ("train", *self._overrides, f"run_dir={run}", *overrides)
        environment = {"REWARM_CACHE": str(cache_of(run))} if self._own_store else {}
        return Command(arguments, run.with_suffix(".out"), fault, environment)

    def finish(self, run: Path, *overrides: str) -> Command:
        command = self.start(run, None, *overrides)
        assert command.wait() == 0, command.output
        return command

    def changes(self) -> list[str]:
        """Return what an undisturbed run does to the file system, in order: the moments for a fault to strike."""
        run, trace = self.new(), self.folder / "trace"
        assert self.start(run, Fault(str(run), 0, "note", str(trace))).wait() == 0
        return [line.replace(f"{run}/", "") for line in trace.read_text().splitlines()]

    def check(self, run: Path) -> None:
        """Assert that a run left behind exactly what the undisturbed one did."""
        assert_same(run, self.reference)
        if self._own_store:
            assert stores(run) == stores(self.reference)


def _files(folder: Path) -> list[str]:
    """Write a little text, and return the overrides that train on it."""
    overrides = ["data=files", "data.shard_tokens=250", "data.shuffle_window=4"]
    for side, documents in (("upstream", 12), ("downstream", 80)):
        path = folder / f"{side}.jsonl"
        path.write_bytes(jsonl(pile(side, documents)))
        held_out = folder / f"{side}-validation.jsonl"
        held_out.write_bytes(jsonl(pile(f"{side} validation", 20)))
        overrides.append(f"data.{side}={{path:{path},validation_path:{held_out}}}")
    return overrides


def cache_of(run: Path) -> Path:
    """Return the cache of a run with a store of its own. Its name begins with the run's, as `Fault.folder` needs."""
    return run.with_name(f"{run.name}.cache")


def stores(run: Path) -> dict[str, bytes]:
    """Return the content of every file of a run's own stores.

    All but `complete.json`: a run that was killed just before it, and had all the tokens it needs, leaves it to the
    next that asks for more.
    """
    cache = cache_of(run)
    of_this_machine = ("lock", "checked.jsonl")
    files = (
        path
        for path in sorted(cache.rglob("*"))
        if path.is_file() and path.name not in (*of_this_machine, "complete.json")
    )
    # A killed process leaves what it had not renamed.
    return {str(path.relative_to(cache)): path.read_bytes() for path in files if path.suffix != ".tmp"}


@dataclass
class Tally:
    """What a series of kills met."""

    ended: int = 0
    """Runs that were killed and ended, equal to the undisturbed one."""
    phases: Counter[str] = field(default_factory=Counter)
    """Kills by what a thread was doing."""
    starting: int = 0
    """Kills of a process that had not begun to train."""
    in_a_row: int = 0
    """Those that followed upon another one of the same run."""


def kill_at_random(runs: Runs, kills: int, seed: int) -> Tally:
    """Kill runs at `kills` uniformly random moments, each continued until it ends."""
    rng = random.Random(seed)
    run, killed, tally, was_starting = runs.new(), 0, Tally(), False
    while killed < kills:
        command = runs.start(run)
        ended = command.wait(rng.uniform(0, runs.seconds)) is not None
        phases = None if ended else command.kill_and_tell()
        if phases is not None:
            starting = not phases & {"the loop", "the end"}
            tally.phases.update(phases)
            tally.starting += starting
            tally.in_a_row += starting and was_starting
            killed, was_starting = killed + 1, starting
        else:
            assert command.wait() == 0, command.output
            runs.check(run)
            run, was_starting = runs.new(), False
            tally.ended += 1
    runs.finish(run)
    runs.check(run)
    tally.ended += 1
    return tally


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in SPEEDS} for row in rows]


def state(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint / "state.pt", weights_only=True)


def assert_equal_trees(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_trees(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal_trees(x, y)
    else:
        assert a == b


def assert_same(run: Path, other: Path) -> None:
    """Assert equality to the last bit: weights, optimizer, scaler, counts, RNG, metrics, summary."""
    names = sorted(path.name for path in (other / "checkpoints").iterdir())
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names
    for name in names:
        mine, theirs = run / "checkpoints" / name, other / "checkpoints" / name
        for file in ("model.safetensors", "config.json"):
            assert (mine / file).read_bytes() == (theirs / file).read_bytes()
        assert_equal_trees(state(mine), state(theirs))
    assert metrics(run) == metrics(other)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, other)]
    for summary in summaries:
        summary.pop("tokens_per_second")
    assert summaries[0] == summaries[1]
