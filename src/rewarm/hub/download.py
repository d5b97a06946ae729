"""Downloads of model repositories, through the hub's own cache: what is there needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rewarm.errors import DataError, RewarmError, UserError, first_line
from rewarm.hub.asking import Repo, explained, repo_info, unreachable

WEIGHTS = ("*.safetensors", "*.bin")
"""Files of weights, the preferred first."""


def _snapshot(repo: Repo, patterns: Sequence[str], *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    with explained(repo):
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

    info = repo_info(repo)
    if info is None:
        for choice_of_weights in weights or ("",):
            try:
                folder = _snapshot(repo, [*patterns, choice_of_weights], local=True)
            except LocalEntryNotFoundError:
                continue
            if not choice_of_weights or any(folder.glob(choice_of_weights)):
                return folder
        raise unreachable(repo)
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
