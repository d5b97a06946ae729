"""Batches from anywhere in a store of a billion tokens. `python -m benchmarks.random_access`.

The store is made here, its shards as sparse files: what is measured is finding and gathering, with pages in memory
after they were first touched. The first batch at a place pays for mapping the shard besides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from rewarm.cache import write_json
from rewarm.data.batches import Batches, BatchSpec
from rewarm.data.layout import StoreSpec
from rewarm.data.store import TokenStore, open_store

SHARD_TOKENS = 16_000_000


def sparse_store(root: Path, tokens: int) -> TokenStore:
    """Return a store of so many zeros, in shards of the usual size."""
    spec = StoreSpec({"kind": "zeros"}, "none", 0, 50_000, SHARD_TOKENS)
    folder = open_store(root, spec).folder
    for number in range(-(-tokens // SHARD_TOKENS)):
        with (folder / f"shard-{number:05d}.tokens").open("wb") as file:
            os.truncate(file.fileno(), SHARD_TOKENS * 2)
        manifest = {"tokens": SHARD_TOKENS, "documents": 0, "domain_names": [], "domains": {}, "cursor": None}
        write_json(folder / f"shard-{number:05d}.json", manifest)
    write_json(folder / "complete.json", {"tokens": tokens})
    return open_store(root, spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=float, default=1e9)
    parser.add_argument("--batches", type=int, default=300)
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        store = sparse_store(Path(folder), int(options.tokens))
        for batch_size, context in ((1, 2048), (16, 128), (8, 2048), (32, 2048), (1104, 2048)):
            batches = Batches(BatchSpec(batch_size, context, 0, 8192), store, None)
            steps = store.n_tokens // (batch_size * context)
            draw = np.random.default_rng(0).integers(1, steps, options.batches).tolist()
            rounds = []
            for _ in range(2):
                times = []
                for step in draw:
                    start = time.perf_counter()
                    batches[step]
                    times.append(time.perf_counter() - start)
                rounds.append(times)
            figures[f"{batch_size} x {context}"] = {
                "first time, median ms": 1e3 * statistics.median(rounds[0]),
                "again, median ms": 1e3 * statistics.median(rounds[1]),
                "again, 99th percentile ms": 1e3 * statistics.quantiles(rounds[1], n=100)[98],
            }
        start = time.perf_counter()
        TokenStore(store.folder, store.spec)
        figures["opening the store"] = {"ms": 1e3 * (time.perf_counter() - start)}
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
