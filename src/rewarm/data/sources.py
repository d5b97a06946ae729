"""Where the text of a side and a split comes from: decided once from the config, then opened as documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rewarm.config.schema import DataConfig, SourceConfig
from rewarm.data.builtin import BuiltinSource
from rewarm.data.documents import Source
from rewarm.data.hub_files import HubFile
from rewarm.data.indexed import index_of
from rewarm.data.streams import Fields, Part, RecordSource
from rewarm.data.text_files import FORMATS, LocalFile, find_files, format_of, identity_of
from rewarm.errors import UserError
from rewarm.hub.asking import Repo
from rewarm.hub.splits import list_split


@dataclass(frozen=True)
class Builtin:
    """The corpora that come with the installation: each side and split has a part of its own."""

    side: str
    split: str
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Files:
    """Local files, or the `part` of their documents that serves the split."""

    files: tuple[Path, ...]
    part: Part | None


@dataclass(frozen=True)
class HubSplit:
    """A split of a dataset on the hub, or the `part` of its documents that serves ours."""

    repo: Repo
    subset: str | None
    split: str
    part: Part | None


@dataclass(frozen=True)
class Indexed:
    """Tokens that exist already: the sequences of an indexed dataset between two shares of them, 0 to 1."""

    key: str
    """The config's name for the path, which leads errors."""
    index: Path
    first: float = 0.0
    last: float = 1.0


@dataclass(frozen=True)
class ByItself:
    """What the start model writes."""


Origin = Builtin | Files | HubSplit | Indexed | ByItself


def origin(config: SourceConfig, side: str, split: str) -> Origin:
    """Return where the text of `side` (upstream, downstream, replay) for `split` (train or validation) comes from.

    `validation_id`, or else `validation_path`, names text that serves validation only. Without either, validation
    text comes from where the training text does: from another split or part, or from the same documents, of which
    each belongs to one of the two by a hash of its content.
    """
    key, part = key_of(side), Part(split, config.validation_share)
    if config.kind == "self":
        return ByItself()
    own = bool(config.validation_id or config.validation_path)
    if own and split == "validation":
        return _held_out(config, key)
    if config.kind == "builtin":
        return Builtin("upstream" if side == "replay" else side, split, config.weights)
    if config.kind == "hub":
        assert config.id
        wanted = config.split if split == "train" else config.validation_split
        shared = not own and config.split == config.validation_split
        repo = Repo(f"{key}.id", config.id, config.revision, "dataset")
        return HubSplit(repo, config.subset, wanted, part if shared else None)
    if index := index_of(config.path):
        cut = 1.0 if own else 1 - config.validation_share
        return Indexed(f"{key}.path", index, *((0.0, cut) if split == "train" else (cut, 1.0)))
    return _files(config, key, split)


def key_of(side: str) -> str:
    """Return the key that says where the text of a side comes from."""
    return "replay_source" if side == "replay" else f"data.{side}"


def _held_out(config: SourceConfig, key: str) -> Origin:
    """Return where text comes from that serves validation only."""
    if config.validation_id:
        repo = Repo(f"{key}.validation_id", config.validation_id, config.validation_revision, "dataset")
        return HubSplit(repo, None, config.validation_split, None)
    if index := index_of(config.validation_path):
        return Indexed(f"{key}.validation_path", index)
    return _files(config, key, "validation")


def _files(config: SourceConfig, key: str, split: str) -> Files:
    """Return the local files of a split.

    Those that `validation_path` names serve validation only, unless they are all there is: then a hash decides.
    """
    # Tokens that exist already hold no documents to tell validation text from.
    reads_text = config.kind == "files" and not index_of(config.path)
    train = find_files(f"{key}.path", config.path) if config.path and reads_text else []
    if config.validation_id or index_of(config.validation_path):
        return Files(tuple(train), None)
    held_out = find_files(f"{key}.validation_path", config.validation_path) if config.validation_path else []
    taken = {file.resolve() for file in held_out}
    others = [file for file in train if file.resolve() not in taken]
    if (train and not others) or not held_out:
        return Files(tuple(train), Part(split, config.validation_share))
    return Files(tuple(held_out if split == "validation" else others), None)


def make_source(origin: Builtin | Files | HubSplit, config: SourceConfig, data: DataConfig) -> Source:
    """Return the documents at an origin, read as the source's config says."""
    if isinstance(origin, Builtin):
        return BuiltinSource(origin.side, origin.split, origin.weights)
    fields = Fields(
        config.text_field or data.text_field, config.domain_field or data.domain_field, config.tokens_field
    )
    if isinstance(origin, Files):
        files = [LocalFile(file) for file in origin.files]
        return RecordSource(files, fields, identity_of(origin.files), data.max_bad_share, origin.part)
    repo = origin.repo
    listing = list_split(repo, origin.subset, origin.split)
    for path, _ in listing.files:
        if format_of(path) is None:
            raise UserError(f"{repo}: {path} is none of {', '.join(FORMATS)}")
    remote = [HubFile(repo.id, listing.commit, path, size, data.patience) for path, size in listing.files]
    where = {"id": repo.id, "commit": listing.commit, "subset": origin.subset, "split": origin.split}
    identity = {"kind": "hub", **where}
    return RecordSource(remote, fields, identity, data.max_bad_share, origin.part)
