"""How long the loop stands still for a checkpoint, against saving the same state while it waits; what resume costs.

A synchronous save copies, writes, makes durable and renames before the next step begins. With a background one the
loop waits while the copy is begun, and again before it updates, if the copy is not made by then; "the step beside it"
says how much longer the gradients take meanwhile.

python benchmarks/checkpoint.py            the local scale's model
python benchmarks/checkpoint.py 512 8      a wider and deeper one
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from rewarm.config.schema import ModelConfig, OptimizerConfig, ScalerConfig
from rewarm.model.init import Init
from rewarm.model.weights import load_model
from rewarm.training.checkpoints import folder as checkpoints
from rewarm.training.checkpoints.saving import BackgroundSaver
from rewarm.training.checkpoints.snapshot import Snapshot
from rewarm.training.precision import LossScaler
from rewarm.training.state import TrainState, make_optimizer

REPEATS = 7


def make_state(hidden: int, layers: int) -> TrainState:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = ModelConfig(
        name="benchmark", init="scratch", peak_lr=1e-3, final_lr=1e-4, vocab_size=4096, hidden_size=hidden,
        layers=layers, heads=4, intermediate_size=4 * hidden, max_context=256,
    )  # fmt: skip
    model = load_model(Init("scratch", None), shape, 0, device)
    state = TrainState(
        model, make_optimizer(model, OptimizerConfig()), LossScaler(ScalerConfig(), device, dynamic=True)
    )
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    state.optimizer.step()
    return state


def gradients(state: TrainState, windows: torch.Tensor) -> float:
    """Compute the gradients of a batch, as the loop does before it updates; return the seconds."""
    start = time.perf_counter()
    with torch.autocast(windows.device.type, dtype=torch.bfloat16):
        state.model(input_ids=windows, labels=windows).loss.backward()
    if windows.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def stand_still(state: TrainState, folder: Path) -> dict[str, float]:
    """Return the median seconds of a synchronous save, and of what the loop waits for a background one."""
    model = state.model
    times: dict[str, list[float]] = {
        "synchronous": [],
        "background": [],
        "a step alone": [],
        "the step beside it": [],
    }
    windows = torch.randint(4096, (32, 128), device=state.sums.device)
    with BackgroundSaver(state, lambda snapshot: void(checkpoints.write(folder, snapshot, model, None))) as saver:
        for number in range(REPEATS + 1):
            state.step += 1
            start = time.perf_counter()
            checkpoints.write(folder, Snapshot.view(state).copy(), model, None)
            synchronous = time.perf_counter() - start
            alone = gradients(state, windows)
            state.step += 1
            start = time.perf_counter()
            saver.save()
            begun = time.perf_counter() - start
            beside = gradients(state, windows)
            start = time.perf_counter()
            saver.wait_for_copy()
            if state.sums.is_cuda:
                torch.cuda.synchronize()
            background = begun + time.perf_counter() - start
            saver.wait()
            checkpoints.prune(folder, 1, None, ())
            if number:  # the first one allocates
                for name, seconds in zip(times, (synchronous, background, alone, beside), strict=True):
                    times[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def void(_: object) -> None:
    return None


def resume_overhead(folder: Path) -> dict[str, float]:
    """Return the median seconds of a command that begins a run of one step, and of one that resumes for one step."""
    common = (
        *("init=scratch", "train.batch_size=16", "train.context=128", "data.validation_tokens=2048", "horizon=20480"),
        *("tracker=none", "evaluation.every=1000", "evaluation.dense_every=1000", "checkpoint.every=1000"),
    )

    def seconds(*overrides: str) -> float:
        start = time.perf_counter()
        command = [sys.executable, "-m", "rewarm", "train", *common, *overrides]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start

    seconds("budget=2048", f"run_dir={folder / 'warm-up'}")
    cold, resumed = [], []
    for number in range(3):
        run = f"run_dir={folder / str(number)}"
        cold.append(seconds("budget=2048", run))
        resumed.append(seconds("budget=4096", "extend=true", run))
    return {"cold start": statistics.median(cold), "resume": statistics.median(resumed)}


def main() -> None:
    hidden, layers = (int(a) for a in sys.argv[1:3]) if len(sys.argv) > 2 else (128, 4)
    state = make_state(hidden, layers)
    with tempfile.TemporaryDirectory() as folder:
        figures = stand_still(state, Path(folder))
        figures["share"] = figures["background"] / figures["synchronous"]
        figures |= resume_overhead(Path(folder))
    figures["resume overhead"] = figures["resume"] - figures["cold start"]
    figures["parameters"] = sum(p.numel() for p in state.model.parameters())
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
