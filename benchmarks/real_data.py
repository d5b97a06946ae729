"""The study at a middle scale: real text of two corpora, the real tokenizer, a Pythia-14M shape.

`python -m benchmarks.real_data --upstream PILE.jsonl.gz --downstream REDPAJAMA.jsonl.gz --tokenizer TOKENIZER.json`
pretrains on the upstream text, then runs the paper's experiments on the maximum learning rate and on the warm-up from
there, and reports both. What is there already is not run again.
"""

from __future__ import annotations

import argparse
import gzip
import random
import subprocess
import sys
from pathlib import Path

REWARM = [sys.executable, "-m", "rewarm"]


def shuffled(source: Path, target: Path) -> Path:
    """Write a sample in random order: corpora come sorted by subject."""
    if not target.exists():
        with gzip.open(source) as file:
            rows = file.readlines()
        random.Random(0).shuffle(rows)
        target.write_bytes(b"".join(rows))
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, required=True, help="jsonl.gz with domains in meta.pile_set_name")
    parser.add_argument("--downstream", type=Path, required=True, help="the same, meta.redpajama_set_name")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--model", default="pythia-14m")
    parser.add_argument("--pretraining", default="8M", help="tokens of the upstream run")
    parser.add_argument("--horizon", default="1M", help="tokens of an arm of the experiment on the maximum LR")
    parser.add_argument("--short", default="0.5M", help="tokens of an arm of the experiment on the warm-up")
    parser.add_argument("--folder", type=Path, default=Path("runs/real-data"))
    parser.add_argument("--report", type=Path, default=Path("runs/real-data/report"))
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    old = shuffled(options.upstream, folder / "upstream.jsonl")
    new = shuffled(options.downstream, folder / "downstream.jsonl")
    common = [
        *(f"model={options.model}", "data=files", f"data.tokenizer={options.tokenizer.resolve()}"),
        f"data.upstream={{path:{old},domain_field:meta.pile_set_name}}",
        f"data.downstream={{path:{new},domain_field:meta.redpajama_set_name}}",
        *("data.max_bad_share=0.01", "data.validation_tokens=32768", "data.shard_tokens=1M"),
        *("train.batch_size=16", "train.context=256", "evaluation.every=25", "checkpoint.every=100000"),
        "tracker=none",
    ]

    def rewarm(*arguments: str) -> None:
        subprocess.run([*REWARM, *arguments], check=True)

    start = folder / "pretrained"
    rewarm(
        *("train", *common, "init=scratch", "data.train=upstream", "schedule=cosine", "evaluation.every=250"),
        *(f"budget={options.pretraining}", f"run_dir={start}"),
    )
    for experiment in ("max_lr", "warmup_length"):
        rewarm(
            *("train", "-m", f"experiment={experiment}", *common, f"init={start}", f"run_dir={folder / experiment}"),
            *(f"experiment.horizon={options.horizon}", f"experiment.short={options.short}"),
        )
        rewarm("report", str(folder / experiment), f"out={options.report / experiment}")


if __name__ == "__main__":
    main()
