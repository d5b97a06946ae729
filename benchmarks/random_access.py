"""Batches from anywhere in a store of a billion tokens, and opening it. `python -m benchmarks.random_access`.

The store is made here, its shards as sparse files: what is measured is finding and gathering, with pages in memory
after they were first touched. The first batch at a place pays for mapping the shard besides. Opened for the first
time, the store is read whole to see that it is what was written; from then on the files' identities tell.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rewarm.data.batches import Batches, BatchSpec
from rewarm.data.layout import StoreSpec, shard_path, store_folder
from rewarm.data.store import TokenStore
from rewarm.storage import sealed, write_json

SHARD_TOKENS = 16_000_000


def sparse_store(root: Path, tokens: int) -> TokenStore:
    """Return a store of so many zeros, in shards of the usual size."""
    spec = StoreSpec({"kind": "zeros"}, "none", 0, 50_000, SHARD_TOKENS)
    folder, row = store_folder(root, spec), np.array([[SHARD_TOKENS, 0, 0]], dtype="<i8").tobytes()
    zeros = hashlib.sha256(bytes(2 * SHARD_TOKENS)).hexdigest()
    for number in range(shards := -(-tokens // SHARD_TOKENS)):
        with shard_path(folder, number, "tokens").open("wb") as file:
            os.truncate(file.fileno(), SHARD_TOKENS * 2)
        shard_path(folder, number, "documents").write_bytes(row)
        manifest = {"tokens": SHARD_TOKENS, "documents": 1, "domain_names": [""], "domains": {}, "cursor": None}
        checksums = {"tokens": zeros, "documents": hashlib.sha256(row).hexdigest()}
        manifest |= {"store": spec.digest, "start": number * SHARD_TOKENS, "checksums": checksums}
        write_json(shard_path(folder, number, "json"), sealed(manifest))
    write_json(folder / "complete.json", sealed({"tokens": shards * SHARD_TOKENS}))
    return TokenStore(folder, spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=float, default=1e9)
    parser.add_argument("--batches", type=int, default=300)
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        store = sparse_store(Path(folder), int(options.tokens))
        opening = []
        for opened in (store, TokenStore(store.folder, store.spec)):
            start = time.perf_counter()
            opened.holds(sys.maxsize)
            opening.append(time.perf_counter() - start)
        figures["opening the store"] = {
            "first time, ms": 1e3 * opening[0],
            "first time, GB/s": 2 * store.n_tokens / opening[0] / 1e9,
            "again, ms": 1e3 * opening[1],
        }
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
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
