"""Asking the hub: with patience where it fails, in one line where it refuses, and not again soon where it is away."""

from __future__ import annotations

import difflib
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from rewarm.errors import DataError, RewarmError, UserError, first_line

log = logging.getLogger(__name__)
T = TypeVar("T")

START_PATIENCE = 8.0
"""Seconds for which a hub that fails is tried before a run says that it cannot be reached."""
CONNECT_SECONDS = 4.0
"""Seconds to wait for an answer, twice: with the time that the libraries take to load, less than 15 in all."""
AWAY_SECONDS = 60.0
"""Seconds for which a hub that did not answer counts as away: files then come from the cache."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second try; each further wait is twice as long, up to the longest."""


class HubUnreachableError(DataError):
    """The hub does not answer, and what is asked of it is not in the cache."""


@dataclass(frozen=True)
class Repo:
    """A repository of the hub at a revision; `key` is the config's name for it, which leads errors."""

    key: str
    id: str
    revision: str
    type: str = "model"

    def __str__(self) -> str:
        return f"{self.key}={self.id}@{self.revision}"


def parse_id(key: str, name: str, default_revision: str = "main") -> Repo | None:
    """Return the model repository that `owner/name` or `owner/name@revision` names; None for what is no id."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    return Repo(key, match[1], match[2] or default_revision) if match else None


@dataclass
class Silence:
    """When the hub was last found not to answer."""

    since: float = -math.inf

    def lasts(self) -> bool:
        """Return whether it is too early to ask again."""
        return time.monotonic() < self.since + AWAY_SECONDS

    def begins(self) -> None:
        """Note that the hub did not answer."""
        self.since = time.monotonic()


# One for the process: a model, its tokenizer and its data are asked for in turn, and each would wait anew.
silence = Silence()


def nearest_revisions(wanted: str, known: Sequence[str]) -> list[str]:
    """Return up to four of the `known` revisions: those whose step is nearest, or whose name is most alike."""
    step = re.fullmatch(r"(?:step)?(\d+)", wanted)
    steps = {name: int(match[1]) for name in known if (match := re.fullmatch(r"step(\d+)", name))}
    if step and steps:
        near = sorted(steps, key=lambda name: abs(steps[name] - int(step[1])))[:4]
        return sorted(near, key=steps.__getitem__)
    return difflib.get_close_matches(wanted, known, n=4, cutoff=0.3) or sorted(known)[:4]


def _waits(patience: float) -> Iterator[float]:
    """Yield how long to wait before each further try, until `patience` seconds have passed."""
    deadline = time.monotonic() + patience
    wait = FIRST_WAIT
    while (left := deadline - time.monotonic()) > 0:
        yield min(wait, left)
        wait = min(2 * wait, LONGEST_WAIT)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def gated_advice(repo_id: str, repo_type: str) -> str:
    """Return what there is to do about a gated repository."""
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    return f"is gated; accept its licence at {page}, and set HF_TOKEN to a token of that account"


@contextmanager
def explained(repo: Repo) -> Iterator[None]:
    """Turn what the hub says of a repository into one line."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError as error:
        refs = HfApi().list_repo_refs(repo.id, repo_type=repo.type)
        near = nearest_revisions(repo.revision, [ref.name for ref in (*refs.branches, *refs.tags)])
        raise UserError(f"{repo}: has no revision {repo.revision}; the nearest are {', '.join(near)}") from error
    except GatedRepoError as error:
        raise UserError(f"{repo}: {gated_advice(repo.id, repo.type)}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{repo}: no such {repo.type} on the hub, or it is private and HF_TOKEN is not set"
        ) from error


def _quiet() -> None:
    """Keep the hub's libraries from reporting each request: what matters is reported here."""
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    for name in ("httpx", "httpx2", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


def repo_info(repo: Repo) -> Any | None:  # noqa: ANN401 - ModelInfo or DatasetInfo
    """Return what the hub says of a repository, or None where it cannot be reached."""
    from huggingface_hub import HfApi

    _quiet()
    if silence.lasts():
        return None
    waits = _waits(START_PATIENCE)
    unanswered = 0
    while True:
        try:
            with explained(repo):
                return HfApi().repo_info(
                    repo.id, revision=repo.revision, repo_type=repo.type, timeout=CONNECT_SECONDS
                )
        except RewarmError:
            raise
        except Exception as error:  # whatever the HTTP library raises
            reason, status = error, _status(error)
        # A connection may break once; a hub that answers no second time is away.
        unanswered += status is None
        wait = next(waits, None)
        if wait is None or unanswered > 1 or (status is not None and not passing(status)):
            log.warning("%s: the hub cannot be reached (%s)", repo, first_line(reason))
            if status is None:
                silence.begins()
            return None
        time.sleep(wait)


def retried(name: str, ask: Callable[[], T], patience: float, failure: str, advice: str) -> T:
    """Return what `ask` gets from the hub, asked again while it fails, with growing waits.

    Raises `DataError` when that lasts longer than `patience` seconds.
    """
    waits = _waits(patience)
    while True:
        try:
            return ask()
        except RewarmError:
            raise
        except Exception as error:  # whatever the HTTP library raises
            reason = error
        wait = next(waits, None)
        if wait is None:
            raise DataError(f"{name}: {failure} ({first_line(reason)}); {advice}") from reason
        log.warning("%s: %s; asked again in %.1f s", name, first_line(reason), wait)
        time.sleep(wait)


def listed(repo: Repo, ask: Callable[[], T]) -> T:
    """Return what `ask` gets from the hub about a repository, asked again for as long as at a start."""
    return retried(str(repo), ask, START_PATIENCE, "could not be listed", "rerun to try again")


def passing(status: int) -> bool:
    """Return whether what an HTTP status says may pass by itself, so that asking again makes sense."""
    return status in (408, 429) or status >= 500


def unreachable(repo: Repo) -> HubUnreachableError:
    """Return the error for a repository that is not in the cache, while the hub is away."""
    from huggingface_hub import constants

    return HubUnreachableError(
        f"{repo}: {constants.ENDPOINT} cannot be reached, and this is not in the cache ({constants.HF_HUB_CACHE}); "
        f"connect, or point HF_HOME to a cache that has it, or use scale=local, which needs no network"
    )
