"""From a source's config to the source."""

from __future__ import annotations

from rewarm.checks import source
from rewarm.config import DataConfig, SourceConfig
from rewarm.data.builtin import BuiltinSource
from rewarm.data.documents import Source
from rewarm.data.files import find_files, identity_of, local_shards
from rewarm.data.hub import Repo, list_split
from rewarm.data.indexed import IndexedTokens, index_of
from rewarm.data.ranges import HubShard
from rewarm.data.streams import Fields, Part, RecordSource
from rewarm.data.tokenizers import Tokenizer


def make_source(data: DataConfig, side: str, split: str) -> Source:
    """Return the documents of `side` (upstream or downstream) for `split` (train or validation).

    Where training and validation text come from the same records, a hash of each document decides.
    """
    config, key = source(data, side), f"data.{side}"
    if config.kind == "builtin":
        return BuiltinSource(side, split, config.weights)
    part = Part(split, config.validation_share)
    if split == "validation" and config.validation_id:
        held_out = Repo(f"{key}.validation_id", config.validation_id, config.validation_revision, "dataset")
        return _hub(data, config, held_out, None, config.validation_split, None)
    if split == "validation" and config.validation_path:
        return _files(data, config, key, split, part)
    if config.kind == "files":
        return _files(data, config, key, split, part)
    same = not config.validation_id and not config.validation_path and config.validation_split == config.split
    wanted = config.split if split == "train" else config.validation_split
    assert config.id
    repo = Repo(f"{key}.id", config.id, config.revision, "dataset")
    return _hub(data, config, repo, config.subset, wanted, part if same else None)


def open_existing(data: DataConfig, side: str, split: str, tokenizer: Tokenizer) -> IndexedTokens | None:
    """Return the tokens of `side` for `split` where the config names an indexed dataset; None where it does not.

    Where nothing else names validation text, the last sequences serve validation.
    """
    config, key = source(data, side), f"data.{side}"
    if split == "validation" and config.validation_id:
        return None
    if split == "validation" and config.validation_path:
        held_out = index_of(config.validation_path)
        return IndexedTokens(f"{key}.validation_path", held_out, tokenizer) if held_out else None
    index = index_of(config.path) if config.kind == "files" else None
    if index is None:
        return None
    cut = 1.0 if config.validation_id or config.validation_path else 1 - config.validation_share
    first, last = (0.0, cut) if split == "train" else (cut, 1.0)
    return IndexedTokens(f"{key}.path", index, tokenizer, first, last)


def _fields(config: SourceConfig) -> Fields:
    assert config.text_field
    return Fields(config.text_field, config.domain_field, config.tokens_field)


def _files(data: DataConfig, config: SourceConfig, key: str, split: str, part: Part) -> Source:
    """Return local files. Those that `validation_path` names serve validation only, unless they are all there is."""
    # Tokens that exist already hold no documents to tell validation text from.
    train = find_files(f"{key}.path", config.path) if config.path and not index_of(config.path) else []
    held_out = find_files(f"{key}.validation_path", config.validation_path) if config.validation_path else []
    if config.validation_id:
        files, used_part = train, None
    elif not held_out or {file.resolve() for file in held_out} >= {file.resolve() for file in train} != set():
        files, used_part = train, part
    elif split == "validation":
        files, used_part = held_out, None
    else:
        taken = {file.resolve() for file in held_out}
        files, used_part = [file for file in train if file.resolve() not in taken], None
    return RecordSource(local_shards(files), _fields(config), identity_of(files), data.max_bad_share, used_part)


def _hub(
    data: DataConfig, config: SourceConfig, repo: Repo, subset: str | None, split: str, part: Part | None
) -> Source:
    listing = list_split(repo, subset, split)
    shards = [HubShard(repo.id, listing.commit, path, size, data.patience) for path, size in listing.files]
    identity = {"kind": "hub", "id": repo.id, "commit": listing.commit, "subset": subset, "split": split}
    return RecordSource(shards, _fields(config), identity, data.max_bad_share, part)
