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
from tests.training.test_distributed import Processes, assert_close
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
    words = [*TINY, f"init={tmp_path / 'first'}@step9", "anchor.l2=50", "anchor.kl=0.5", "max_lr=3e-3"]
    train(make_config(*words, f"run_dir={tmp_path / 'whole'}"))
    for more, code in ((["max_hours=1e-6"], 75), ([], 0)):
        done = Command(["train", *words, *more, f"run_dir={tmp_path / 'cut'}"], tmp_path / "said", cwd=tmp_path)
        assert done.wait() == code, done.output
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_the_heavier_the_teacher_the_nearer_its_predictions(small: Small, tmp_path: Path) -> None:
    apart, forgot = [], []
    for kl in (0, 1e-6, 1, 10):
        path = tmp_path / str(kl)
        train(small("init=builtin", "max_lr=3e-3", "warmup=0", f"anchor.kl={kl}", f"run_dir={path}"))
        run = open_run(path)
        assert ("anchor/kl" in run.metrics.columns) == bool(kl)
        forgot.append(run.loss("upstream")[1][-1] - run.loss("upstream")[1][0])
        apart.append(run.metrics.curve("anchor/kl")[1])
    assert apart[1][0] == pytest.approx(0, abs=1e-4), "the first update is computed with the start's own weights"
    assert apart[1][-1] > apart[2][-1] > apart[3][-1] > 0
    assert forgot[0] == pytest.approx(forgot[1], abs=1e-3)
    assert forgot[1] > forgot[2] > forgot[3]


def test_several_processes_have_the_divergence_of_one(tmp_path: Path) -> None:
    first = tmp_path / "first"
    Processes(1, first, "max_lr=3e-3").finish()
    words = (f"init={first}@step9", "anchor.kl=2", "max_lr=3e-3")
    for count in (1, 2):
        Processes(count, tmp_path / str(count), *words).finish()
    assert_close(tmp_path / "2", tmp_path / "1")
    assert open_run(tmp_path / "1").metrics["anchor/kl"][-1] > 1e-4


def test_what_cannot_be_is_refused() -> None:
    refused: dict[str, tuple[tuple[str, ...], ...]] = {
        "l2": (("anchor.l2=2e3", "max_lr=1e-3"), ("anchor.l2=1", "train.parallel=fsdp"), ("anchor.l2=-1",)),
        "kl": (("anchor.kl=1", "init=scratch"), ("anchor.kl=1", "train.parallel=hsdp"), ("anchor.kl=-1",)),
    }
    for key, given in refused.items():
        for words in given:
            with pytest.raises(UserError, match=rf"anchor\.{key}="):
                make_config(*words)
