"""Compiling: when, and that it changes nothing but the speed."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from rewarm.config.schema import Config
from rewarm.training.compiling import PAYS_FROM, compile_model, compiles
from rewarm.training.recompute import recompute
from tests.conftest import ROOT, SMALL, make_config
from tests.training.conftest import Build, run
from tests.training.killing import metrics
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


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch of its own code
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("kind", ["none", "full", "selective"])
@pytest.mark.parametrize("by_block", [True, False])
def test_few_graphs_are_compiled_whatever_the_number_of_blocks(
    small: Callable[..., Config],
    make_loop: Build,
    kind: str,
    by_block: bool,  # noqa: FBT001
) -> None:
    losses = []
    for compiled in (False, True):
        loop, _ = make_loop(small(*TINY, "model.layers=4", "evaluation.batch_size=3"))
        recompute(loop.state.model, kind)
        graphs = CompileCounterWithBackend("aot_eager")  # type: ignore[no-untyped-call]
        if compiled:
            torch.compiler.reset()
            counters.clear()
            compile_model(loop.token_loss, by_block=by_block, backend=graphs)
        loop.update(loop.forward_backward())
        losses.append(loop.evaluate()["upstream/loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    # Training, evaluation, and the loss; by blocks that are computed again, once more where no block comes before.
    assert graphs.frame_count <= 4
    assert not counters["graph_break"]
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch of its own code
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
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
            compile_model(loop.token_loss, by_block=False)
            assert [name for name, _ in loop.state.model.named_parameters()] == before
        run(loop, rows)
        runs[compiled] = losses(rows)
    assert list(tmp_path.rglob("*.so")), "nothing was compiled"
    assert runs[True] == pytest.approx(runs[False], rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif("REWARM_SOAK" not in os.environ, reason="takes a minute; REWARM_SOAK=1 runs it")
def test_a_signal_to_all_processes_during_compilation_is_no_failure_and_a_rerun_goes_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    compiled, run = tmp_path / "compiled", tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "rewarm",
        "train",
        *SMALL,
        *TINY,
        "init=scratch",
        "train.compile=true",
        f"run_dir={run}",
    ]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(compiled), "PYTHONPATH": str(ROOT / "src")}
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, env=environment, stderr=said, stdout=said, start_new_session=True)
        # Until the first kernel is handed to the C++ compiler; `glob` minds no folder that vanishes meanwhile.
        while not glob.glob(f"{compiled}/**/*.main.cpp", recursive=True) and process.poll() is None:  # noqa: PTH207
            pass
        os.killpg(process.pid, number)
        assert process.wait(300) == 128 + number, (tmp_path / "said").read_text()
    # The first evaluation is what compiles first: there is nothing to save yet.
    assert (
        (tmp_path / "said").read_text().endswith("left at once; the same command starts again from what was saved\n")
    )
    assert "Traceback" not in (tmp_path / "said").read_text()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert [row["step"] for row in metrics(run)] == list(range(11))
