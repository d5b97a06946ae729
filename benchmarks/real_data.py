"""The study at a middle scale: real text of two corpora, the real tokenizer, a Pythia-14M shape.

`python -m benchmarks.real_data --upstream PILE.jsonl.gz --downstream REDPAJAMA.jsonl.gz --tokenizer TOKENIZER.json`
pretrains on the upstream text, then asks from there what the paper asks first: how high, and how long a warm-up. What
is there already is not run again. Warm-ups are longer shares than the paper's, which would be one step of so few.
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
    parser.add_argument("--pretraining", default="3M", help="tokens of the upstream run")
    parser.add_argument("--horizon", default="0.6M", help="tokens of an arm of the first question")
    parser.add_argument("--short", default="0.3M", help="tokens of an arm of the second")
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
        *("train.batch_size=16", "train.context=256", "evaluation.every=10", "checkpoint.every=100000"),
        "tracker=none",
    ]

    def rewarm(*arguments: str) -> None:
        subprocess.run([*REWARM, *arguments], check=True)

    start = folder / "pretrained"
    rewarm(
        *("train", *common, "init=scratch", "data.train=upstream", "schedule=cosine", "evaluation.every=250"),
        *(f"budget={options.pretraining}", f"run_dir={start}"),
    )
    questions = {
        "max_lr": ["experiment=max_lr", f"budget={options.horizon}"],
        "warmup": [
            "schedule=cosine_neox",
            "warmup=0,0.05,0.1,0.2",
            f"budget={options.horizon}",
            f"stop={options.short}",
        ],
    }
    for name, overrides in questions.items():
        rewarm("train", "-m", *overrides, *common, f"init={start}", f"run_dir={folder / name}")
        rewarm("report", str(folder / name), f"out={options.report / name}")


if __name__ == "__main__":
    main()
