"""`rewarm prepare`: tokenises ahead of training."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from rewarm.commands.begin import begin


def prepare(arguments: Sequence[str]) -> None:
    """Tokenise everything that the run of the arguments would read, and say what there is."""
    asked = begin("prepare", arguments)
    if asked is None:
        return
    from rewarm.data.prepare import check_domain_fields, needed_tokens, open_training, open_validation, writes_first
    from rewarm.data.tokenizers import load_tokenizer

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config, plan = asked.config, asked.plan
    tokenizer = load_tokenizer(config.data.tokenizer)
    author = None
    if writes_first(config):  # else torch is not needed
        from rewarm.model.generation import StartModel
        from rewarm.model.init import pin, resolve_init
        from rewarm.training.precision import resolve_device

        start = pin(resolve_init(config.init))
        author = StartModel(start, config.generate, tokenizer, resolve_device(config.device))
    training = open_training(config, plan, tokenizer, author=author)
    validation = open_validation(config, tokenizer)
    check_domain_fields(config, validation)
    for side, data in validation.items():
        sys.stdout.write(f"{side} validation: {data.n_tokens:,} tokens\n")
    for side, tokens in needed_tokens(config, plan).items():
        training[side].ensure(tokens)
        sys.stdout.write(f"{side} training: {training[side].n_tokens:,} tokens in {training[side].folder}\n")
