"""Where rewarm keeps what it can make again, and how files are put there without ever being half written."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rewarm.errors import StorageError, UserError

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return the cache folder: `REWARM_CACHE`, or `rewarm` in the user's own cache folder."""
    if given := os.environ.get("REWARM_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rewarm"


def make_dir(path: Path, what: str) -> Path:
    """Make the folder `path` with its parents and return it; `what` names the setting that chose it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{what}={path}: cannot be made ({error.strerror}); choose another folder") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"{what}={path}: cannot be written; choose another folder")
    return path


def fsync_dir(path: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` so that a reader sees all of it or nothing, whatever is killed when."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)  # what a full disk left of it
        raise
    fsync_dir(path.parent)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file of the run is written into a `StorageError`, which says what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); what was saved before is intact; "
            f"make room, and the same command goes on"
        ) from error


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write `value` to `path` as readable JSON, durably."""
    write_durably(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def load_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object that a file holds, or None where it holds anything else."""
    try:
        value = json.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError):  # what is not UTF-8 is a ValueError
        return None
    return value if isinstance(value, dict) else None


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values with a checksum of themselves, `sha256`."""
    return {**values, "sha256": _checksum(values)}


def is_sealed(values: Mapping[str, Any]) -> bool:
    """Return whether JSON values hold a checksum of themselves, and are what it says."""
    rest = {key: value for key, value in values.items() if key != "sha256"}
    return values.get("sha256") == _checksum(rest)


def set_aside(path: Path) -> str:
    """Rename a damaged file or folder, so that it stays without being taken for a whole one; return its new name."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    with suppress(FileNotFoundError):  # another process has done it
        path.rename(aside)
    return aside.name


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock file `path`, and yield whether it was got; the lock dies with the process.

    With `wait` it is always got, sooner or later; without, another owner means False at once. The file says who
    the owner is. A file system without locks counts as one without other owners.
    """
    with storing(path):
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            log.warning("%s: this file system has no locks (%s)", path, error.strerror)
            yield True
            return
        with suppress(OSError):  # a full disk must not keep a run from going on
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
