"""How many sequences go through the model at once: the largest divisor of the batch that fits.

The numbers of a run depend on it only through rounding, but its speed depends on it a lot.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rewarm.config.schema import Config
from rewarm.errors import RewarmError, first_line
from rewarm.model.losses import TokenLoss
from rewarm.storage import cache_dir, write_durably
from rewarm.training.distributed import world
from rewarm.training.precision import Precision

log = logging.getLogger(__name__)

CPU_TOKENS_AT_ONCE = 8192
"""More is no faster on a CPU, whose caches hold less than that."""
GPU_TOKENS_AT_ONCE = 65536
"""More is no faster on a GPU, which far fewer tokens keep busy."""
HEADROOM = 0.05
"""The share of a device's memory that is left alone: its allocator needs room to move."""


def divisors(batch_size: int, most: int) -> list[int]:
    """Return the divisors of `batch_size` up to `most` (at least 1), ascending."""
    return [n for n in range(1, max(1, most) + 1) if batch_size % n == 0]


def largest_that_fits(candidates: list[int], fits: Callable[[int], bool]) -> int:
    """Return the largest of ascending `candidates` that fits, trying few; the first where none does."""
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if fits(candidates[middle]):
            low = middle
        else:
            high = middle - 1
    return candidates[low]


def next_smaller(batch_size: int, micro_batch_size: int) -> int | None:
    """Return the next smaller divisor of the batch, of half the size or less; None after 1."""
    return divisors(batch_size, micro_batch_size // 2)[-1] if micro_batch_size > 1 else None


def too_large(context: int, micro_batch_size: int, batch_size: int, error: Exception) -> RewarmError:
    """Return the error for a micro-batch that the device has no memory for after all; it says what may fit."""
    smaller = next_smaller(batch_size, micro_batch_size)
    if smaller is None:
        return RewarmError(
            f"train.context={context}: not even one sequence fits the device's memory; give a shorter context or a "
            f"smaller model ({first_line(error)})"
        )
    return RewarmError(
        f"train.micro_batch_size={micro_batch_size}: does not fit the device's memory; the same command goes on with "
        f"train.micro_batch_size={smaller}"
    )


def choose(config: Config, token_loss: TokenLoss, precision: Precision) -> int:
    """Return the micro-batch that suits the device.

    On CUDA it is found by trying, once for each model, context, precision and kind of device, and remembered in the
    cache.
    """
    batch_size, context = len(world.share(config.train.batch_size)), config.train.context
    if precision.device.type != "cuda":
        return divisors(batch_size, CPU_TOKENS_AT_ONCE // context)[-1]
    key, path = _key(config, token_loss, precision), cache_dir() / "micro_batch.json"
    remembered = _read(path)
    if key not in remembered:
        candidates = divisors(batch_size, GPU_TOKENS_AT_ONCE // context)
        remembered[key] = largest_that_fits(candidates, lambda n: _fits(token_loss, precision, n, context))
        log.info("micro-batch: %d sequences at once fit this device; remembered in %s", remembered[key], path)
        _remember(path, remembered)
    return remembered[key]


def _key(config: Config, token_loss: TokenLoss, precision: Precision) -> str:
    shapes = [list(p.shape) for p in token_loss.parameters()]
    device = torch.cuda.get_device_properties(precision.device)
    sizes = (len(world.share(config.train.batch_size)), config.train.context)
    parts = (shapes, *sizes, precision.name, device.name, device.total_memory)
    return hashlib.sha256(json.dumps([*parts, torch.__version__]).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, int]:
    try:
        found: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or spoilt: found again
        return {}
    return found


def _remember(path: Path, found: dict[str, int]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, json.dumps(found, indent=1).encode())
    except OSError as error:  # it only saves the next run a few seconds
        log.warning("%s: cannot be written (%s)", path, error.strerror)


def _fits(token_loss: TokenLoss, precision: Precision, n: int, context: int) -> bool:
    """Return whether `n` sequences go forward and backward beside the optimizer's state, with room to spare."""
    device = precision.device
    moments = 8 * sum(p.numel() for p in token_loss.parameters())
    spare = int(HEADROOM * torch.cuda.get_device_properties(device).total_memory)
    held: list[Any] = []
    fits = True
    try:
        held.append(torch.empty(moments + spare, dtype=torch.uint8, device=device))
        windows = torch.zeros(n, context + 1, dtype=torch.int64, device=device)
        with precision.autocast():
            loss = token_loss(windows, torch.zeros((), device=device))
        loss.backward()
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        fits = False
    token_loss.zero_grad(set_to_none=True)
    held.clear()
    gc.collect()  # the traceback of an out-of-memory error holds activations
    torch.cuda.empty_cache()
    return fits
