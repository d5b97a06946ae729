"""What makes a run dear: its step and its start against the sizes one can choose. `python -m benchmarks.cost`.

Each quantity is varied alone around the local scale, each point is a run of its own, and the exponent of a power law
is fitted to the points (least squares of logarithms). Memory is the largest resident set of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.random_access import sparse_store
from benchmarks.speed import run_speeds

STEPS = 30
AXES: dict[str, list[tuple[int, list[str]]]] = {
    "sequences a step": [(n, [f"train.batch_size={n}"]) for n in (8, 16, 32, 64, 128)],
    "context, 32 sequences": [
        (n, [f"train.context={n}", f"model.max_context={max(n, 256)}"]) for n in (64, 128, 256, 512, 1024)
    ],
    "vocabulary": [(n, [f"model.vocab_size={n}"]) for n in (4096, 8192, 16384, 32768, 65536)],
    "width (heads of 32)": [
        (n, [f"model.hidden_size={n}", f"model.intermediate_size={4 * n}", f"model.heads={n // 32}"])
        for n in (64, 128, 256, 512)
    ],
    "layers": [(n, [f"model.layers={n}"]) for n in (2, 4, 8, 16)],
}
OPEN = """
import json, resource, sys, time
from pathlib import Path
from rewarm.data.batches import Batches, BatchSpec
from rewarm.data.layout import StoreSpec
from rewarm.data.store import TokenStore
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
store = TokenStore(Path(sys.argv[1]), StoreSpec({"kind": "zeros"}, "none", 0, 50_000, 16_000_000))
store.holds(sys.maxsize)
batches = Batches(BatchSpec(32, 2048, 0, 8192), store, None)
for step in range(1, store.n_tokens // (32 * 2048), max(1, store.n_tokens // (32 * 2048) // 50)):
    batches[step]
    if step == 1:
        first = time.perf_counter() - start
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"ms": 1e3 * first, "mib": (after - before) / 1024}))
"""
"""Open a store that was checked before, read its first batch and fifty others spread over it."""


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Return the exponent of the power law that is nearest to the points."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def step_milliseconds(overrides: list[str], tokens: int) -> float:
    """Return the time of a step of so many tokens."""
    speeds = run_speeds(["init=scratch", f"budget={STEPS * tokens}", *overrides], {})
    if isinstance(speeds, str):
        raise SystemExit(f"{' '.join(overrides)}: {speeds}")
    return 1e3 * tokens / statistics.median(speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sizes whose name holds this")
    options = parser.parse_args()
    for name, runs in AXES.items():
        if options.only not in name:
            continue
        sizes, costs = [size for size, _ in runs], []
        for size, overrides in runs:
            sequences = size if name.startswith("sequences") else 32
            context = size if name.startswith("context") else 128
            costs.append(step_milliseconds(overrides, sequences * context))
        # The small sizes are overhead; the law of the cost is that of the large ones.
        tail = exponent(sizes[-3:], costs[-3:])
        figures = ", ".join(f"{size:,}: {cost:,.0f} ms" for size, cost in zip(sizes, costs, strict=True))
        print(f"| {name} | {figures} | {exponent(sizes, costs):.2f} | {tail:.2f} |", flush=True)
    if options.only:
        return
    sizes, starts, memory = [16_000_000, 64_000_000, 256_000_000, 1_024_000_000], [], []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            store = sparse_store(Path(folder), size)
            store.holds(size)
            done = subprocess.run(
                [sys.executable, "-c", OPEN, str(store.folder)], capture_output=True, text=True, check=True
            )
        found = json.loads(done.stdout)
        starts.append(found["ms"])
        memory.append(found["mib"])
    for name, costs, unit in (("opening, first batch", starts, "ms"), ("memory", memory, "MiB")):
        points = zip(sizes, costs, strict=True)
        figures = ", ".join(f"{size / 1e6:,.0f}M: {cost:,.1f} {unit}" for size, cost in points)
        print(f"| tokens in the store, {name} | {figures} | {exponent(sizes, costs):.2f} | |", flush=True)


if __name__ == "__main__":
    main()
