"""Infinities and NaNs in loss and evaluation, and what is left when a run stops for them.

Infinite gradients are looked at step by step in `test_loop.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import rewarm.training.run
from rewarm.config.schema import Config
from rewarm.errors import DivergedError
from rewarm.runs.metrics import Metrics
from rewarm.runs.run import open_run
from rewarm.runs.summary import summarize, table
from rewarm.training.checkpoints import folder as checkpoints
from rewarm.training.loop import Loop
from tests.training.conftest import Build, run

Small = Callable[..., Config]
TINY = ("model.hidden_size=32", "model.layers=1", "model.heads=2", "model.intermediate_size=64", "train.log_every=5")


def poison_logits(model: nn.Module, value: float, when: Callable[[nn.Module], bool]) -> None:
    """Make the hidden states under the logits `value` in the forward passes for which `when` holds."""

    def hook(module: nn.Module, _: object, output: Any) -> Any:
        if when(module):
            output.last_hidden_state = output.last_hidden_state * value
        return output

    model.base_model.register_forward_hook(hook)  # type: ignore[operator,union-attr]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_loss_is_skipped_and_counted_with_a_scaler(small: Small, make_loop: Build, value: float) -> None:
    loop, rows = make_loop(small(*TINY, "precision=fp16", "train.batch_size=2", "budget=640"))
    poison_logits(loop.state.model, value, lambda m: m.training and loop.state.step + 1 in (2, 3))
    run(loop, rows)
    assert rows[-1]["skipped"] == 2.0
    assert rows[-1]["loss_scale"] == 2048.0
    assert all(math.isfinite(row["train/loss"]) for row in rows if "train/loss" in row)
    assert all(p.isfinite().all() for p in loop.state.model.parameters())


def test_a_bad_loss_between_two_lines_of_metrics_stops_a_run_without_scaler(small: Small, make_loop: Build) -> None:
    loop, _ = make_loop(small(*TINY))
    poison_logits(loop.state.model, math.nan, lambda m: m.training and loop.state.step + 1 == 2)
    with pytest.raises(DivergedError, match=r"stopped at step 5: 1 non-finite steps .*lr 0\.000\d+, loss scale 1\)"):
        run(loop)


def test_what_is_saved_is_from_before_the_bad_step(
    small: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = small(*TINY, "init=scratch", "checkpoint.every=2", "train.log_every=10", "evaluation.every=10")

    class Poisoned(Loop):
        def __post_init__(self) -> None:
            super().__post_init__()
            poison_logits(self.state.model, math.nan, lambda m: m.training and self.state.step + 1 == 5)

    monkeypatch.setattr(rewarm.training.run, "Loop", Poisoned)
    for _ in range(2):  # again from the last checkpoint
        with pytest.raises(DivergedError, match="stopped at step 6"):
            rewarm.training.run.run(config)
        assert checkpoints.latest(tmp_path / "run/checkpoints") == tmp_path / "run/checkpoints/step-4"
    monkeypatch.undo()
    rewarm.training.run.run(config)
    assert open_run(tmp_path / "run").finished


def logged(rows: Sequence[Mapping[str, float]]) -> Metrics:
    """Return lines of metrics as the columns that a run's reader gives."""
    names = dict.fromkeys(name for row in rows for name in row)
    return Metrics({name: np.array([row.get(name, math.nan) for row in rows]) for name in names})


def test_a_bad_evaluation_is_logged_and_training_goes_on(
    small: Small, make_loop: Build, caplog: pytest.LogCaptureFixture
) -> None:
    loop, rows = make_loop(small(*TINY))
    poison_logits(loop.state.model, math.nan, lambda m: not m.training and loop.state.step == 5)
    with caplog.at_level(logging.WARNING):
        run(loop, rows)
    assert "upstream loss is nan at step 5" in caplog.text
    at_5 = next(row for row in rows if row["step"] == 5)
    assert math.isnan(at_5["upstream/loss"])
    assert math.isnan(at_5["downstream/ppl"])
    assert rows[-1]["step"] == 10
    assert math.isfinite(summarize(logged(rows))["upstream"]["peak"])


def test_evaluations_that_were_never_finite_still_give_a_summary() -> None:
    rows = [{"step": s, "tokens": s, "upstream/loss": math.nan, "downstream/loss": math.inf} for s in (0, 1)]
    summary = summarize(logged(rows))
    assert summary["upstream"]["final"] is None
    assert "-" in table(Path("x"), summary)
