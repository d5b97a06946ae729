from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rewarm.config.schema import Config
from rewarm.errors import DivergedError
from rewarm.model.losses import cross_entropy
from rewarm.schedules import lr
from rewarm.training.checkpoints.saving import Saver
from rewarm.training.checkpoints.snapshot import Snapshot
from rewarm.training.evaluation import evaluate
from rewarm.training.loop import Loop, train
from rewarm.training.profiling import StepProfiler
from rewarm.training.signals import StopRequest
from tests.training.conftest import Build, Rows, run
from tests.training.killing import assert_equal_trees

Small = Callable[..., Config]
TINY = ("model.hidden_size=32", "model.layers=2", "model.heads=2", "model.intermediate_size=64")


def losses(rows: list[dict[str, float]]) -> list[float]:
    return [row["train/loss"] for row in rows if "train/loss" in row]


def test_losses_equal_the_golden_ones(small: Small, make_loop: Build, assets: Path) -> None:
    """The file is made anew, where a change of the numbers is meant, with `scripts/make-golden-losses`."""
    loop, rows = make_loop(small("replay=0.25", "max_lr=3e-3"))
    run(loop, rows)
    path = assets / "golden_losses.json"
    if os.environ.get("REWARM_MAKE_GOLDEN"):
        keys = ("train/loss", "grad_norm", "upstream/loss", "downstream/loss", "downstream/domain/code/loss")
        path.write_text(json.dumps({k: [r[k] for r in rows if k in r] for k in keys}, indent=1) + "\n")
    golden = json.loads(path.read_text())
    for key, expected in golden.items():
        assert [row[key] for row in rows if key in row] == pytest.approx(expected, rel=2e-5), key


def test_the_same_seed_gives_the_same_losses_and_another_does_not(small: Small, make_loop: Build) -> None:
    runs = []
    for seed in (0, 0, 1):
        loop, rows = make_loop(small(f"seed={seed}"))
        run(loop, rows)
        runs.append(losses(rows))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_micro_batches_give_the_gradient_of_the_whole_batch(small: Small, make_loop: Build) -> None:
    whole, rows = make_loop(small())
    parts, part_rows = make_loop(small("train.micro_batch_size=1"))
    run(whole, rows)
    run(parts, part_rows)
    assert losses(part_rows) == pytest.approx(losses(rows), rel=1e-5)


def test_every_update_uses_the_schedules_lr(small: Small, make_loop: Build) -> None:
    loop, rows = make_loop(small("schedule=wsd", "warmup=0.3"))
    run(loop, rows)
    logged = {row["step"]: row["lr"] for row in rows if "lr" in row}
    assert logged == {step: lr(loop.plan.schedule, step) for step in range(1, 11)}


def test_a_step_equals_plain_clip_and_adamw(small: Small, make_loop: Build) -> None:
    loop, _ = make_loop(small("optimizer.clip=0.05"))
    other, _ = make_loop(small())
    model, plan = other.state.model, loop.plan
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for step in range(1, 4):
        loop.update(loop.forward_backward())
        for group in reference.param_groups:
            group["lr"] = lr(plan.schedule, step)
        windows = torch.from_numpy(other.data.batches[step])
        logits = model(input_ids=windows[:, :-1]).logits
        cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        assert norm > 0.05, "the clip must be at work"
        reference.step()
        reference.zero_grad()
    for ours, theirs in zip(loop.state.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=5e-6)


def test_fp16_with_its_scaler_follows_fp32(small: Small, make_loop: Build) -> None:
    runs = {}
    for precision in ("fp32", "fp16"):
        loop, rows = make_loop(small(*TINY, f"precision={precision}", "train.batch_size=2", "budget=640"))
        run(loop, rows)
        runs[precision] = losses(rows)
        assert [row["skipped"] for row in rows if "skipped" in row] == [0.0] * 10
    assert runs["fp16"] == pytest.approx(runs["fp32"], rel=2e-3)
    assert runs["fp16"] != runs["fp32"]


def first_gradient(loop: Loop, tokens_per_step: int) -> list[torch.Tensor]:
    """Return the gradient of the first update, as if the rest of a step of so many tokens had none."""
    loop.plan = replace(loop.plan, tokens_per_step=tokens_per_step)
    found: list[torch.Tensor] = []
    loop.state.optimizer.register_step_pre_hook(
        lambda o, *_: found.extend(p.grad / o.grad_scale for group in o.param_groups for p in group["params"])
    )
    loop.update(loop.forward_backward())
    return found


def test_fp16_gradients_are_fp32s_whatever_the_batch(small: Small, make_loop: Build) -> None:
    """From the first step on: what a micro-batch gives does not depend on how many others a step has."""
    options = (*TINY, "optimizer.clip=1e6", "train.batch_size=2", "budget=640")
    sizes = {"fp32": 2**12, "fp16": 2**12, "fp16 at 4M": 2**22}
    exact, half, in_large = (
        [g * size for g in first_gradient(make_loop(small(*options, f"precision={name[:4]}"))[0], size)]
        for name, size in sizes.items()
    )
    errors, norms = [(a - b).norm() for a, b in zip(half, exact, strict=True)], [g.norm() for g in exact]
    assert torch.stack(errors).norm() < 0.002 * torch.stack(norms).norm()
    assert all(error < 0.01 * norm for error, norm in zip(errors, norms, strict=True))
    for large, of_few in zip(in_large, half, strict=True):
        torch.testing.assert_close(large, of_few, rtol=1e-6, atol=0)


def test_evaluation_comes_before_the_first_step_and_at_the_end(small: Small, make_loop: Build) -> None:
    loop, rows = make_loop(small())
    start = evaluate(loop.token_loss, loop.data.upstream, loop.precision, None)["loss"]
    run(loop, rows)
    evaluated = [row["step"] for row in rows if "upstream/loss" in row]
    assert evaluated == [0, 5, 10]
    assert rows[0]["upstream/loss"] == start
    assert rows[0]["upstream/ppl"] == pytest.approx(math.exp(start))
    assert set(rows[0]) >= {"downstream/bpb", "upstream/domain/prose/loss", "downstream/domain/code/loss"}


def poison(loop: object, steps: set[int]) -> None:
    """Make the gradients of these steps infinite."""
    model = loop.state.model  # type: ignore[attr-defined]
    weight = next(model.parameters())
    weight.register_hook(
        lambda g: torch.full_like(g, math.inf) if loop.state.step + 1 in steps else g  # type: ignore[attr-defined]
    )


def test_a_step_with_infinite_gradients_changes_nothing_and_is_counted(small: Small, make_loop: Build) -> None:
    loop, rows = make_loop(small(*TINY, "precision=fp16", "train.batch_size=2", "budget=640"))
    poison(loop, {3, 4})
    for _ in range(2):
        loop.update(loop.forward_backward())
    before = [p.detach().clone() for p in loop.state.model.parameters()]
    moments = {k: v["exp_avg"].clone() for k, v in loop.state.optimizer.state_dict()["state"].items()}
    loop.update(loop.forward_backward())
    assert all(torch.equal(p, b) for p, b in zip(loop.state.model.parameters(), before, strict=True))
    state = loop.state.optimizer.state_dict()["state"]
    assert all(torch.equal(state[k]["exp_avg"], m) for k, m in moments.items())
    assert {v["step"].item() for v in state.values()} == {2.0}, "only applied updates count for AdamW"
    assert loop.state.scaler.scale.item() == 4096.0, "hysteresis lets the first overflow pass"
    run(loop, rows)
    assert loop.state.scaler.scale.item() == 2048.0
    assert rows[-1]["skipped"] == 2.0
    assert rows[-1]["lr"] == lr(loop.plan.schedule, 10), "the LR follows attempted steps"


def test_too_many_infinite_steps_in_a_row_stop_the_run(small: Small, make_loop: Build) -> None:
    loop, _ = make_loop(small(*TINY, "precision=fp16", "train.batch_size=2", "budget=640", "train.max_bad_steps=3"))
    poison(loop, set(range(4, 11)))
    with pytest.raises(
        DivergedError, match=r"stopped at step 6: 3 non-finite steps in a row \(lr .*, loss scale 1024"
    ):
        run(loop)


def test_without_a_scaler_one_infinite_step_stops_the_run(small: Small, make_loop: Build) -> None:
    loop, _ = make_loop(small())
    poison(loop, {7})
    with pytest.raises(DivergedError, match="stopped at step 7: 1 non-finite steps in a row"):
        run(loop)
    assert all(p.isfinite().all() for p in loop.state.model.parameters())


class Watching(Saver):
    """Notes at which steps the loop waits, and that nothing of a state that was saved has changed by then."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.saved = Snapshot.view(loop.state).copy()
        self.waited: list[int] = []

    def save(self) -> None:
        self.saved = Snapshot.view(self._loop.state).copy()

    def wait_for_copy(self) -> None:
        now = Snapshot.view(self._loop.state)
        assert_equal_trees(dict(now.weights), dict(self.saved.weights))
        assert_equal_trees(now.state, self.saved.state)
        self.waited.append(now.step)


def test_nothing_that_a_save_may_be_copying_changes_before_it_is_copied(small: Small, make_loop: Build) -> None:
    loop, rows = make_loop(small("checkpoint.every=1", "budget=768"))
    saver = Watching(loop)
    train(loop, Rows(rows), saver, StopRequest(), StepProfiler(None, 0))
    assert saver.waited == list(range(len(saver.waited)))
    assert saver.saved.step == loop.state.step == len(saver.waited) > 1


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_no_update_waits_for_the_gpu(precision: str, small: Small, make_loop: Build) -> None:
    loop, _ = make_loop(small(*TINY, "device=cuda", f"precision={precision}", "train.micro_batch_size=2"))
    loop.update(loop.forward_backward())  # the first one allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            loop.update(loop.forward_backward())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack([p.detach().sum() for p in loop.state.model.parameters()])).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fp16_on_a_gpu_gives_nearly_the_losses_of_fp32(small: Small, make_loop: Build) -> None:
    found = []
    for precision in ("fp16", "fp32"):
        loop, rows = make_loop(small(*TINY, "device=cuda", f"precision={precision}"))
        run(loop, rows)
        found.append(losses(rows))
    assert found[0] == pytest.approx(found[1], rel=2e-3)
