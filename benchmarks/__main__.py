"""rewarm beside other trainers, on the same tokens and the same model shape, in one sitting.

`python -m benchmarks --out FILE` runs each contender in a process of its own, again and again in turn, so that a slow
minute of the machine hits all of them, and prints medians, spread, ratios, and the share of the machine's limit: the
speed of a large matrix product of the same precision, measured in the same sitting.

What a peer needs beyond rewarm's own requirements is in benchmarks/requirements.txt; litgpt asks for older libraries
and wants an environment of its own: `--python litgpt=/path/to/its/python`. A peer that cannot be imported is left
out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import run_speeds

LOCAL = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 256,
}
BATCH, CONTEXT = 32, 128
TRAINER, PLAIN, LITGPT = "benchmarks.peers.trainer", "benchmarks.peers.plain", "benchmarks.peers.litgpt_pretrain"
CONTENDERS: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "Trainer FP32": (TRAINER, [], {}),
    "Trainer BF16": (TRAINER, ["--precision=bf16"], {}),
    "Trainer BF16 compiled": (TRAINER, ["--precision=bf16", "--compile"], {}),
    "litgpt BF16": (LITGPT, [], {"TORCHDYNAMO_DISABLE": "1"}),
    "litgpt BF16 compiled": (LITGPT, [], {}),
    "plain BF16": (PLAIN, [], {}),
    "plain BF16 compiled, keeps memory": (PLAIN, ["--compile", "--keep-memory"], {}),
    "rewarm": ("rewarm", [], {}),
    "rewarm compiled": ("rewarm", ["train.compile=true"], {}),
}
LIMIT = """
import json, time, torch
a = torch.randn(2048, 2048, dtype=torch.bfloat16); best = 0.0
for _ in range(12):
    start = time.perf_counter(); a @ a
    best = max(best, 2 * 2048**3 / (time.perf_counter() - start))
print(json.dumps({"flops_per_second": best}))
"""


def last_json(command: list[str], environment: dict[str, str]) -> dict[str, float] | str:
    """Return the JSON in the last line that a command prints, or the last line of its complaint."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no word"])[-1]
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(name: str, pythons: dict[str, str], windows: str, environment: dict[str, str]) -> dict[str, float] | str:
    """Return one contender's figures of one run."""
    module, options, extra = CONTENDERS[name]
    steps = len(np.load(windows, mmap_mode="r"))
    if module == "rewarm":
        budget = f"budget={steps * BATCH * CONTEXT}"
        speeds = run_speeds([budget, *options], environment)
        return speeds if isinstance(speeds, str) else {"tokens_per_second": statistics.median(speeds)}
    python = pythons.get(name.split(maxsplit=1)[0], sys.executable)
    command = [python, "-m", module, windows, f"--shape={json.dumps(LOCAL)}", *options]
    return last_json(command, environment | extra)


def flops_per_token() -> float:
    """Return the products of one trained token: 6 a parameter that multiplies, and attention in full."""
    hidden, layers = LOCAL["hidden_size"], LOCAL["num_hidden_layers"]
    blocks = layers * (4 * hidden * hidden + 2 * hidden * LOCAL["intermediate_size"])
    return 6 * (blocks + hidden * LOCAL["vocab_size"]) + 12 * layers * hidden * CONTEXT


def table(found: dict[str, list[float]], limits: list[float]) -> str:
    """Return the figures as a Markdown table, the fastest last."""
    limit = statistics.median(limits)
    best = {
        kind: max((statistics.median(v) for k, v in found.items() if k.startswith(kind)), default=0)
        for kind in ("Trainer", "litgpt")
    }
    lines = [
        "| contender | tokens/s, median | lowest to highest | / best Trainer | / best litgpt | of the limit |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, speeds in sorted(found.items(), key=lambda item: statistics.median(item[1])):
        middle = statistics.median(speeds)
        ratios = [f"{middle / best[kind]:.2f}" if best[kind] else "-" for kind in best]
        share = middle * flops_per_token() / limit
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        lines.append(f"| {name} | {middle:,.0f} | {spread} | {' | '.join(ratios)} | {share:.0%} |")
    return "\n".join([*lines, "", f"Limit: {limit / 1e9:,.0f} GFLOP/s, a BF16 product of 2048 x 2048 x 2048."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", help="contenders whose name holds this")
    parser.add_argument("--python", action="append", default=[], help="NAME=PATH: another interpreter for a peer")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    options = parser.parse_args()
    names = [name for name in CONTENDERS if not options.only or options.only in name]
    pythons = dict(item.split("=", 1) for item in options.python)
    speeds: dict[str, list[float]] = {}
    limits: list[float] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        windows = f"{folder}/windows.npy"
        generator = np.random.default_rng(0)
        shape = (options.steps, BATCH, CONTEXT + 1)
        np.save(windows, generator.integers(0, LOCAL["vocab_size"], shape, dtype=np.int64))
        environment = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
        for _ in range(options.repetitions):
            limit = last_json([sys.executable, "-c", LIMIT], {})
            assert not isinstance(limit, str), limit
            limits.append(limit["flops_per_second"])
            for name in names:
                if name in failed:
                    continue
                result = measure(name, pythons, windows, environment)
                if isinstance(result, str):
                    failed[name] = result
                    continue
                speeds.setdefault(name, []).append(result["tokens_per_second"])
                print(f"{name}: {result['tokens_per_second']:,.0f}", file=sys.stderr)
    print(table(speeds, limits))
    for name, why in failed.items():
        print(f"left out: {name} ({why})")
    if options.out:
        import torch

        versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.platform()}
        figures: dict[str, Any] = {"tokens_per_second": speeds, "limit_flops_per_second": limits, "left_out": failed}
        options.out.write_text(json.dumps(figures | versions, indent=1) + "\n")


if __name__ == "__main__":
    main()
