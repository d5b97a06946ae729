"""What the processes of one run must agree on before they train: a batch that they can share, and the config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from rewarm.config.differences import flat
from rewarm.config.schema import Config
from rewarm.errors import UserError
from rewarm.runs.folder import redacted
from rewarm.training.distributed import collectives
from rewarm.training.microbatch import divisors

UNNAMED = re.compile(r"runs/\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}-\d{6}")
"""A `run_dir` that was not given, but made from the clock, which each process reads at another moment."""
SHOWN = 6


def _listed(numbers: list[int], near: int) -> str:
    """Return the few of `numbers` that lie nearest to one, in words."""
    chosen = sorted(sorted(numbers, key=lambda n: abs(n - near))[:SHOWN])
    *most, last = map(str, chosen)
    return f"{', '.join(most)} or {last}" if most else last


def check_divides(config: Config, processes: int) -> None:
    """Raise `UserError` where the processes cannot share a step's sequences evenly, in whole micro-batches."""
    batch, micro = config.train.batch_size, config.train.micro_batch_size
    if batch % processes:
        below, above = batch // processes * processes, -(-batch // processes) * processes
        sizes = _listed([n for n in (below, above) if n], batch)
        raise UserError(
            f"train.batch_size={batch}: {processes} processes cannot share it evenly; start "
            f"{_listed(divisors(batch, batch), processes)} processes, or give train.batch_size={sizes}"
        )
    share = batch // processes
    if micro is not None and share % micro:
        counts = [n for n in divisors(batch, batch) if batch // n % micro == 0]
        raise UserError(
            f"train.micro_batch_size={micro}: does not divide the {share} sequences that each of the {processes} "
            f"processes has of train.batch_size={batch}; give {_listed(divisors(share, share), micro)}, or start "
            f"{_listed(counts, processes)} processes"
        )


def check_sharding(config: Config, device: str, processes: int) -> None:
    """Raise `UserError` for what a sharded model cannot do on a device.

    On a GPU its micro-batch would have to be found by running out of memory. For a CPU, torch 2.13 writes C++ that
    does not compile where weights are in BF16.
    """
    train = config.train
    if train.parallel == "ddp" or processes == 1:
        return
    if device == "cuda" and not train.micro_batch_size:
        raise UserError(
            f"train.micro_batch_size: train.parallel={train.parallel} does not find it by itself on GPUs; give it"
        )
    if device == "cpu" and train.compile and config.precision != "fp32":
        raise UserError(
            f"train.compile=true: with train.parallel={train.parallel} on CPUs it needs precision=fp32; leave it out"
        )


def check_restarts(config: Config, environment: Mapping[str, str]) -> None:
    """Raise `UserError` where torchrun would start the run again under another name than it was begun under."""
    if environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and UNNAMED.fullmatch(config.run_dir):
        raise UserError(
            "run_dir: give it with torchrun's --max-restarts, so that a restart finds the run and goes on"
        )


def agreed(config: Config) -> Config:
    """Return the config that all processes have. Raises `UserError` in one whose config is not the first one's."""
    mine = flat(asdict(config))
    first: dict[str, Any] = collectives.broadcast_object(lambda: mine)
    if UNNAMED.fullmatch(config.run_dir) and UNNAMED.fullmatch(first["run_dir"]):
        mine = mine | {"run_dir": first["run_dir"]}
    if differing := sorted(key for key in mine.keys() | first.keys() if mine.get(key) != first.get(key)):
        listed = "; ".join(f"{key} (here {mine.get(key)}, there {first.get(key)})" for key in differing)
        raise UserError(
            f"{redacted(listed)}: the processes of one run must have the same config; this one differs from process 0"
        )
    collectives.largest(0)  # nobody goes on before all have compared
    return replace(config, run_dir=mine["run_dir"])
