"""What the loopback hub serves: repositories laid out like the real ones, of text and weights that a seed makes."""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rewarm.data.text_files import zstd
from tests.hub import Files, Hub

MODEL = "EleutherAI/pythia-410m"
PILE = "monology/pile-uncopyrighted"
PILE_VALIDATION = "EleutherAI/pile_val_test"
SLIMPAJAMA = "gmongaras/SlimPajama-627B_Reupload"
PILE_SETS = ("Pile-CC", "Github", "Wikipedia (en)")
SLIMPAJAMA_SETS = ("RedPajamaCommonCrawl", "RedPajamaC4")
SHAPE = {"vocab_size": 320, "hidden_size": 32, "layers": 2, "heads": 4, "intermediate_size": 64, "max_context": 32}
"""The model that the hub serves in the place of Pythia-410M, as `model.…` overrides; its vocabulary is padded."""
STEPS = (0, *(2**n for n in range(10)), *range(1000, 144_000, 1000))

Record = dict[str, Any]


def texts(seed: str, count: int, words: int = 40) -> list[str]:
    """Return documents of made-up words, the same for the same seed."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 7))) for _ in range(80)]
    return [" ".join(draw.choices(vocabulary, k=draw.randint(words // 2, words))) + "." for _ in range(count)]


def jsonl(records: Sequence[Record]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def zst(content: bytes) -> bytes:
    return zstd.compress(content)


def parquet(records: Sequence[Record], row_group_size: int = 20) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(records)), out, row_group_size=row_group_size)
    return out.getvalue()


def pile(seed: str, count: int) -> list[Record]:
    """Return records as the Pile's: the domain in a struct."""
    return [
        {"text": text, "meta": {"pile_set_name": PILE_SETS[n % len(PILE_SETS)]}}
        for n, text in enumerate(texts(seed, count))
    ]


def slimpajama(seed: str, count: int) -> list[Record]:
    """Return records as SlimPajama's re-uploads: the domain in an object written as JSON."""
    return [
        {"text": text, "meta": json.dumps({"redpajama_set_name": SLIMPAJAMA_SETS[n % len(SLIMPAJAMA_SETS)]})}
        for n, text in enumerate(texts(seed, count))
    ]


def tokenizer_json(seed: str = "tokenizer") -> bytes:
    """Return a byte-level tokenizer of 300 tokens, the end of text being number 0 as in Pythia's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(seed, 200), trainer)
    return tokenizer.to_str().encode()


def pythia(seed: int, save: Callable[[Any, Path], None] | None = None, **overrides: Any) -> Files:
    """Return the files of a small GPT-NeoX in FP16, as a Pythia revision holds them."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        **{
            "vocab_size": SHAPE["vocab_size"],
            "hidden_size": SHAPE["hidden_size"],
            "num_hidden_layers": SHAPE["layers"],
            "num_attention_heads": SHAPE["heads"],
            "intermediate_size": SHAPE["intermediate_size"],
            "max_position_embeddings": SHAPE["max_context"],
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        | overrides
    )
    torch.manual_seed(seed)
    model = GPTNeoXForCausalLM(config).half()
    with tempfile.TemporaryDirectory() as name:
        (save or (lambda model, folder: model.save_pretrained(folder)))(model, Path(name))
        files = {path.name: path.read_bytes() for path in Path(name).iterdir()}
    return files | {"tokenizer.json": tokenizer_json()}


def fill(hub: Hub) -> None:
    """Put the repositories of the paper's setting in place."""
    distinct = {0: pythia(0), 10_000: pythia(1), 143_000: pythia(2)}
    branches = {f"step{step}": distinct.get(step, distinct[0]) for step in STEPS}
    hub.add("model", MODEL, {"main": distinct[143_000]} | branches)
    validation, test = pile("pile validation", 60), pile("pile test", 20)
    hub.add(
        "dataset",
        PILE,
        {
            "main": {
                "README.md": b"---\nlicense: other\n---\n",
                "train/00.jsonl.zst": zst(jsonl(pile("pile 0", 150))),
                "train/01.jsonl.zst": zst(jsonl(pile("pile 1", 150))),
                "val.jsonl.zst": zst(jsonl(validation)),
                "test.jsonl.zst": zst(jsonl(test)),
            }
        },
    )
    hub.add(
        "dataset",
        PILE_VALIDATION,
        {"main": {"val.jsonl.zst": zst(jsonl(validation)), "test.jsonl.zst": zst(jsonl(test))}},
    )
    hub.add(
        "dataset",
        SLIMPAJAMA,
        {
            "main": {
                "README.md": b"# SlimPajama\n",
                "data/train-00000-of-00002.parquet": parquet(slimpajama("slim 0", 150)),
                "data/train-00001-of-00002.parquet": parquet(slimpajama("slim 1", 150)),
                "data/validation-00000-of-00001.parquet": parquet(slimpajama("slim validation", 60)),
                "data/test-00000-of-00001.parquet": parquet(slimpajama("slim test", 20)),
            }
        },
    )
