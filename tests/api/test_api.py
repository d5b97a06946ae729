"""The Python API: our learning rates, our run folder from a Trainer of transformers, our runs as a table."""

from __future__ import annotations

import doctest
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import rewarm
from rewarm.commands.eval import evaluate
from rewarm.commands.forecast import forecast
from rewarm.commands.report import report
from rewarm.errors import UserError
from rewarm.model.init import resolve_init
from rewarm.runs.run import open_run
from rewarm.training.run import run as train
from tests.conftest import ROOT

SPEC = rewarm.ScheduleSpec("cosine", max_lr=1e-3, min_lr=1e-4, warmup_steps=3, total_steps=12)


def test_every_name_is_there_and_no_other() -> None:
    assert all(getattr(rewarm, name) is not None for name in rewarm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lrs'"):
        rewarm.lrs  # noqa: B018


def test_the_examples_of_the_page_are_right() -> None:
    failed, tried = doctest.testfile(str(ROOT / "docs" / "api.md"), module_relative=False)
    assert tried >= 8
    assert not failed


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=1.0)


def test_a_loop_of_ones_own_gets_our_learning_rates() -> None:
    ours = optimizer(1e-3, 5e-4)
    scheduler = rewarm.LRScheduler(ours, SPEC)
    seen = []
    for step in range(1, 13):
        if step == 6:  # goes on in another process
            state = scheduler.state_dict()
            ours = optimizer(1e-3, 5e-4)
            scheduler = rewarm.LRScheduler(ours, SPEC)
            scheduler.load_state_dict(state)
            for group, rate in zip(ours.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate
        seen.append([group["lr"] for group in ours.param_groups])
        ours.step()
        scheduler.step()
    assert [first for first, _ in seen] == [rewarm.lr(SPEC, step) for step in range(1, 13)]
    assert all(second == pytest.approx(first / 2) for first, second in seen)


class Sequences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 200

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 4096, (32,), generator=torch.Generator().manual_seed(number))
        return {"input_ids": tokens, "labels": tokens}


OVERRIDES = ("model=tiny", "train.context=32", "data.validation_tokens=512", "evaluation.every=2")


def trainer(place: Path, name: str, *, ours: bool, steps: int = 12) -> Trainer:
    model = AutoModelForCausalLM.from_pretrained(resolve_init("builtin").folder, dtype=torch.float32)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    arguments = TrainingArguments(
        str(place / "theirs"), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=steps,
        logging_steps=4, save_steps=6, report_to=[], use_cpu=True, disable_tqdm=True, warmup_steps=3,
    )  # fmt: skip
    callback = rewarm.Callback(str(place / name), SPEC, *OVERRIDES)
    schedule = (adam, rewarm.LRScheduler(adam, SPEC)) if ours else (None, None)
    return Trainer(model, arguments, train_dataset=Sequences(), callbacks=[callback], optimizers=schedule)


def test_a_trainer_of_transformers_makes_a_run_that_all_verbs_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate", reason="the Trainer needs it")
    trainer(tmp_path, "run", ours=True).train()
    run = open_run(tmp_path / "run")
    assert run.finished
    assert run.damage is None
    assert run.other_lr is None
    assert (run.plan.steps, run.plan.tokens_per_step) == (12, 4 * 32)
    assert run.metrics["lr"][1:].tolist() == [rewarm.lr(SPEC, step) for step in range(1, 13)]
    # Its model has transformers' own attention, which rounds in another order.
    for init, number in (("builtin", 0), (tmp_path / "theirs" / "checkpoint-12", -1)):
        capsys.readouterr()
        evaluate([f"init={init}", *OVERRIDES[1:3], "precision=fp32"])
        scores = dict(line.split() for line in capsys.readouterr().out.splitlines())
        for side in ("upstream", "downstream"):
            assert run.loss(side)[1][number] == pytest.approx(float(scores[f"{side}/loss"]), rel=1e-6)
    report([str(tmp_path / "run")])
    forecast([str(tmp_path / "run"), "law=single"])
    assert "run" in capsys.readouterr().out
    # It goes on from a checkpoint of the Trainer's in the same folder, with the same numbers.
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    trainer(tmp_path, "run", ours=True).train(resume_from_checkpoint=str(tmp_path / "theirs" / "checkpoint-6"))
    after = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert len(after.splitlines()) == len(before.splitlines())
    assert after.splitlines()[:6] == before.splitlines()[:6]
    with pytest.raises(UserError, match="holds a run already"):
        trainer(tmp_path, "run", ours=True).train()


def test_a_schedule_that_is_not_followed_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("accelerate", reason="the Trainer needs it")
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, "run", ours=False, steps=4).train()
    assert "update 1 had the learning rate 0, and the schedule says 0.000333333" in caplog.text
    assert "had the learning rate 0 at step 1" in str(open_run(tmp_path / "run").other_lr)


@pytest.mark.parametrize("missing", ["model", "train.context"])
def test_what_cannot_be_guessed_is_asked_for(missing: str) -> None:
    with pytest.raises(UserError, match=missing):
        rewarm.Callback("x", SPEC, *(word for word in OVERRIDES if not word.startswith(missing)))


def test_runs_are_a_table(small: Callable[..., object], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed in (0, 1):
        train(small(f"seed={seed}", f"run_dir='{tmp_path}/cosine,seed={seed}'"))  # type: ignore[arg-type]
    table = rewarm.read_runs(tmp_path)
    assert set(table["arm"]) == {"cosine"}
    ends = table.groupby("seed")["downstream/loss"].last()
    assert ends[1] == open_run(tmp_path / "cosine,seed=1").loss("downstream")[1][-1]
    assert table["step"].dtype == "int64"
    assert math.isnan(table.loc[table["step"] == 1, "upstream/loss"].iloc[0])
    assert table["finished"].all()
    metrics = tmp_path / "cosine,seed=0" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('{"step": 3', "{{", 1))
    with caplog.at_level(logging.WARNING):
        assert len(rewarm.read_runs(tmp_path)) == len(table) - 1
    assert "line 4 cannot be read" in caplog.text


def test_a_run_without_a_finite_loss_has_a_report(small: Callable[..., object], tmp_path: Path) -> None:
    train(small(f"run_dir={tmp_path / 'run'}"))  # type: ignore[arg-type]
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines[1:]:
        line.update((key, None) for key in line if "stream/" in key)
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run" / "summary.json").unlink()
    report([str(tmp_path / "run")])
    assert (tmp_path / "run" / "report" / "index.html").is_file()
