"""The loop that one would write: autocast, fused AdamW, clip, whole logits."""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("windows")
    parser.add_argument("--shape", type=json.loads, required=True)
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--keep-memory", action="store_true", help="tell glibc to keep large blocks")
    parser.add_argument("--attention", default="eager")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--warm-up", type=int, default=5)
    options = parser.parse_args()
    if options.keep_memory:
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, (1 << 31) - 1)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    windows = torch.from_numpy(np.load(options.windows)).to(device)
    micro = options.micro_batch or windows.shape[1]
    shape = AutoConfig.for_model(**options.shape)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, attn_implementation=options.attention).to(
        device
    )
    forward = torch.compile(model, dynamic=False) if options.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=options.precision == "fp16")
    ends = []
    for batch in windows:
        for part in batch.split(micro):
            with torch.autocast(device, dtype=DTYPES[options.precision], enabled=options.precision != "fp32"):
                logits = forward(input_ids=part[:, :-1], use_cache=False).logits
                loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten())
            scaler.scale(loss * len(part) / len(batch)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
    seconds = np.diff(ends)[options.warm_up :]
    tokens = windows.shape[1] * (windows.shape[2] - 1)
    print(json.dumps({"tokens_per_second": tokens / statistics.median(seconds.tolist())}))


if __name__ == "__main__":
    main()
