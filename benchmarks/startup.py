"""How long a newcomer waits: help, a mistake, the first step, the default run. `python -m benchmarks.startup`."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REWARM = [sys.executable, "-m", "rewarm"]


def seconds(arguments: list[str], environment: dict[str, str], cwd: str, exit_code: int = 0) -> float:
    """Return how long a command took from start to end; it must end as expected to count."""
    start = time.perf_counter()
    done = subprocess.run(
        [*REWARM, *arguments], env=os.environ | environment, cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode != exit_code:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-500:]}")
    return time.perf_counter() - start


def seconds_to_first_step(environment: dict[str, str], cwd: str, name: str) -> float:
    """Return how long it took from the command to the metrics of the first step, the evaluation before it done."""
    command = [*REWARM, "train", "train.log_every=1", "budget=40960", "tracker=none", f"run_dir={name}"]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=os.environ | environment, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = Path(cwd, name, "metrics.jsonl")
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 1):
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode} before its first step")
        time.sleep(0.005)
    found = time.perf_counter() - start
    process.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--runs", action="store_true", help="also the first and a later default run (minutes)")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {"REWARM_CACHE": f"{folder}/cache", "WANDB_MODE": "offline"}
        for name, (arguments, exit_code) in {
            "rewarm --help": (["--help"], 0),
            "a config error": (["train", "max_lr=-1"], 2),
            "an unknown key": (["train", "max_lrr=1"], 2),
        }.items():
            times = [seconds(arguments, environment, folder, exit_code) for _ in range(options.repetitions)]
            figures[name] = statistics.median(times)
        one_step = ["train", "budget=4096", "evaluation.every=1000", "data.validation_tokens=4096", "tracker=none"]
        figures["one step, empty cache"] = seconds([*one_step, "run_dir=a"], environment, folder)
        figures["one step, warm cache"] = statistics.median(
            seconds([*one_step, f"run_dir=b{n}"], environment, folder) for n in range(3)
        )
        figures["to the first step, warm"] = statistics.median(
            seconds_to_first_step(environment, folder, f"c{n}") for n in range(options.repetitions)
        )
        if options.runs:
            fresh = environment | {"REWARM_CACHE": f"{folder}/fresh"}
            command = ["train", "schedule=cosine", "max_lr=6e-4"]
            figures["default run, empty cache"] = seconds([*command, "run_dir=first"], fresh, folder)
            figures["default run, warm cache"] = seconds([*command, "run_dir=second"], fresh, folder)
            figures["its tokens a second"] = json.loads(Path(folder, "second/summary.json").read_text())[
                "tokens_per_second"
            ]
    for name, value in figures.items():
        print(f"{name:<28}{value:>12.2f}")
    print(re.sub(r"\s+", " ", f"python {sys.version}"))


if __name__ == "__main__":
    main()
