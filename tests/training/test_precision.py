from __future__ import annotations

import numpy as np
import pytest
import torch

from rewarm.config.schema import ScalerConfig
from rewarm.errors import UserError
from rewarm.training.precision import LossScaler, resolve_device, resolve_precision

CPU = torch.device("cpu")


class Reference:
    """Dynamic loss scaling as GPT-NeoX's engine documents it, in plain Python."""

    def __init__(self, c: ScalerConfig) -> None:
        self.c, self.scale, self.good, self.hysteresis = c, c.init_scale, 0, c.hysteresis

    def update(self, overflow: bool) -> None:  # noqa: FBT001
        if overflow:
            self.good = 0
            self.hysteresis -= 1
            if self.hysteresis <= 0:
                self.scale = max(self.scale / 2, self.c.min_scale)
            return
        self.good += 1
        if self.good == self.c.growth_interval:
            self.good, self.hysteresis = 0, self.c.hysteresis
            self.scale *= 2


@pytest.mark.parametrize("hysteresis", [1, 2, 3])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_the_scale_follows_the_reference(hysteresis: int, share: float) -> None:
    config = ScalerConfig(init_scale=256.0, growth_interval=10, hysteresis=hysteresis, min_scale=2.0)
    scaler, reference = LossScaler(config, CPU, dynamic=True), Reference(config)
    overflows = np.random.default_rng(hysteresis).random(500) < share
    for overflow in overflows:
        scaler.update(torch.tensor(float(overflow)))
        reference.update(bool(overflow))
        assert scaler.scale.item() == reference.scale
    assert scaler.skipped.item() == overflows.sum()


def test_without_scaling_only_the_counts_move() -> None:
    scaler = LossScaler(ScalerConfig(), CPU, dynamic=False)
    for overflow in (0.0, 1.0, 1.0):
        scaler.update(torch.tensor(overflow))
    assert (scaler.scale.item(), scaler.skipped.item(), scaler.skipped_in_a_row.item()) == (1.0, 2, 2)
    scaler.update(torch.tensor(0.0))
    assert (scaler.skipped.item(), scaler.skipped_in_a_row.item()) == (2, 0)


def test_a_scaler_continues_from_its_state() -> None:
    config = ScalerConfig(init_scale=64.0, growth_interval=4)
    straight, first = (LossScaler(config, CPU, dynamic=True) for _ in range(2))
    overflows = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    for overflow in overflows:
        straight.update(torch.tensor(overflow))
    for overflow in overflows[:5]:
        first.update(torch.tensor(overflow))
    second = LossScaler(config, CPU, dynamic=True)
    second.load_state_dict(first.state_dict())
    for overflow in overflows[5:]:
        second.update(torch.tensor(overflow))
    assert second.state_dict() == straight.state_dict()


def test_a_scale_of_earlier_versions_starts_again_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """They multiplied the mean of a whole batch: 2^14 of 2.3M tokens is 0.007 a token, which loses gradients."""
    old, scaler = (LossScaler(ScalerConfig(growth_interval=2), CPU, dynamic=True) for _ in range(2))
    for overflow in (0.0, 0.0, 1.0, 0.0):
        old.update(torch.tensor(overflow))
    state = old.state_dict()
    assert state.pop("tokens") == 8192
    scaler.load_state_dict(state)
    assert "8192 is an earlier version's, on the mean loss of a whole batch" in caplog.text
    assert (scaler.scale.item(), scaler.finite_steps.item(), scaler.patience.item()) == (4096.0, 0, 2)
    assert scaler.skipped.item() == 1
    caplog.clear()
    unscaled = LossScaler(ScalerConfig(), CPU, dynamic=False)
    unscaled.load_state_dict(state | {"scale": torch.tensor(1.0)})
    assert not caplog.text
    assert unscaled.scale.item() == 1.0


def test_devices_and_precisions_that_are_not_there_are_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device=cuda: there is none on this machine"):
            resolve_device("cuda")
    assert resolve_device("cpu") == CPU


def test_fp16_on_a_cpu_works_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_precision("fp16", CPU).scales
    assert "slow on a CPU" in caplog.text
    assert resolve_precision("auto", CPU).name in ("bf16", "fp32")
    assert resolve_precision("auto", torch.device("cuda")).name == "fp16"
