"""What the last bits of a run's numbers depend on, beside its config and its data.

The manifest records it, and a run that goes on says in one line what has changed: sums are then rounded in another
order, so that its numbers are near those of a run that was never interrupted, and no longer the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from rewarm import __version__
from rewarm.runs.manifest import Conditions, Manifest
from rewarm.training.distributed import world

CPU_ONLY = ("cpu", "threads")
"""Conditions that change nothing where a GPU computes."""


def be_deterministic(*, wanted: bool, strict: bool) -> None:
    """Have torch take, or not, kernels alone whose sums are in the same order each time.

    Others let threads add to the same number as they come: the gradient of embeddings in code that torch.compile
    wrote, and on a GPU that of attention. An operation without such a kernel is an error where `strict`, which flash
    attention asks for to be exact; else torch warns.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
    torch.use_deterministic_algorithms(wanted, warn_only=not strict)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # nothing here reads it


def cpu_kind() -> str:
    """Return the CPU's name and the instructions by which torch and its libraries choose their kernels."""
    features: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch that will do
    half = sorted(name for name, has in features.items() if has is True and name.endswith(("bf16", "fp16")))
    return " ".join([str(features.get("cpu_name", "CPU")), torch.backends.cpu.get_cpu_capability(), *half])


def conditions(device: torch.device) -> Conditions:
    """Return what the numbers of a run on `device` depend on."""
    import transformers

    return Conditions(
        rewarm=__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        device=torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        processes=world.size(),
        cpu=cpu_kind(),
        threads=torch.get_num_threads(),
    )


def kept_threads(asked: int | None, begun: int | None, environment: Mapping[str, str]) -> int | None:
    """Return how many CPU threads to train with; None leaves it to torch.

    What the user asks for comes first, in the config or by OpenMP's variable. Then a run that goes on keeps the
    number that it was `begun` with, where this process may use as many cores.
    """
    if asked or environment.get("OMP_NUM_THREADS"):
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return begun if begun and begun <= cores else None


def changed(begun: Manifest, now: Manifest) -> dict[str, list[Any]]:
    """Return which conditions, and which choices of rewarm's, differ between two manifests of a run: before and now.

    What an older manifest does not hold is not known, and counts as the same.
    """
    skipped = () if now.conditions.device == "cpu" else CPU_ONLY
    before, after = (asdict(m.conditions) | asdict(m.chosen) for m in (begun, now))
    return {
        key: [value, after[key]]
        for key, value in before.items()
        if value not in (None, after[key]) and key not in skipped
    }


def describe_change(difference: Mapping[str, list[Any]], step: int) -> str:
    """Return the line that says what is no longer as it was when a run goes on after `step`."""
    listed = ", ".join(f"{key} {after} (was {before})" for key, (before, after) in difference.items())
    return (
        f"goes on after step {step:,} with {listed}: from here on its numbers are near those of a run that was never "
        f"interrupted, not the same"
    )
