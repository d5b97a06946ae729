"""Tokenising and packing: rewarm's store against the usual recipe of `datasets`.

`python -m benchmarks.tokenising --data FILE.jsonl.gz --tokenizer TOKENIZER.json`

The recipe is `datasets.map(tokenize, batched=True)`, then `map(group_texts, batched=True)` into blocks. Both read the
same file with the same tokenizer and as many processes, from nothing to tokens on disk, by turns. Memory is the sum
of the anonymous pages of a process and its children: what is mapped from files is not counted, on either side.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTEXT = 2048


def ours(path: str, tokenizer_path: str, folder: str, processes: int) -> tuple[float, int]:
    from rewarm.config.schema import DataConfig
    from rewarm.config.values import build
    from rewarm.data.layout import StoreSpec, store_folder
    from rewarm.data.producer import Producer
    from rewarm.data.sources import Indexed, make_source, origin
    from rewarm.data.tokenizers import load_tokenizer

    start = time.perf_counter()
    side = {"path": path, "validation_share": 1e-12}
    data, tokenizer = (
        build(DataConfig, {"upstream": side, "max_bad_share": 0.01}, saved=True),
        load_tokenizer(tokenizer_path),
    )
    place = origin(data.upstream, "upstream", "train")
    assert not isinstance(place, Indexed)
    documents = make_source(place, data.upstream, data)
    spec = StoreSpec(documents.fingerprint(), tokenizer.fingerprint, tokenizer.end_of_text, tokenizer.size, 2_000_000)
    producer = Producer(store_folder(Path(folder), spec), spec, documents, tokenizer, 10**12, processes)
    producer.run()
    if producer.error:
        raise producer.error
    return time.perf_counter() - start, producer.tokens


def recipe(path: str, tokenizer_path: str, folder: str, processes: int) -> tuple[float, int]:
    from itertools import chain

    from datasets import Features, Value, disable_progress_bars, load_dataset
    from transformers import PreTrainedTokenizerFast

    disable_progress_bars()
    start = time.perf_counter()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_path, eos_token="<|endoftext|>")
    features = Features({"text": Value("string"), "meta": json_meta(path)})
    texts = load_dataset("json", data_files=path, split="train", cache_dir=folder, features=features)

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        rows = tokenizer(batch["text"])["input_ids"]
        return {"input_ids": [[*row, tokenizer.eos_token_id] for row in rows]}

    def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        flat = list(chain(*batch["input_ids"]))
        length = len(flat) // CONTEXT * CONTEXT
        return {"input_ids": [flat[at : at + CONTEXT] for at in range(0, length, CONTEXT)]}

    tokens = texts.map(tokenize, batched=True, num_proc=processes, remove_columns=texts.column_names)
    blocks = tokens.map(group_texts, batched=True, num_proc=processes)
    return time.perf_counter() - start, len(blocks) * CONTEXT


def json_meta(path: str) -> dict[str, object]:
    """Return the type of the records' `meta`: all its values are texts."""
    import gzip

    from datasets import Value

    with gzip.open(path, "rt") as file:
        return {key: Value("string") for key in json.loads(file.readline())["meta"]}


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process and of all below it."""
    total, waiting = 0, [pid]
    while waiting:
        at = waiting.pop()
        try:
            rollup = Path(f"/proc/{at}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss_Anon:"))
            for task in Path(f"/proc/{at}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended meanwhile
    return total


def measure(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one side in a process of its own; return tokens/s and peak MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.tokenising", "--side", side, "--folder", folder]
        command += ["--data", options.data, "--tokenizer", options.tokenizer, "--processes", str(options.processes)]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HOME": folder}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.05)
        assert process.stdout is not None
        seconds, tokens = json.loads(process.stdout.read().splitlines()[-1])
    return {"tokens": tokens, "tokens/s": tokens / seconds, "peak MiB": peak / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a jsonl.gz file")
    parser.add_argument("--tokenizer", required=True, help="a tokenizer.json")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "recipe"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run = ours if options.side == "ours" else recipe
        print(json.dumps(run(options.data, options.tokenizer, options.folder, options.processes)))
        return
    found: dict[str, list[dict[str, float]]] = {"ours": [], "recipe": []}
    for _ in range(options.repetitions):
        for side, rows in found.items():
            rows.append(measure(side, options))
    figures = {
        side: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for side, rows in found.items()
    }
    figures["ratio"] = {key: figures["ours"][key] / figures["recipe"][key] for key in ("tokens/s", "peak MiB")}
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
