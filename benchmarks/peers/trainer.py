"""Hugging Face's Trainer."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Windows(Dataset[dict[str, torch.Tensor]]):
    """Each window is one example; the Trainer's model shifts labels by itself, so it predicts context tokens."""

    def __init__(self, path: str) -> None:
        windows = np.load(path)
        self.batch_size = windows.shape[1]
        self.rows = torch.from_numpy(windows.reshape(-1, windows.shape[2]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index, :-1], "labels": self.rows[index, :-1]}


class Times(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Note the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("windows")
    parser.add_argument("--shape", type=json.loads, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--micro-batch", type=int)
    options = parser.parse_args()
    torch.manual_seed(0)
    data, times = Windows(options.windows), Times()
    micro = options.micro_batch or data.batch_size
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**options.shape), dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=data.batch_size // micro,
            max_steps=len(data) // data.batch_size,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=options.precision == "bf16",
            fp16=options.precision == "fp16",
            torch_compile=options.compile,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[times])
        sys.stdout, stdout = sys.stderr, sys.stdout  # the Trainer prints its logs
        trainer.train()
        sys.stdout = stdout
    seconds = np.diff(times.ends)[options.warm_up :]
    tokens = data.batch_size * data.rows.shape[1] - data.batch_size
    print(json.dumps({"tokens_per_second": tokens / statistics.median(seconds.tolist())}))


if __name__ == "__main__":
    main()
