"""Real Pile and RedPajama text, the real tokenizer: a small Pythia is trained upstream, then re-warmed downstream.

`python -m benchmarks.real_data --upstream 8M --downstream 2M` reads ../shared/data and prints one line an arm.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SETS = {"upstream": ("pile", "meta.pile_set_name"), "downstream": ("redpajama", "meta.redpajama_set_name")}
ARMS = {
    "constant": ["schedule=constant", "max_lr=4e-4", "warmup=0"],
    "cosine 4e-4": ["max_lr=4e-4", "warmup=0.05"],
    "cosine 4e-3": ["max_lr=4e-3", "warmup=0.05"],
    "cosine 4e-3, no warm-up": ["max_lr=4e-3", "warmup=0"],
    "cosine 4e-3, replay 0.25": ["max_lr=4e-3", "warmup=0.05", "replay=0.25"],
}


def shuffled(folder: Path, name: str) -> Path:
    """Write a sample in random order: the file is sorted by subject."""
    path = folder / f"{name}.jsonl"
    with gzip.open(SHARED / f"{name}_sample.jsonl.gz") as file:
        rows = file.readlines()
    random.Random(0).shuffle(rows)
    path.write_bytes(b"".join(rows))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", default="8M", help="tokens of the pre-training")
    parser.add_argument("--downstream", default="2M", help="tokens of each arm")
    parser.add_argument("--folder", type=Path, default=Path("runs/real-data"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    common = [
        *("model=pythia-14m", "model.hidden_size=64", "model.layers=4", "model.intermediate_size=256"),
        *("data=files", f"data.tokenizer={SHARED / '20B_tokenizer.json'}", "data.max_bad_share=0.01"),
        *("tracker=none", "checkpoint.every=100000", "evaluation.every=50", "data.validation_tokens=16384"),
    ]
    for side, (name, domain) in SETS.items():
        common.append(f"data.{side}={{path:{shuffled(options.folder, name)},domain_field:{domain}}}")

    def train(name: str, *overrides: str) -> Path:
        run = options.folder / name.replace(" ", "-").replace(",", "")
        subprocess.run([sys.executable, "-m", "rewarm", "train", *common, *overrides, f"run_dir={run}"], check=True)
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        print(f"{name:<28}{last['upstream/loss']:8.4f}{last['downstream/loss']:8.4f}", flush=True)
        return run

    print(f"{'':<28}{'upstream':>8}{'downstr.':>8}")
    start = train("upstream", "init=scratch", "data.train=upstream", "max_lr=4e-3", f"budget={options.upstream}")
    for name, overrides in ARMS.items():
        train(name, f"init={start}", f"budget={options.downstream}", *overrides)


if __name__ == "__main__":
    main()
