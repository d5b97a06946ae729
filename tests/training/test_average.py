"""The running average: what it is, that it goes on with its run, and that it is a model of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewarm.commands.report import report
from rewarm.config.plan import make_plan
from rewarm.config.schema import Config
from rewarm.config.sharing import beginnings
from rewarm.errors import CheckpointError, UserError
from rewarm.model.init import resolve_init, resolve_pinned
from rewarm.model.weights import load_model
from rewarm.runs.manifest import Pinned
from rewarm.runs.run import open_run
from rewarm.training.average import RunningAverage
from rewarm.training.run import run as train
from tests.conftest import make_config
from tests.training.killing import TINY, Command, Fault, assert_same
from tests.training.test_distributed import SHARED, Processes, assert_close

HALF = "average.half_life=0.25"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("words", [("average.every=1",), ("average.every=3", "average.device=host")])
def test_it_is_the_moving_average_of_what_the_updates_made(tmp_path: Path, words: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    train(make_config(*SHARED, HALF, *words, "checkpoint.every=1", "checkpoint.keep=0", f"run_dir={run}"))
    every = int(words[0][-1])
    start = load_model(resolve_init("scratch"), make_config(*SHARED).model, 0, torch.device("cpu"))
    # As published files of a GPT-NeoX name them.
    files = {name.replace("lm_head", "embed_out"): value for name, value in start.state_dict().items()}
    expected = {name: value.double() for name, value in files.items()}
    keep = 0.5 ** (every / 3)  # of 12 updates a quarter
    for step in range(every, 13, every):
        now = weights(run / f"checkpoints/step-{step}")
        for name, value in expected.items():
            expected[name] = keep * value + (1 - keep) * now[name].double()
    found = weights(run / "checkpoints/step-12/average")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-7)


def test_swapped_the_model_is_the_average_and_then_itself_again(small: Callable[..., Config]) -> None:
    model = torch.nn.Linear(5, 3)
    config = small(HALF)
    average = RunningAverage.of(config.average, make_plan(config), model)
    assert average is not None
    own = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    with average.swapped():
        assert torch.equal(model.weight, own)
    assert torch.equal(model.weight, own + 1)
    assert torch.equal(average.means[0], own)


def test_a_killed_run_keeps_its_average_and_its_losses_are_those_of_the_model(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ["train", *SHARED, HALF]
    for run, fault in ((whole, None), (cut, Fault(str(cut / "metrics.jsonl"), 8, "kill")), (cut, None)):
        done = Command([*words, f"run_dir={run}"], tmp_path / "said", fault)
        assert done.wait() == (0 if fault is None else -9), done.output
    assert_same(whole, cut)
    mine, theirs = (weights(run / "checkpoints/step-12/average") for run in (cut, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    logged = open_run(whole).metrics.curve("upstream/loss_avg")[1][-1]
    scored = tmp_path / "scored"
    train(make_config(*SHARED, f"init={whole}@average", "budget=128", f"run_dir={scored}"))
    first = open_run(scored)
    assert first.loss("upstream")[1][0] == pytest.approx(logged, rel=1e-6)
    assert first.manifest.init is not None
    assert first.manifest.init.step == 12
    moved = tmp_path / "moved"
    whole.rename(moved)
    pinned = replace(first.manifest.init, asked=f"{moved}@average")
    assert resolve_pinned(pinned).folder == moved / "checkpoints/step-12/average"
    report([str(moved), f"out={tmp_path / 'out'}"])
    told = (tmp_path / "out/summary.md").read_text()
    assert "Averages of each run while it went" in told
    assert f"| {logged:.4f} |" in told


def test_several_processes_have_the_average_of_one(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    Processes(1, alone, HALF).finish()
    for way in ("ddp", "fsdp"):
        run = tmp_path / way
        fault = Fault(str(run / "metrics.jsonl"), 6, "term")
        assert Processes(2, run, HALF, f"train.parallel={way}", fault=fault).wait() == [143, 143]
        Processes(2 if way == "ddp" else 1, run, HALF).finish()
        assert_close(run, alone)
        mine, theirs = (weights(of / "checkpoints/step-12/average") for of in (run, alone))
        assert mine.keys() == theirs.keys()
        for name in theirs:  # Adam scales up what rounding makes of gradients that are nearly 0
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-3)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(make_config(*TINY, f"run_dir={run}"))
    with pytest.raises(CheckpointError, match=r"@average: has no running average; train it with average\.half_life"):
        resolve_init(f"{run}@average")
    with pytest.raises(CheckpointError, match="which is gone"):
        resolve_pinned(Pinned(f"{run}@average", str(run / "average"), 9, "0"))
    kept = tmp_path / "kept"
    train(make_config(*TINY, HALF, f"run_dir={kept}"))
    init = resolve_init(f"{kept}@average")
    assert init.folder is not None
    path = init.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"average/model\.safetensors: is not what was written"):
        load_model(init, make_config(*TINY).model, 0, torch.device("cpu"))
    for words in (("average.half_life=0",), ("average.half_life=2",), ("average.device=disk",), ("average.every=0",)):
        with pytest.raises(UserError, match=r"average\."):
            make_config(*words)
    with pytest.raises(UserError, match=r"average\.device=host: does not go with train\.parallel=fsdp"):
        make_config("average.device=host", "train.parallel=fsdp")


def test_runs_of_other_horizons_share_nothing_where_an_average_remembers_a_share_of_it() -> None:
    def shared(*words: str) -> list[Any]:
        lines = ("warmup=0", "evaluation.every=10", "evaluation.dense_until=0")
        configs = [make_config("schedule=constant", f"budget={n}M", *lines, *words) for n in (1, 2)]
        return beginnings([(config, make_plan(config)) for config in configs])

    assert any(shared())
    assert not any(shared(HALF))
