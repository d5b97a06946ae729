"""Device, precision and loss scaling."""

from __future__ import annotations

import functools
import logging
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from rewarm.config.schema import ScalerConfig
from rewarm.errors import UserError

log = logging.getLogger(__name__)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the first of cuda, mps and cpu that is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, ok in there.items() if ok)
    if not there[name]:
        raise UserError(f"device={name}: there is none on this machine; use device=auto")
    return torch.device(name)


PEAK_TFLOPS = {"H200": 989.4, "H100 PCIe": 756.0, "H100": 989.4, "GH200": 989.4, "A100": 312.0, "L40S": 362.0}
"""Dense products of 16-bit numbers, FP32 sums, in TFLOP/s by what a device's name holds (NVIDIA's data sheets)."""


def peak_flops(given_tflops: float | None, precision: Precision) -> float | None:
    """Return the floating-point operations a second that the device can do at best; None where that is not known."""
    if given_tflops is not None:
        return given_tflops * 1e12
    if precision.device.type != "cuda" or precision.name == "fp32":
        return None
    name = torch.cuda.get_device_name(precision.device)
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)


@functools.cache
def cpu_is_fast_at_bf16() -> bool:
    """Return whether matrix products on this CPU are faster in BF16 than in FP32, by measurement (~20 ms)."""

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(512, 512, dtype=dtype)
        a @ a
        times = []
        for _ in range(5):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)


@dataclass(frozen=True)
class Precision:
    """The type that matrix products run in. Weights, optimizer and losses are FP32 always."""

    name: str
    device: torch.device

    @property
    def scales(self) -> bool:
        """Return whether the loss must be scaled so that gradients do not underflow."""
        return self.name == "fp16"

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the forward pass runs."""
        return torch.autocast(self.device.type, dtype=DTYPES[self.name], enabled=self.name != "fp32")


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Return the precision called `name`; `auto` is FP16 on CUDA, and what is faster of BF16 and FP32 on a CPU."""
    if name == "auto":
        if device.type == "cuda":
            name = "fp16"
        elif device.type == "cpu":
            name = "bf16" if cpu_is_fast_at_bf16() else "fp32"
        else:
            name = "fp32"
    if name == "fp16" and device.type == "cpu":
        log.warning("precision=fp16 is slow on a CPU; precision=auto takes the fastest")
    return Precision(name, device)


SCALED_TOKENS = 8192
"""The loss scale multiplies the mean loss of so many tokens: 4 sequences of 2,048, what each GPU of the paper had."""

SCALING, COUNTS = ("scale", "finite_steps", "patience"), ("skipped", "skipped_in_a_row")


class LossScaler:
    """Dynamic loss scaling that never makes the host wait: its whole state lives on the device.

    Every token's loss is multiplied by `factor`, which depends on the scale alone. So FP16 rounds the same numbers
    whatever the batch, the micro-batch and the number of processes are; the loop makes a mean of their sum in FP32.

    As in GPT-NeoX: the scale doubles after `growth_interval` finite steps in a row; of non-finite ones, the first
    `hysteresis - 1` since the last growth are let pass and the others halve it, down to `min_scale`. The update of
    a non-finite step is skipped whether or not the scale moves. Where the precision needs no scaling (`dynamic` is
    false) the scale stays 1, and only the counting remains.
    """

    def __init__(self, config: ScalerConfig, device: torch.device, *, dynamic: bool) -> None:
        self.dynamic = dynamic
        self._config = config

        def integer(value: int) -> Tensor:
            return torch.tensor(value, dtype=torch.int64, device=device)

        self.scale = torch.tensor(config.init_scale if dynamic else 1.0, dtype=torch.float32, device=device)
        self.finite_steps = integer(0)
        self.patience = integer(config.hysteresis)
        self.skipped = integer(0)
        self.skipped_in_a_row = integer(0)

    @property
    def factor(self) -> Tensor:
        """Return what the loss of each token is multiplied by before its gradient is taken, 0-dim."""
        return self.scale / SCALED_TOKENS

    def update(self, found_inf: Tensor) -> None:
        """Take note of a step whose gradients were non-finite (`found_inf`: 0-dim, 1.0) or finite (0.0)."""
        bad = found_inf > 0
        self.skipped += bad
        self.skipped_in_a_row = torch.where(bad, self.skipped_in_a_row + 1, 0)
        if not self.dynamic:
            return
        c = self._config
        self.patience = torch.where(bad, self.patience - 1, self.patience)
        shrinks = bad & (self.patience <= 0)
        self.finite_steps = torch.where(bad, 0, self.finite_steps + 1)
        grows = self.finite_steps >= c.growth_interval
        smaller = torch.clamp(self.scale / 2, min=c.min_scale)
        self.scale = torch.where(shrinks, smaller, torch.where(grows, self.scale * 2, self.scale))
        self.patience = torch.where(grows, c.hysteresis, self.patience)
        self.finite_steps = torch.where(grows, 0, self.finite_steps)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of the state, by name."""
        return {name: getattr(self, name).clone() for name in (*SCALING, *COUNTS)} | {
            "tokens": torch.tensor(SCALED_TOKENS)
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a state that `state_dict` returned, on this scaler's own device.

        A state without `tokens` is of an earlier version, whose scale multiplied the mean of a whole batch. It was
        too small for large batches, and does not tell how large this one may be: only the counts are kept.
        """
        names: tuple[str, ...] = (*SCALING, *COUNTS)
        if self.dynamic and "tokens" not in state:
            log.warning(
                "loss scale: %g is an earlier version's, on the mean loss of a whole batch; it starts again at %g, "
                "on the mean of %d tokens",
                state["scale"].item(),
                self.scale.item(),
                SCALED_TOKENS,
            )
            names = COUNTS
        for name in names:
            setattr(self, name, state[name].to(self.scale.device).clone())
