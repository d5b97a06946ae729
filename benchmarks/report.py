"""Time and memory of a report over 200 runs of 10,000 metric lines each: under 30 s and 1 GiB.

python -m benchmarks.report [RUNS] [LINES]
"""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from rewarm.commands.report import report
from rewarm.config.compose import compose_config


def write(folder: Path, runs: int, lines: int) -> None:
    base = compose_config()
    for i in range(runs):
        run = folder / f"run-{i}"
        run.mkdir()
        config = replace(base, seed=i % 10, max_lr=1e-4 * (1 + i // 10), run_dir=str(run))
        (run / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
        with (run / "metrics.jsonl").open("w") as file:
            for step in range(lines):
                up, down = 2 + 0.1 * math.sin(step / 900 + i), 3 - step / lines
                row = {"step": step, "tokens": 2048 * step, "train/loss": down, "lr": 1e-3, "grad_norm": 1.0,
                       "loss_scale": 4096.0, "skipped": 0.0, "tokens_per_second": 25e3, "mfu": 0.1,
                       "upstream/loss": up, "upstream/ppl": math.exp(up), "upstream/bpb": up / 2,
                       "downstream/loss": down, "downstream/ppl": math.exp(down), "downstream/bpb": down}  # fmt: skip
                file.write(json.dumps(row) + "\n")


def main() -> None:
    runs, lines = (int(value) for value in (*sys.argv[1:], "200", "10000")[:2])
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), runs, lines)
        start = time.perf_counter()
        report([name])
        seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{runs} runs of {lines} lines: {seconds:.1f} s, {memory:.2f} GiB at most")


if __name__ == "__main__":
    main()
