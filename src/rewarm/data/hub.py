"""The hub: commits, listings and files of model and dataset repositories, through the hub's own libraries.

What was looked up once is pinned or cached, so that a run whose files are all here needs no network.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rewarm.cache import cache_dir, make_dir, write_json
from rewarm.data.shards import FORMATS, format_of
from rewarm.errors import DataError, RewarmError, UserError, choice, first_line

log = logging.getLogger(__name__)
T = TypeVar("T")

START_PATIENCE = 8.0
"""Seconds for which a hub that fails is tried before a run says that it cannot be reached."""
CONNECT_SECONDS = 4.0
"""Seconds to wait for an answer, twice: with the time that the libraries take to load, less than 15 in all."""
AWAY_SECONDS = 60.0
"""For so long a hub that did not answer is not asked again: what a run needs comes from the cache, or it ends."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
_silent: dict[str, float] = {}
"""When a hub was last found not to answer."""
WEIGHTS = ("*.safetensors", "*.bin")
"""Files of weights, the preferred first."""


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
def _explained(repo: Repo) -> Iterator[None]:
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


def _info(repo: Repo) -> Any | None:  # noqa: ANN401 - ModelInfo or DatasetInfo
    """Return what the hub says of a repository, or None where it cannot be reached."""
    from huggingface_hub import HfApi, constants

    _quiet()
    if time.monotonic() < _silent.get(constants.ENDPOINT, -math.inf) + AWAY_SECONDS:
        return None
    waits = _waits(START_PATIENCE)
    unanswered = 0
    while True:
        try:
            with _explained(repo):
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
                _silent[constants.ENDPOINT] = time.monotonic()
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


def _listed(repo: Repo, ask: Callable[[], T]) -> T:
    return retried(str(repo), ask, START_PATIENCE, "could not be listed", "rerun to try again")


def passing(status: int) -> bool:
    """Return whether an HTTP status may pass by itself."""
    return status in (408, 429) or status >= 500


def _unreachable(repo: Repo) -> HubUnreachableError:
    from huggingface_hub import constants

    return HubUnreachableError(
        f"{repo}: {constants.ENDPOINT} cannot be reached, and this is not in the cache ({constants.HF_HUB_CACHE}); "
        f"connect, or point HF_HOME to a cache that has it, or use scale=local, which needs no network"
    )


def _snapshot(repo: Repo, patterns: Sequence[str], *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    with _explained(repo):
        return Path(
            snapshot_download(
                repo.id,
                repo_type=repo.type,
                revision=repo.revision,
                allow_patterns=list(patterns),
                local_files_only=local,
            )
        )


def download(repo: Repo, patterns: Sequence[str], weights: Sequence[str] = ()) -> Path:
    """Return a folder with the files of a repository that match `patterns`, downloaded or from the cache.

    Of `weights`, patterns in order of preference, only the first that matches a file counts.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    info = _info(repo)
    if info is None:
        for choice_of_weights in weights or ("",):
            try:
                folder = _snapshot(repo, [*patterns, choice_of_weights], local=True)
            except LocalEntryNotFoundError:
                continue
            if not choice_of_weights or any(folder.glob(choice_of_weights)):
                return folder
        raise _unreachable(repo)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    chosen = [w for w in weights if any(Path(name).match(w) for name in names)][:1]
    if weights and not chosen:
        raise UserError(f"{repo}: holds no weights ({' or '.join(weights)})")
    try:
        return _snapshot(repo, [*patterns, *chosen], local=False)
    except RewarmError:
        raise
    except Exception as error:  # whatever the HTTP library raises
        raise DataError(
            f"{repo}: could not be downloaded ({first_line(error)}); a rerun goes on from there"
        ) from error


@dataclass(frozen=True)
class Listing:
    """The files of a split of a dataset at a commit, in order: paths and sizes."""

    commit: str
    files: tuple[tuple[str, int], ...]


def list_split(repo: Repo, subset: str | None, split: str) -> Listing:
    """Return the files of a split, as `datasets` resolves them.

    The first answer is pinned in the cache: every later run reads the same commit, with or without a network.
    """
    asked = [repo.id, repo.revision, subset, split]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]
    pin = make_dir(cache_dir() / "hub", "REWARM_CACHE") / f"{name}.json"
    if pin.is_file():
        held = json.loads(pin.read_text())
        return Listing(held["commit"], tuple((path, size) for path, size in held["files"]))
    info = _info(repo)
    if info is None:
        raise _unreachable(repo)
    paths = _listed(repo, lambda: _resolve(repo, subset, split, info.sha))
    for path in paths:
        if format_of(path) is None:
            raise UserError(f"{repo}: {path} is none of {', '.join(FORMATS)}")
    sizes = _listed(repo, lambda: _sizes(repo, info.sha, paths))
    listing = Listing(info.sha, tuple((path, sizes[path]) for path in paths))
    write_json(pin, {"asked": asked, "commit": info.sha, "files": listing.files})
    return listing


def _resolve(repo: Repo, subset: str | None, split: str, commit: str) -> list[str]:
    """Return the paths of a split's files in the repository."""
    from datasets import disable_progress_bars, load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError

    disable_progress_bars()
    try:
        builder = load_dataset_builder(repo.id, name=subset, revision=commit)
    except RuntimeError as error:
        if "scripts" in str(error):
            raise UserError(f"{repo}: needs code from the hub to be read, which rewarm does not run") from error
        raise
    except ValueError as error:  # the one about subsets names those that there are
        raise UserError(f"{repo}: subset={subset}: {' '.join(str(error).split())}") from error
    except DatasetNotFoundError as error:
        if "gated" in str(error):  # its cause is cut off
            raise UserError(f"{repo}: {gated_advice(repo.id, repo.type)}") from error
        raise DataError(f"{repo}: could not be listed ({first_line(error)})") from error
    splits: Mapping[Any, Sequence[str]] = builder.config.data_files or {}
    by_name = {str(name): files for name, files in splits.items()}
    if split not in by_name:
        raise choice(f"{repo}: split", split, by_name)
    prefix = f"hf://datasets/{repo.id}@{commit}/"
    return [str(file).removeprefix(prefix) for file in by_name[split]]


def _sizes(repo: Repo, commit: str, paths: Sequence[str]) -> dict[str, int]:
    """Return the bytes of each file."""
    from huggingface_hub import HfApi

    at_once = 500
    sizes: dict[str, int] = {}
    for start in range(0, len(paths), at_once):
        infos = HfApi().get_paths_info(
            repo.id, list(paths[start : start + at_once]), repo_type=repo.type, revision=commit
        )
        sizes.update({info.path: getattr(info, "size", 0) for info in infos})
    return sizes
