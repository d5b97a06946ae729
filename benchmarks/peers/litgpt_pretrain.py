"""litgpt's own `pretrain`, with a data module that hands it the windows. TORCHDYNAMO_DISABLE=1 keeps it eager."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litgpt import Config
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.pretrain import setup
from torch.utils.data import DataLoader, TensorDataset


class Timed(DataLoader):  # type: ignore[type-arg]
    """A loader that notes when each batch is asked for."""

    asked: list[float]

    def __iter__(self) -> Iterator[torch.Tensor]:  # type: ignore[override]
        for (batch,) in super().__iter__():
            self.asked.append(time.perf_counter())
            yield batch


@dataclass
class Windows(DataModule):
    """The windows, in order."""

    rows: torch.Tensor | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def connect(self, tokenizer: object = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        """Take over the micro-batch size."""
        del tokenizer, max_seq_length
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        """Return the loader of all windows."""
        assert self.rows is not None
        loader = Timed(TensorDataset(self.rows), batch_size=self.batch_size)
        loader.asked = self.asked
        return loader

    def val_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        """Return a loader of a few, because litgpt scores some before it begins."""
        assert self.rows is not None
        loader = Timed(TensorDataset(self.rows[: 2 * self.batch_size]), batch_size=self.batch_size)
        loader.asked = []
        return loader


def config_of(shape: dict[str, Any], context: int) -> Config:
    """Return litgpt's words for a GPT-NeoX's or a Llama's config.json."""
    heads = shape["num_attention_heads"]
    common = {
        "block_size": context,
        "padded_vocab_size": shape["vocab_size"],
        "vocab_size": shape["vocab_size"],
        "n_layer": shape["num_hidden_layers"],
        "n_head": heads,
        "n_embd": shape["hidden_size"],
        "intermediate_size": shape["intermediate_size"],
        "lm_head_bias": False,
    }
    if shape["model_type"] == "gpt_neox":
        return Config(
            name="neox",
            **common,
            rotary_percentage=0.25,
            parallel_residual=True,
            bias=True,
            norm_class_name="LayerNorm",
            mlp_class_name="GptNeoxMLP",
        )
    assert shape["model_type"] == "llama", shape["model_type"]
    return Config(
        name="llama",
        **common,
        n_query_groups=shape["num_key_value_heads"],
        head_size=shape.get("head_dim"),
        rotary_percentage=1.0,
        rope_base=int(shape["rope_parameters"]["rope_theta"] if "rope_parameters" in shape else shape["rope_theta"]),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=shape["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("windows")
    parser.add_argument("--shape", type=json.loads, required=True)
    parser.add_argument("--precision", default="bf16-true")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--warm-up", type=int, default=5)
    options = parser.parse_args()
    windows = np.load(options.windows)
    steps, batch, length = windows.shape
    data = Windows(torch.from_numpy(windows.reshape(-1, length)))
    config = config_of(options.shape, length - 1)
    sys.stdout, stdout = sys.stderr, sys.stdout
    sys.argv = [sys.argv[0], "pythia-14m"]  # litgpt reads the command line once more where it saves
    with tempfile.TemporaryDirectory() as folder:
        setup(
            config.name,
            model_config=config,
            out_dir=Path(folder),
            precision=options.precision,
            data=data,
            devices=1,
            logger_name="csv",
            optimizer={
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "fused": True},
            },
            train=TrainArgs(
                save_interval=None,
                log_interval=10,
                global_batch_size=batch,
                micro_batch_size=options.micro_batch or batch,
                max_tokens=steps * batch * (length - 1),
                max_norm=1.0,
                min_lr=1e-4,
                lr_warmup_steps=2,
                tie_embeddings=bool(options.shape["tie_word_embeddings"]),
            ),
            eval=EvalArgs(interval=10**9, max_iters=1, final_validation=False),
        )
    sys.stdout = stdout
    parts = batch // (options.micro_batch or batch)
    seconds = np.diff(data.asked[::parts])[options.warm_up :]
    print(json.dumps({"tokens_per_second": batch * (length - 1) / statistics.median(seconds.tolist())}))


if __name__ == "__main__":
    main()
