"""The pull towards the start: what it does to an update, and that a run goes on with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rewarm.config.schema import Config
from rewarm.errors import UserError
from rewarm.runs.run import open_run
from rewarm.training.anchor import Anchor
from rewarm.training.run import run as train
from tests.conftest import make_config
from tests.training.killing import TINY, Command, assert_same
from tests.training.test_loop import TINY as TINY_SHAPE

Small = Callable[..., Config]
SHAPE = (*TINY_SHAPE, "init=scratch")


def test_a_pull_is_a_share_of_the_way_and_none_after_a_skipped_step() -> None:
    model = torch.nn.Linear(3, 2)
    start = torch.nn.Linear(3, 2)
    anchor = Anchor.of(5.0, model, start)
    before = [p.detach().clone() for p in model.parameters()]
    anchor.pull(0.1, torch.tensor(1.0))
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))
    apart = anchor.distance()
    anchor.pull(0.1, torch.tensor(0.0))
    for p, was, there in zip(model.parameters(), before, start.parameters(), strict=True):
        torch.testing.assert_close(p, was - 0.1 * 5 * (was - there))
    assert anchor.distance() == pytest.approx(apart / 2)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_stronger_the_pull_the_nearer_the_start(small: Small, tmp_path: Path, precision: str) -> None:
    apart = []
    for l2 in (0, 1e-9, 10, 100):
        name = f"run_dir={tmp_path / str(l2)}"
        train(
            small(
                *SHAPE, "max_lr=3e-3", f"anchor.l2={l2}", f"precision={precision}", "train.micro_batch_size=2", name
            )
        )
        metrics = open_run(tmp_path / str(l2)).metrics
        apart.append(metrics["anchor/distance"][-1] if l2 else None)
        assert ("anchor/distance" in metrics.columns) == bool(l2)
    assert apart[1] > 1.05 * apart[2] > 1.5 * apart[3] > 0
    free, barely = (open_run(tmp_path / name).loss("upstream")[1][-1] for name in ("0", "1e-09"))
    assert barely == pytest.approx(free, abs=1e-5)


def test_a_run_that_goes_on_is_pulled_to_the_same_start(tmp_path: Path) -> None:
    train(make_config(*TINY, f"run_dir={tmp_path / 'first'}"))
    words = [*TINY, f"init={tmp_path / 'first'}@step9", "anchor.l2=50", "max_lr=3e-3"]
    train(make_config(*words, f"run_dir={tmp_path / 'whole'}"))
    for more, code in ((["max_hours=1e-6"], 75), ([], 0)):
        done = Command(["train", *words, *more, f"run_dir={tmp_path / 'cut'}"], tmp_path / "said", cwd=tmp_path)
        assert done.wait() == code, done.output
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_what_cannot_be_is_refused() -> None:
    for words in (("anchor.l2=2e3", "max_lr=1e-3"), ("anchor.l2=1", "train.parallel=fsdp"), ("anchor.l2=-1",)):
        with pytest.raises(UserError, match=r"anchor\.l2="):
            make_config(*words)
