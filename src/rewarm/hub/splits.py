"""The files of a dataset's split, as `datasets` finds them, at a commit that is pinned in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarm.errors import DataError, UserError, choice, first_line
from rewarm.hub.asking import Repo, gated_advice, listed, repo_info, unreachable
from rewarm.storage import cache_dir, is_sealed, load_object, make_dir, sealed, set_aside, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The files of a split of a dataset at a commit, in order: paths and sizes."""

    commit: str
    files: tuple[tuple[str, int], ...]


def list_split(repo: Repo, subset: str | None, split: str) -> Listing:
    """Return the files of a split, as `datasets` resolves them.

    The first answer is pinned in the cache: every later run reads the same commit, with or without a network. A pin
    that is damaged is asked for again.
    """
    asked = [repo.id, repo.revision, subset, split]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]
    pin = make_dir(cache_dir() / "hub", "REWARM_CACHE") / f"{name}.json"
    if pin.exists():
        if listing := _pinned(pin):
            return listing
        log.warning("%s: is damaged; kept as %s, and the hub is asked again for %s", pin, set_aside(pin), repo)
    info = repo_info(repo)
    if info is None:
        raise unreachable(repo)
    paths = listed(repo, lambda: _resolve(repo, subset, split, info.sha))
    sizes = listed(repo, lambda: _sizes(repo, info.sha, paths))
    listing = Listing(info.sha, tuple((path, sizes[path]) for path in paths))
    write_json(pin, sealed({"asked": asked, "commit": listing.commit, "files": listing.files}))
    return listing


def _pinned(pin: Path) -> Listing | None:
    """Return the listing that a pin holds, or None where it is damaged; the first version's has no checksum."""
    held = load_object(pin) or {}
    if "sha256" in held and not is_sealed(held):
        return None
    try:
        return Listing(str(held["commit"]), tuple((str(path), int(size)) for path, size in held["files"]))
    except (KeyError, TypeError, ValueError):
        return None


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
