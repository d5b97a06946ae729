"""Several processes: what they cost here, and what the paper's setting would cost elsewhere.

python -m benchmarks.scaling measure     step time and bytes sent for 1, 2 and 4 processes on this machine
python -m benchmarks.scaling derive      memory, speed, days and price by arithmetic: the tables of docs/scaling.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rewarm.config.compose import compose_config
from rewarm.model.shape import Shape, shape_of
from rewarm.training.microbatch import divisors

TOKENS = 296.86e9
SEQUENCES, CONTEXT = 1104, 2048
OTHER_GB = 1.6
"""CUDA itself, and a chunk of logits with its gradient."""
MODELS = ("pythia-410m", "pythia-2.8b", "pythia-12b")
SMALL = (
    *("init=scratch", "train.batch_size=32", "train.context=128", "train.micro_batch_size=8", "train.threads=1"),
    *("budget=163840", "precision=fp32", "device=cpu", "tracker=none", "train.log_every=1"),
    "data.validation_tokens=4096",
    *("evaluation.every=1000", "evaluation.dense_until=0", "checkpoint.every=1000"),
)


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind: `peak` in FLOP/s of 16-bit products; `mfu` and `price`, dollars a GPU hour, are assumed."""

    name: str
    gpus: int
    memory_gb: float
    peak: float
    mfu: float
    price: float


PAPER = Cluster("276 V100", 276, 16, 125e12, 0.25, 1.0)
NODE = Cluster("8 H100", 8, 80, 989.4e12, 0.40, 2.5)


def memory_gb(shape: Shape, gpus: int, micro_batch: int, *, sharded: bool) -> float:
    """Return the GB that a GPU holds: weights, gradients and moments in FP32, their 16-bit copies, and activations.

    Activations are 34 bytes for each layer, token and unit of width (Korthikanti et al. 2022, without the scores,
    which SDPA never stores). Sharded, the embeddings and two blocks are whole beside this GPU's share of all.
    """
    n = shape.parameters
    activations = 34 * shape.hidden * shape.layers * CONTEXT * micro_batch
    if not sharded:
        return OTHER_GB + (18 * n + activations) / 1e9
    # Embeddings in FP32 with their gradients; of blocks, two in 16 bits, and the gradients of one.
    whole = 8 * shape.embeddings + (2 * 2 + 2) * shape.blocks / shape.layers
    return OTHER_GB + (16 * n / gpus + whole + activations) / 1e9


def sent_gb(shape: Shape, gpus: int, micro_batch: int, *, sharded: bool) -> float:
    """Return the GB that a GPU sends in a step, over rings.

    DDP: one all-reduce of FP32 gradients. FSDP, for each micro-batch: two gatherings of the blocks in 16 bits and one
    of the embeddings in FP32, and one scattering of FP32 gradients. So counts `tests/training/test_sharding.py`.
    """
    share = (gpus - 1) / gpus / 1e9
    if not sharded:
        return 2 * 4 * shape.parameters * share
    return (8 * shape.blocks + 8 * shape.embeddings) * share * SEQUENCES / gpus / micro_batch


def derive() -> None:
    for cluster in (PAPER, NODE):
        print(f"\n{cluster.name}, {cluster.memory_gb:.0f} GB each\n")
        print(
            "| model | way | micro-batch | GB a GPU | fits | GB sent a step | tokens/s | days | GPU hours | dollars |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for model in MODELS:
            shape = shape_of(compose_config("scale=paper", f"model={model}").model)
            assert shape is not None
            speed = cluster.gpus * cluster.peak * cluster.mfu / shape.flops(CONTEXT)
            hours = TOKENS / speed / 3600
            for sharded in (False, True):
                sizes = divisors(SEQUENCES // cluster.gpus, 32)
                room = {n: memory_gb(shape, cluster.gpus, n, sharded=sharded) for n in sizes}
                fitting = [n for n, gb in room.items() if gb < 0.95 * cluster.memory_gb]
                n = max(fitting, default=1)
                row = (
                    model,
                    "fsdp" if sharded else "ddp",
                    str(n),
                    f"{room[n]:.1f}",
                    "yes" if fitting else "no",
                    f"{sent_gb(shape, cluster.gpus, n, sharded=sharded):.0f}",
                    *(
                        (f"{speed:,.0f}", f"{hours / 24:.1f}", f"{hours * cluster.gpus:,.0f}")
                        if fitting
                        else ("",) * 3
                    ),
                    f"{hours * cluster.gpus * cluster.price:,.0f}" if fitting else "",
                )
                print("| " + " | ".join(row) + " |")


def measure() -> None:
    print("| processes | way | median step, ms | tokens/s | all-reduces a step | MB a process sends a step |")
    print("|---|---|---|---|---|---|")
    shape = shape_of(compose_config("init=scratch").model)
    assert shape is not None
    for count, way in ((1, "ddp"), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp")):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = ("train", *SMALL, f"run_dir={run}", f"train.parallel={way}", "profile=true")
            launcher = (
                ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}") if count > 1 else ()
            )
            subprocess.run([sys.executable, *launcher, "-m", "rewarm", *command], check=True, capture_output=True)
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            speeds = [row["tokens_per_second"] for row in rows[10:] if row.get("tokens_per_second")]
            trace = (run / "profile" / "trace.json").read_text()
        speed = statistics.median(speeds)
        micro_batches = 32 / count / 8 if way == "fsdp" else 1
        mb = 4e-6 * shape.parameters * (count - 1) / count * (3 * micro_batches if way == "fsdp" else 2)
        reductions = trace.count('"gloo:all_reduce"') / 3
        print(f"| {count} | {way} | {32 * 128 / speed * 1e3:.0f} | {speed:,.0f} | {reductions:.0f} | {mb:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "derive"))
    {"measure": measure, "derive": derive}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
