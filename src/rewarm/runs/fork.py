"""A run that begins as another: its first updates are taken from that run's folder and not trained again."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.config.sharing import beginnings
from rewarm.errors import DataError, UserError
from rewarm.runs import checkpoint
from rewarm.runs.folder import METRICS, RunFolder
from rewarm.runs.manifest import Forked
from rewarm.runs.metrics import read_content
from rewarm.runs.run import Run, open_run
from rewarm.storage import exclusive, fsync_dir, make_dir, storing

log = logging.getLogger(__name__)


def begin_as_asked(config: Config, *, compiles: bool) -> None:
    """Make the folder of a run that begins as `fork.run`, where that has updates that both share.

    Whatever keeps it from that is said, and the run is trained from its start: its numbers are the same.
    """
    path, of = Path(config.run_dir), config.fork.run
    if of is None:
        return
    lock = path.with_name(f".{path.name}.fork.lock")
    make_dir(path.parent, "run_dir")
    with exclusive(lock, wait=True):  # the run's own lock lies in the folder that is made here
        if not (path.is_dir() and any(path.iterdir())):
            try:
                run = open_run(Path(of))
                step = last_shared(run, config, compiles=compiles)
                if step is None:
                    log.info("%s: has no checkpoint to begin from; trained from the start", of)
                else:
                    fork(run, step, config, path)
                    log.info("begins as %s, whose %d steps it shares", of, step)
            except (UserError, DataError) as error:
                log.warning("fork.run: %s; trained from the start", error)
        lock.unlink(missing_ok=True)


def last_shared(run: Run, config: Config, *, compiles: bool = False) -> int | None:
    """Return the step of the newest checkpoint of `run` up to which a run of `config` would be the same; None: none.

    A run that was extended, or that went on under other conditions, is not the run of its config, and shares nothing;
    nor does one that was compiled where the other is not.
    """
    if run.manifest.extensions or run.manifest.changes or (run.manifest.chosen.compiled or False) != compiles:
        return None
    found = beginnings([(run.config, run.plan), (config, make_plan(config))])
    shared = max((beginning.steps for beginning in found if beginning), default=0)
    step = max((step for step in run.checkpoints if step <= shared), default=None)
    # Lines after it may be missing, as the run may be writing them now.
    return step if step is not None and not any(lost <= step for lost in run.lost) else None


def fork(run: Run, step: int, config: Config, path: Path) -> None:
    """Make the folder `path`, of a run of `config` that has come to `step` as `run` has.

    It is trained on from there like any run that was interrupted. Its checkpoints take no room of their own where the
    file system has hard links. A kill leaves all of it or nothing.
    Raises `StorageError` where there is no room, `DataError` where `path` holds something.
    """
    if path.is_dir() and any(path.iterdir()):
        raise DataError(f"{path}: holds something already; choose another run_dir")
    aside = path.with_name(f".{path.name}.fork.tmp")
    own = {at for at in run.checkpoints if at < step and at not in run.plan.saved_for_others}
    try:
        with storing(path):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            for earlier in (at for at in run.checkpoints if at == step or at in own):
                shutil.copytree(
                    run.checkpoint(earlier),
                    checkpoint.folder_of(aside / checkpoint.CHECKPOINTS, earlier),
                    copy_function=_link,
                )
            (aside / METRICS).write_bytes(read_content(run.path / METRICS))
        folder = RunFolder(aside)
        folder.trim_metrics(step)
        forked = Forked(str(run.path.resolve()), step)
        folder.write_manifest(replace(run.manifest, id=None, started=None, forked=forked))
        folder.write_config(config)
        with storing(path):
            if path.is_dir():
                path.rmdir()
            aside.rename(path)
            fsync_dir(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def free(run: Run) -> None:
    """Remove the checkpoints that a run has for those that begin as it, when none of them needs one any more."""
    with storing(run.path):
        checkpoint.prune(run.path / checkpoint.CHECKPOINTS, run.config.checkpoint, run.plan, forks=False)


def _link(source: str, target: str) -> None:
    """Give a file another name, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
