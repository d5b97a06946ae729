"""A run that begins as another is, to the last bit, the run made alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.config.schema import Config
from rewarm.errors import DataError
from rewarm.runs.fork import fork, last_shared
from rewarm.runs.run import open_run
from rewarm.training.run import run as train
from tests.training.killing import assert_same

Build = Callable[..., Config]


KINDS = {
    "fp32": ("precision=fp32", "replay=0.25", "seed=3"),
    "bf16": ("precision=bf16",),
    "fp16": ("precision=fp16", "scaler.growth_interval=2"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_is_the_run_made_alone(small: Build, tmp_path: Path, kind: str) -> None:
    tiny = (
        *("model.hidden_size=16", "model.heads=2", "model.layers=2", "model.intermediate_size=32", "init=scratch"),
        *("train.batch_size=2", "budget=640", "schedule=wsd", "warmup=0.2", "train.log_every=3"),
    )

    def arm(name: str, *more: str) -> Config:
        return small(*tiny, *KINDS[kind], f"run_dir={tmp_path / name}", *more)

    train(arm("trunk", "schedule.decay_fraction=0.2", "checkpoint.every=7", "checkpoint.keep=0"))
    later = ("schedule.decay_fraction=0.3", "checkpoint.keep=1")
    alone, forked = arm("alone", *later), arm("forked", *later)
    train(alone)
    trunk = open_run(tmp_path / "trunk")
    step = last_shared(trunk, forked)
    assert step == 7, "that of the trunk's save, which lies within an interval of three logged updates"
    fork(trunk, step, forked, tmp_path / "forked")
    begun = open_run(tmp_path / "forked")
    assert begun.manifest.forked
    assert (begun.manifest.forked.run, begun.manifest.forked.step) == (str(tmp_path / "trunk"), 7)
    shutil.rmtree(tmp_path / "trunk")  # it is needed no more
    train(forked)
    assert_same(tmp_path / "alone", tmp_path / "forked")
    assert open_run(tmp_path / "forked").manifest.forked == begun.manifest.forked


def test_what_is_not_the_run_of_its_config_is_no_beginning(small: Build, tmp_path: Path) -> None:
    config = small(f"run_dir={tmp_path / 'run'}")
    train(config)
    made = open_run(tmp_path / "run")
    other = small("max_lr=2e-3", f"run_dir={tmp_path / 'other'}")
    assert last_shared(made, other) is None
    assert last_shared(made, config) == 10
    with pytest.raises(DataError, match="holds something already"):
        fork(made, 10, config, tmp_path / "run")
    train(small(f"run_dir={tmp_path / 'run'}", "budget=1536", "extend=true"))
    assert last_shared(open_run(tmp_path / "run"), config) is None
