"""Opens the stores that a run reads, and starts what fills them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from rewarm.config.plan import Plan
from rewarm.config.schema import SIDES, Config
from rewarm.data.batches import Batches, BatchSpec
from rewarm.data.documents import Source
from rewarm.data.generated import SHARD_TOKENS, Author, GeneratedSource, Written
from rewarm.data.indexed import IndexedTokens
from rewarm.data.layout import StoreSpec, store_folder
from rewarm.data.producer import fill_store
from rewarm.data.sources import Builtin, ByItself, Indexed, make_source, origin
from rewarm.data.store import FilledElsewhere, TokenRow, TokenStore
from rewarm.data.streams import RecordSource
from rewarm.data.tokenizers import Tokenizer
from rewarm.data.validation import ValidationSet, validation_set
from rewarm.errors import UserError
from rewarm.storage import cache_dir, make_dir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """What a run reads: its batches, both validation sets, and what identifies them."""

    batches: Batches
    upstream: ValidationSet
    downstream: ValidationSet
    fingerprint: dict[str, str]
    written: Written | None = None
    """What the start model writes for replay, if it does: it must be there before training begins."""

    def wait(self) -> None:
        """Wait for what must be there before training begins. Raises what stopped it."""
        if self.written is not None:
            self.written.wait()

    @property
    def validation(self) -> dict[str, ValidationSet]:
        """Return both validation sets by side."""
        return {"upstream": self.upstream, "downstream": self.downstream}


def _open(
    config: Config,
    side: str,
    split: str,
    tokenizer: Tokenizer,
    until: int,
    *,
    fills: bool = True,
    author: Author | None = None,
) -> TokenRow:
    """Return `until` tokens or more of a side: as they lie, or in a store that is filled in the background.

    A validation store ends after just so many. Of the processes of one run only the first one `fills` the store.
    `author` writes where the start model is to.
    """
    side_config, shard_tokens = config.source(side), config.data.shard_tokens
    place = origin(side_config, side, split)
    documents: Source
    if isinstance(place, Indexed):
        return IndexedTokens(place.key, place.index, tokenizer, place.first, place.last)
    if isinstance(place, ByItself):
        assert author is not None, "only a run of the start model can have it write"
        length = config.generate.length or config.train.context
        documents = GeneratedSource(author, config.generate, length, tokenizer)
        shard_tokens = min(shard_tokens, SHARD_TOKENS)
    else:
        documents = make_source(place, side_config, config.data)
    spec = StoreSpec(
        source=documents.fingerprint(),
        tokenizer=tokenizer.fingerprint,
        end_of_text=tokenizer.end_of_text,
        vocab_size=tokenizer.size,
        shard_tokens=shard_tokens,
        limit=until if split == "validation" else None,
    )
    root = make_dir(cache_dir() / "stores", "REWARM_CACHE")
    if fills:
        return fill_store(root, spec, documents, tokenizer, until, config.data.workers)
    return TokenStore(store_folder(root, spec), spec, FilledElsewhere())


def open_validation(config: Config, tokenizer: Tokenizer, *, fills: bool = True) -> dict[str, ValidationSet]:
    """Return both validation sets by side."""
    asked = config.data.validation_tokens
    context = config.train.context
    rows = {side: _open(config, side, "validation", tokenizer, asked + 1, fills=fills) for side in SIDES}
    sets = {side: validation_set(row, asked, context) for side, row in rows.items()}
    for side, data in sets.items():
        if data.n_tokens < asked // context * context:
            log.warning(
                "data.validation_tokens=%s: the %s validation text has %s tokens, and all of them are scored; give "
                "that number, or more text",
                f"{asked:,}",
                side,
                f"{data.n_tokens:,}",
            )
    return sets


def check_domain_fields(config: Config, sets: Mapping[str, ValidationSet]) -> None:
    """Raise `UserError` where a `domain_field` was asked for that no record of the validation text has."""
    for side, data in sets.items():
        side_config = config.source(side)
        place = origin(side_config, side, "validation")
        asked = side_config.domain_field or config.data.domain_field
        if data.domains != ("",) or not asked or isinstance(place, Indexed | Builtin | ByItself):
            continue
        documents = make_source(place, side_config, config.data)
        assert isinstance(documents, RecordSource)
        if fields := documents.field_names():  # plain text has none
            key = f"data.{side}.domain_field" if side_config.domain_field else "data.domain_field"
            raise UserError(
                f"{key}={asked}: no record of the {side} validation text has it; they have {', '.join(fields)}; "
                f"give one of these, or leave it out"
            )


def open_training(
    config: Config, plan: Plan, tokenizer: Tokenizer, *, fills: bool = True, author: Author | None = None
) -> dict[str, TokenRow]:
    """Return the training stores that the run reads, being filled: the side trained on, and what is replayed."""
    return {
        side: _open(config, side, "train", tokenizer, tokens, fills=fills, author=author)
        for side, tokens in needed_tokens(config, plan).items()
    }


def needed_tokens(config: Config, plan: Plan) -> dict[str, int]:
    """Return how many training tokens of each side the run reads: whole shuffle blocks, and one more."""
    spec = batch_spec(config)
    old = spec.replayed(plan.steps)
    block = config.data.shuffle_window
    new = -(-(plan.steps * spec.batch_size - old) // block) * block
    sequences = {config.data.train: new} | ({config.replayed: old} if config.replay else {})
    return {side: count * spec.context + 1 for side, count in sequences.items()}


def batch_spec(config: Config) -> BatchSpec:
    """Return what the batches of a config depend on."""
    return BatchSpec(
        config.train.batch_size, config.train.context, config.seed, config.data.shuffle_window, config.replay
    )


def writes_first(config: Config) -> bool:
    """Return whether the start model has to write what the run replays, before it trains."""
    return bool(config.replay and config.source("replay").kind == "self")


def open_data(
    config: Config, plan: Plan, tokenizer: Tokenizer, *, fills: bool = True, author: Author | None = None
) -> RunData:
    """Return everything that the run reads; training text may still be on its way in the background.

    Of the processes of one run only the first one `fills` the stores. `author` writes where the start model is to.
    """
    training = open_training(config, plan, tokenizer, fills=fills, author=author)
    validation = open_validation(config, tokenizer, fills=fills)
    return RunData(
        batches=Batches(
            batch_spec(config), training[config.data.train], training[config.replayed] if config.replay else None
        ),
        upstream=validation["upstream"],
        downstream=validation["downstream"],
        fingerprint={
            **{side: row.digest for side, row in training.items()},
            **{f"{side} sample": row.sample for side, row in training.items() if isinstance(row, IndexedTokens)},
            **{f"{side} validation": found.digest for side, found in validation.items()},
            "tokenizer": tokenizer.fingerprint,
        },
        written=Written(training["replay"], needed_tokens(config, plan)["replay"], author) if author else None,
    )
