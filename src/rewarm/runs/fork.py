"""A run that begins as another: its first updates are taken from that run's folder and not trained again."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.config.sharing import beginnings
from rewarm.errors import DataError
from rewarm.runs import checkpoint
from rewarm.runs.folder import METRICS, RunFolder
from rewarm.runs.manifest import Forked
from rewarm.runs.metrics import read_content
from rewarm.runs.run import Run
from rewarm.storage import fsync_dir, storing


def last_shared(run: Run, config: Config) -> int | None:
    """Return the step of the newest checkpoint of `run` up to which a run of `config` would be the same; None: none.

    A run that was extended, or that went on under other conditions, is not the run of its config, and shares nothing.
    """
    if run.manifest.extensions or run.manifest.changes or run.damage:
        return None
    found = beginnings([(run.config, run.plan), (config, make_plan(config))])
    shared = max((beginning.steps for beginning in found if beginning), default=0)
    return max((step for step in run.checkpoints if step <= shared), default=None)


def fork(run: Run, step: int, config: Config, path: Path) -> None:
    """Make the folder `path` of a run of `config` that has come to `step` already, as `run` has.

    It is trained on from there like any run that was interrupted. Its checkpoints take no room of their own where the
    file system has hard links. A kill leaves all of it or nothing.
    Raises `StorageError` where there is no room, `DataError` where `path` holds something.
    """
    if path.is_dir() and any(path.iterdir()):
        raise DataError(f"{path}: holds something already; choose another run_dir")
    aside = path.with_name(f".{path.name}.fork.tmp")
    try:
        with storing(path):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            for earlier in (at for at in run.checkpoints if at <= step):
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


def _link(source: str, target: str) -> None:
    """Give a file another name, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
