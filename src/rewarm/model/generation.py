"""A model writes: batches of texts, drawn token by token with a cache of keys and values."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rewarm.config.schema import Config, GenerateConfig
from rewarm.data.prepare import writes_first
from rewarm.data.tokenizers import Tokenizer
from rewarm.errors import UserError
from rewarm.model.init import resolve_pinned
from rewarm.model.weights import check_fits, load_writer
from rewarm.runs.manifest import Pinned

Ids = NDArray[np.int64]


class StartModel:
    """The model that a run starts from, loaded when it first writes. Each text begins behind an end-of-text token.

    On a GPU its weights are BF16: it draws from its predictions, which need no more.
    """

    def __init__(self, start: Pinned, config: GenerateConfig, tokenizer: Tokenizer, device: torch.device) -> None:
        self._start, self._config, self._tokenizer, self._device = start, config, tokenizer, device
        self._loaded: Any = None
        self.seconds = 0.0
        """For which it has written so far."""

    def identity(self) -> str:
        """Return what tells its weights from others."""
        assert self._start.identity is not None, "random weights are refused, and older runs had no self-replay"
        return self._start.identity

    @classmethod
    def of(
        cls, config: Config, start: Pinned | None, tokenizer: Tokenizer, device: torch.device
    ) -> StartModel | None:
        """Return the model that the run of a config started from, where it writes what is replayed; else None."""
        if not writes_first(config):
            return None
        assert start is not None, "runs pin their start since before there was self-replay"
        return cls(start, config.generate, tokenizer, device)

    def _model(self, length: int) -> Any:  # noqa: ANN401 - transformers' models are untyped
        if self._loaded is None:
            self._loaded = load_writer(resolve_pinned(self._start), self._device)
            check_fits(self._loaded, length, self._tokenizer, key="generate.length")
        return self._loaded

    def close(self) -> None:
        """Give back the memory that the model took."""
        self._loaded = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def write(self, prompts: Sequence[Ids], length: int, seed: int) -> list[Ids]:
        """Return a text of at most `length` tokens for each prompt, which it begins with; without end-of-text.

        Prompts shorter than the longest are padded on the left, where a mask hides the padding.
        """
        from transformers import GenerationConfig

        end = self._tokenizer.end_of_text
        longest = max(map(len, prompts))
        rows = np.full((len(prompts), 1 + longest), end, dtype=np.int64)
        mask = np.ones_like(rows)
        for row, (hidden, prompt) in enumerate(zip(mask, prompts, strict=True)):
            hidden[: longest - len(prompt)] = 0
            rows[row, 1 + longest - len(prompt) :] = prompt
        how = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=length - longest,
            do_sample=True,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            top_k=0,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
        model, begun = self._model(length), time.monotonic()
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            try:
                found: Tensor = model.generate(
                    input_ids=torch.from_numpy(rows).to(self._device),
                    attention_mask=torch.from_numpy(mask).to(self._device),
                    generation_config=how,
                )
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"generate.batch_size={len(prompts)}: so many texts of {length:,} tokens do not fit the device's "
                    f"memory; give fewer, or a smaller generate.length"
                ) from error
        drawn = found[:, 1 + longest :].cpu().numpy()
        self.seconds += time.monotonic() - begun
        return [
            np.concatenate([prompt, row[: int(np.argmax(np.append(row, end) == end))]])
            for prompt, row in zip(prompts, drawn, strict=True)
        ]

    @torch.inference_mode()
    def loss(self, texts: Sequence[Ids]) -> float:
        """Return its own loss on texts, each behind an end-of-text token, in nats a token; NaN for empty ones."""
        end, total, tokens = self._tokenizer.end_of_text, 0.0, 0
        for ids in texts:
            if len(ids):
                row = torch.from_numpy(np.concatenate([[end], ids]))[None].to(self._device)
                logits: Tensor = self._model(len(ids))(input_ids=row).logits[0, :-1].float()
                total += functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
                tokens += len(ids)
        return total / tokens if tokens else math.nan
