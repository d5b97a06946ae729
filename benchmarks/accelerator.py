"""All that is to be known of rewarm on a GPU, in one call of under ten minutes. `python -m benchmarks.accelerator`.

Three parts, each a command of its own whose output comes into `--out`, so that what was found stays where the time
runs out: the tests that need a GPU (FP16 killed and resumed, no wait for the device within a step, the micro-batch
that fits); FP16 losses of a Pythia against its FP32 losses, step by step; a profile of the loop at the paper's
context; then the speeds of rewarm and its peers side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.speed import QUIET

ROOT = Path(__file__).resolve().parents[1]
REWARM = [sys.executable, "-m", "rewarm", "train", "init=scratch", "model.tokenizer=builtin", *QUIET]


def run(name: str, command: list[str], out: Path, limit: float) -> bool:
    """Run a command, its output in a file of its own; return whether it ended well within `limit` seconds."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with (out / f"{name}.txt").open("w") as file:
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    print(f"{name}: {'ended' if code == 0 else f'exit code {code}'}, {time.perf_counter() - start:.0f} s", flush=True)
    return code == 0


def compare_precisions(model: str, out: Path, limit: float) -> None:
    """Print how far the losses of FP16 lie from those of FP32, the same steps of the same model."""
    losses = {}
    for precision in ("fp32", "fp16"):
        folder = out / f"losses-{precision}"
        shape = [f"model={model}", "train.batch_size=8", "train.context=256", "budget=61440", "train.log_every=1"]
        if not run(folder.name, [*REWARM, *shape, f"precision={precision}", f"run_dir={folder}"], out, limit):
            return
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[precision] = [row["train/loss"] for row in rows if "train/loss" in row]
    differences = [abs(a - b) / b for a, b in zip(losses["fp16"], losses["fp32"], strict=True)]
    print(f"losses: {len(differences)} steps, from {losses['fp32'][0]:.3f} to {losses['fp32'][-1]:.3f};", end=" ")
    print(f"FP16 differs from FP32 by at most {max(differences):.1e}, relative", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for everything that is found")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--model", default="pythia-410m", help="one of conf/model, for the profile")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--no-peers", action="store_true", help="leave out the last part")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    tests = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:randomly", "tests/training", "-k", "gpu or cuda"]
    run("tests", tests, out, 150)
    compare_precisions("pythia-14m", out, 60)
    shape = [f"model={options.model}", f"train.batch_size={options.batch}", f"train.context={options.context}"]
    budget = f"budget={12 * options.batch * options.context}"
    run(
        "profile",
        [*REWARM, *shape, budget, "profile=true", "train.compile=true", f"run_dir={out / 'profile'}"],
        out,
        150,
    )
    if not options.no_peers:
        peers = [sys.executable, "-m", "benchmarks", "--setting=gpu", "--repetitions=2", "--steps=30"]
        run("speeds", [*peers, f"--out={out / 'speeds.json'}"], out, max(1.0, end - time.monotonic()))
        print((out / "speeds.txt").read_text())


if __name__ == "__main__":
    main()
