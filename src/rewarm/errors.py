"""The errors that reach a user, each one line long, and how names are suggested."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that ask a run to save and leave: people and schedulers send them."""
LEFT = 128 + signal.SIGTERM
"""Exit code of a run that was asked to leave by SIGTERM."""


class RewarmError(Exception):
    """An error whose message is meant for the user as it stands, in one line; `exit_code` is the process's."""

    exit_code = 1

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(" ".join(message.splitlines()))
        if exit_code is not None:
            self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[RewarmError], tuple[Any, ...]]:
        # An error may be handed to another process; one that cannot be unpickled there would hide what went wrong.
        return type(self), (str(self), self.exit_code)


class UserError(RewarmError):
    """The user asked for something impossible; the message names the value and the fix."""

    exit_code = 2


class DataError(RewarmError):
    """Data that cannot be read or does not fit the run; a rerun continues once it is mended."""


class CheckpointError(RewarmError):
    """A checkpoint that is missing, incomplete or damaged."""

    exit_code = 2


class StorageError(RewarmError):
    """A file of the run that cannot be written; what was saved before is intact."""


class PreemptedError(RewarmError):
    """The run was asked to stop, and was saved; the same command continues it."""


class PeerFailedError(RewarmError):
    """Another process of the run failed, and says why; this one only leaves, with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run failed, and says why", exit_code)

    def __reduce__(self) -> tuple[type[PeerFailedError], tuple[Any, ...]]:
        return type(self), (self.exit_code,)


class DivergedError(RewarmError):
    """Training met too many non-finite values; the last good checkpoint is kept."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` for the known name nearest to `name`, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean '{matches[0]}'?" if matches else ""


def choice(what: str, value: str, known: Iterable[str]) -> UserError:
    """Return the error for a `value` of `what` that is not among the `known` ones."""
    names = sorted(known)
    return UserError(f"{what}={value}: unknown choice{nearest(value, names)} (choices: {', '.join(names)})")


def tell(error: RewarmError) -> None:
    """Write an error's line to stderr, unless another process of the run does; of several, say which one this is."""
    if isinstance(error, PeerFailedError):
        return
    who = f" (process {os.environ.get('RANK')})" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    sys.stderr.write(f"rewarm{who}: {error}\n")
