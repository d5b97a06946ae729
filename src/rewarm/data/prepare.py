"""Opens the stores that a run reads, and starts what fills them."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass

from rewarm.cache import cache_dir, make_dir
from rewarm.checks import parse_tokens
from rewarm.config import SIDES, Config
from rewarm.data.batches import Batches, BatchSpec
from rewarm.data.layout import StoreSpec
from rewarm.data.sources import make_source, open_existing
from rewarm.data.store import Tokens, open_store
from rewarm.data.tokenizers import Tokenizer, load_tokenizer
from rewarm.data.validation import ValidationSet, validation_set
from rewarm.plan import Plan, make_plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """What a run reads: its batches, both validation sets, and what identifies them."""

    batches: Batches
    upstream: ValidationSet
    downstream: ValidationSet
    fingerprint: dict[str, str]


def _open(
    config: Config,
    side: str,
    split: str,
    tokenizer: Tokenizer,
    until: int,
    limit: int | None = None,
    *,
    fills: bool = True,
) -> Tokens:
    """Return `until` tokens or more of a side: as they lie, or in a store that is filled in the background.

    Of the processes of one run only the first one `fills` the store.
    """
    if existing := open_existing(config.data, side, split, tokenizer):
        return existing
    stream = make_source(config.data, side, split)
    spec = StoreSpec(
        source=stream.fingerprint(),
        tokenizer=tokenizer.fingerprint,
        end_of_text=tokenizer.end_of_text,
        vocab_size=tokenizer.size,
        shard_tokens=parse_tokens("data.shard_tokens", config.data.shard_tokens),
        limit=limit,
    )
    store = open_store(make_dir(cache_dir() / "stores", "REWARM_CACHE"), spec)
    store.filled_elsewhere = not fills
    if fills:
        store.produce(stream, tokenizer, until, config.data.workers)
    return store


def open_validation(config: Config, tokenizer: Tokenizer, *, fills: bool = True) -> dict[str, ValidationSet]:
    """Return both validation sets by side."""
    n_tokens = parse_tokens("data.validation_tokens", config.data.validation_tokens)
    context = config.train.context
    stores = {
        side: _open(config, side, "validation", tokenizer, n_tokens + 1, limit=n_tokens + 1, fills=fills)
        for side in SIDES
    }
    sets = {side: validation_set(store, n_tokens, context) for side, store in stores.items()}
    for side, found in sets.items():
        if found.n_tokens < n_tokens // context * context:
            log.warning(
                "%s validation text gives %s tokens of the %s asked for", side, f"{found.n_tokens:,}", f"{n_tokens:,}"
            )
    return sets


def open_training(config: Config, plan: Plan, tokenizer: Tokenizer, *, fills: bool = True) -> dict[str, Tokens]:
    """Return the training stores that the run reads, being filled: the side trained on, and upstream for replay."""
    return {
        side: _open(config, side, "train", tokenizer, tokens, fills=fills)
        for side, tokens in needed_tokens(config, plan).items()
    }


def needed_tokens(config: Config, plan: Plan) -> dict[str, int]:
    """Return how many training tokens of each side the run reads: whole shuffle blocks, and one more."""
    spec = batch_spec(config)
    old = spec.replayed(plan.steps)
    block = config.data.shuffle_window
    new = -(-(plan.steps * spec.batch_size - old) // block) * block
    sequences = {config.data.train: new} | ({"upstream": old} if config.replay else {})
    return {side: count * spec.context + 1 for side, count in sequences.items()}


def batch_spec(config: Config) -> BatchSpec:
    """Return what the batches of a config depend on."""
    return BatchSpec(
        config.train.batch_size, config.train.context, config.seed, config.data.shuffle_window, config.replay
    )


def open_data(config: Config, plan: Plan, tokenizer: Tokenizer, *, fills: bool = True) -> RunData:
    """Return everything that the run reads; training text may still be on its way in the background.

    Of the processes of one run only the first one `fills` the stores.
    """
    training = open_training(config, plan, tokenizer, fills=fills)
    validation = open_validation(config, tokenizer, fills=fills)
    return RunData(
        batches=Batches(
            batch_spec(config), training[config.data.train], training["upstream"] if config.replay else None
        ),
        upstream=validation["upstream"],
        downstream=validation["downstream"],
        fingerprint={side: store.digest for side, store in training.items()} | {"tokenizer": tokenizer.fingerprint},
    )


def prepare(config: Config) -> None:
    """Tokenise everything that the run of `config` would read, and say what there is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    tokenizer = load_tokenizer(config.data.tokenizer)
    plan = make_plan(config)
    training = open_training(config, plan, tokenizer)
    validation = open_validation(config, tokenizer)
    for side, data in validation.items():
        sys.stdout.write(f"{side} validation: {data.n_tokens:,} tokens\n")
    for side, tokens in needed_tokens(config, plan).items():
        training[side].ensure(tokens)
        sys.stdout.write(f"{side} training: {training[side].n_tokens:,} tokens in {training[side].folder}\n")
