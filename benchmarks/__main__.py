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
import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import run_speeds
from rewarm.config.compose import compose_config
from rewarm.model.shape import config_of, shape_from

TRAINER, PLAIN, LITGPT = "benchmarks.peers.trainer", "benchmarks.peers.plain", "benchmarks.peers.litgpt_pretrain"
Contender = tuple[str, list[str], dict[str, str]]
"""What runs it (a module, or rewarm itself), its options or overrides, its environment."""


@dataclass(frozen=True)
class Setting:
    """One piece of work, and who does it. `model` names one of conf/model, whose shape the peers get too."""

    model: str
    batch: int
    context: int
    precision: str
    overrides: tuple[str, ...]
    contenders: dict[str, Contender]
    product: int
    """The size of the square matrices whose product is the machine's limit."""

    @functools.cached_property
    def shape(self) -> dict[str, Any]:
        """Return the model's shape, as transformers' config.json has it."""
        shape = config_of(compose_config(f"model={self.model}", *self.overrides).model)
        assert shape is not None, self.model
        return shape | {"max_position_embeddings": max(self.context, shape["max_position_embeddings"])}


LOCAL = Setting(
    *("tiny", 32, 128, "bf16", ()),
    {
        "Trainer FP32": (TRAINER, [], {}),
        "Trainer BF16": (TRAINER, ["--precision=bf16"], {}),
        "Trainer BF16 compiled": (TRAINER, ["--precision=bf16", "--compile"], {}),
        "litgpt BF16": (LITGPT, [], {"TORCHDYNAMO_DISABLE": "1"}),
        # Compiled with weights in BF16, torch 2.13's C++ does not build.
        "litgpt BF16 mixed, compiled": (LITGPT, ["--precision=bf16-mixed"], {}),
        "plain BF16": (PLAIN, [], {}),
        "plain BF16 compiled, keeps memory": (PLAIN, ["--compile", "--keep-memory"], {}),
        "rewarm": ("rewarm", [], {}),
        "rewarm compiled": ("rewarm", ["train.compile=true"], {}),
    },
    2048,
)


def on_a_gpu(model: str, precision: str, micro_batch: int) -> Setting:
    """Return one update of 65,536 tokens at context 2,048, a whole batch that every contender takes in parts."""
    common = [f"--precision={precision}", "--compile", f"--micro-batch={micro_batch}"]
    size, context = 32, 2048
    overrides = (f"train.batch_size={size}", f"train.context={context}", f"precision={precision}")
    return Setting(
        *(model, size, context, precision),
        ("model.tokenizer=builtin", "model.peak_lr=3e-4", "init=scratch", *overrides),
        {
            "Trainer compiled": (TRAINER, common, {}),
            # Its mixed FP16 refuses to clip with a fused optimizer. Weights in BF16 are less work than the others'.
            "litgpt BF16 compiled": (LITGPT, ["--precision=bf16-true", f"--micro-batch={micro_batch}"], {}),
            "plain compiled": (PLAIN, [*common, "--attention=sdpa"], {}),
            "rewarm": ("rewarm", ["train.compile=false"], {}),
            "rewarm compiled": ("rewarm", ["train.compile=true"], {}),
            "rewarm compiled, deterministic": ("rewarm", ["train.compile=true", "train.deterministic=true"], {}),
        },
        8192,
    )


SETTINGS = {
    "local": LOCAL,
    "gpu": on_a_gpu("pythia-410m", "fp16", 8),
    "gpu-llama": on_a_gpu("llama-3.2-1b", "bf16", 4),
}
LIMIT = """
import json, sys, time, torch
size, device = int(sys.argv[1]), "cuda" if torch.cuda.is_available() else "cpu"
a = torch.randn(size, size, dtype=getattr(torch, sys.argv[2]), device=device); best = 0.0
for _ in range(12):
    start = time.perf_counter(); a @ a
    if device == "cuda": torch.cuda.synchronize()
    best = max(best, 2 * size**3 / (time.perf_counter() - start))
print(json.dumps({"flops_per_second": best}))
"""
TYPES = {"bf16": "bfloat16", "fp16": "float16"}


def last_json(command: list[str], environment: dict[str, str]) -> dict[str, float] | str:
    """Return the JSON in the last line that a command prints, or the last line of its complaint."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no word"])[-1]
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(
    setting: Setting, name: str, pythons: dict[str, str], windows: str, environment: dict[str, str]
) -> dict[str, float] | str:
    """Return one contender's figures of one run."""
    module, options, extra = setting.contenders[name]
    if module == "rewarm":
        budget = f"budget={np.load(windows, mmap_mode='r').shape[0] * setting.batch * setting.context}"
        speeds = run_speeds([f"model={setting.model}", *setting.overrides, budget, *options], environment)
        return speeds if isinstance(speeds, str) else {"tokens_per_second": statistics.median(speeds)}
    python = pythons.get(name.split(maxsplit=1)[0], sys.executable)
    command = [python, "-m", module, windows, f"--shape={json.dumps(setting.shape)}", *options]
    return last_json(command, environment | extra)


def flops_per_token(setting: Setting) -> float:
    """Return the products of one trained token, attention in full."""
    shape = shape_from(setting.shape)
    assert shape is not None
    return shape.flops(setting.context)


def table(setting: Setting, found: dict[str, list[float]], limits: list[float]) -> str:
    """Return the figures as a Markdown table, the fastest last."""
    limit, size = statistics.median(limits), setting.product
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
        share = middle * flops_per_token(setting) / limit
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        lines.append(f"| {name} | {middle:,.0f} | {spread} | {' | '.join(ratios)} | {share:.0%} |")
    product = f"{setting.precision.upper()} product of {size} x {size} x {size}"
    return "\n".join([*lines, "", f"Limit: {limit / 1e9:,.0f} GFLOP/s, a {product}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=list(SETTINGS), default="local")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", default="", help="contenders in whose name this regular expression is found")
    parser.add_argument("--python", action="append", default=[], help="NAME=PATH: another interpreter for a peer")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    options = parser.parse_args()
    setting = SETTINGS[options.setting]
    names = [name for name in setting.contenders if re.search(options.only, name)]
    pythons = dict(item.split("=", 1) for item in options.python)
    speeds: dict[str, list[float]] = {}
    limits: list[float] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        windows = f"{folder}/windows.npy"
        generator = np.random.default_rng(0)
        shape = (options.steps, setting.batch, setting.context + 1)
        np.save(windows, generator.integers(0, setting.shape["vocab_size"], shape, dtype=np.int64))
        environment = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
        for _ in range(options.repetitions):
            limit = last_json([sys.executable, "-c", LIMIT, str(setting.product), TYPES[setting.precision]], {})
            assert not isinstance(limit, str), limit
            limits.append(limit["flops_per_second"])
            for name in names:
                if name in failed:
                    continue
                result = measure(setting, name, pythons, windows, environment)
                if isinstance(result, str):
                    failed[name] = result
                    continue
                speeds.setdefault(name, []).append(result["tokens_per_second"])
                print(f"{name}: {result['tokens_per_second']:,.0f}", file=sys.stderr)
    print(table(setting, speeds, limits))
    for name, why in failed.items():
        print(f"left out: {name} ({why})")
    if options.out:
        import torch

        versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.platform()}
        figures: dict[str, Any] = {"tokens_per_second": speeds, "limit_flops_per_second": limits, "left_out": failed}
        options.out.write_text(json.dumps(figures | versions, indent=1) + "\n")


if __name__ == "__main__":
    main()
