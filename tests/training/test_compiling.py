"""Compiling: when, and that it changes nothing but the speed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rewarm.config import Config
from rewarm.training.compiling import PAYS_FROM, compile_model, compiles
from tests.conftest import make_config
from tests.training.conftest import Build
from tests.training.test_loop import TINY, losses

Small = Callable[..., Config]
CPU = torch.device("cpu")


def test_only_runs_that_are_long_enough_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "g++" else None)
    assert compiles(config, CPU, PAYS_FROM["cpu"])
    assert not compiles(config, CPU, PAYS_FROM["cpu"] / 2)
    assert not compiles(config, CPU, None)
    assert compiles(make_config("train.compile=true"), CPU, 1.0)
    assert not compiles(make_config("train.compile=false"), CPU, 1e30)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert not compiles(config, CPU, 1e30), "without a C++ compiler there is nothing to compile with"


def test_the_model_compiles_without_a_graph_break(small: Small, make_loop: Build) -> None:
    loop, _ = make_loop(small(*TINY))
    base: Any = loop.state.model.base_model
    windows = torch.from_numpy(loop.data.batches[1])
    whole = torch.compile(base, dynamic=False, fullgraph=True, backend="aot_eager")
    compiled = whole(input_ids=windows[:, :-1], use_cache=False).last_hidden_state
    torch.testing.assert_close(compiled, base(input_ids=windows[:, :-1], use_cache=False).last_hidden_state)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch of its own code
@pytest.mark.skipif("REWARM_SOAK" not in os.environ, reason="takes half a minute; REWARM_SOAK=1 runs it")
def test_a_compiled_run_gives_the_losses_of_a_plain_one(
    small: Small, make_loop: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    runs = {}
    for compiled in (False, True):
        loop, rows = make_loop(small(*TINY, "model.layers=1", "max_lr=3e-3"))
        if compiled:
            before = [name for name, _ in loop.state.model.named_parameters()]
            compile_model(loop.state.model)
            assert [name for name, _ in loop.state.model.named_parameters()] == before
        loop.run()
        runs[compiled] = losses(rows)
    assert list(tmp_path.rglob("*.so")), "nothing was compiled"
    assert runs[True] == pytest.approx(runs[False], rel=1e-5)
