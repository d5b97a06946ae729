"""Several processes train one run, as torchrun would start them: on the CPU, over gloo."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from rewarm.commands.arms import Swept
from rewarm.config.command_line import parse
from rewarm.config.schema import Config
from rewarm.errors import PeerFailedError, UserError
from rewarm.training.agreement import check_divides, check_restarts, check_sharding
from rewarm.training.checkpoints import folder as checkpoints
from rewarm.training.distributed import collectives, together, world
from rewarm.training.distributed.world import Place, place
from tests.training.killing import ROOT, TINY, Command, Fault, assert_equal_trees, metrics, state

SHARED = (*TINY, "train.context=16", "train.batch_size=8", "budget=1536", "train.log_every=1")
"""A run of 12 steps whose batch up to eight processes can share."""
WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


class Processes:
    """The processes of one run: overrides and environment that only one has come by its number; 0 has the `fault`."""

    def __init__(
        self,
        count: int,
        run: Path,
        *overrides: str,
        own: Mapping[int, Sequence[str]] | None = None,
        environment: Mapping[int, Mapping[str, str]] | None = None,
        fault: Fault | None = None,
    ) -> None:
        port = free_port()
        self.commands = []
        for rank in range(count):
            variables = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_PORT": port}
            told = {name: str(value) for name, value in variables.items()} | {"MASTER_ADDR": "localhost"}
            arguments = ("train", *SHARED, f"run_dir={run}", *overrides, *(own or {}).get(rank, ()))
            output = run.with_name(f"{run.name}-{rank}.out")
            output.unlink(missing_ok=True)
            more = told | dict((environment or {}).get(rank, {}))
            environ = more if count > 1 else None
            self.commands.append(Command(arguments, output, fault if rank == 0 else None, environ))

    def wait(self) -> list[int | None]:
        """Return all exit codes."""
        return [command.wait() for command in self.commands]

    @property
    def output(self) -> str:
        return "".join(command.output for command in self.commands)

    def finish(self) -> None:
        assert self.wait() == [0] * len(self.commands), self.output


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the run that one process did."""
    run = tmp_path_factory.mktemp("alone") / "run"
    Processes(1, run).finish()
    return run


def assert_close(run: Path, other: Path) -> None:
    """Assert equal steps, tokens and rates, and losses that differ by no more than rounding."""
    rows, others = metrics(run), metrics(other)
    assert len(rows) == len(others)
    for row, reference in zip(rows, others, strict=True):
        assert row.keys() == reference.keys()
        for key in ("step", "tokens", "lr", "skipped"):
            assert row.get(key) == reference.get(key)
        assert row == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_processes_trains_the_same_run(count: int, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    together = Processes(count, run)
    together.finish()
    assert_close(run, alone)
    assert json.loads((run / "manifest.json").read_text())["processes"] == count
    assert [command.output for command in together.commands[1:]] == [""] * (count - 1)
    for name in ("step-9", "step-12"):
        mine, theirs = state(run / "checkpoints" / name), state(alone / "checkpoints" / name)
        assert mine["scaler"].keys() == theirs["scaler"].keys()
        moments = [s["optimizer"]["state"][0]["exp_avg"] for s in (mine, theirs)]
        torch.testing.assert_close(*moments)


def test_what_several_began_one_goes_on_with_and_the_other_way_round(alone: Path, tmp_path: Path) -> None:
    for first, second in ((2, 1), (1, 2)):
        run = tmp_path / f"run-{first}-{second}"
        # One process gets the signal, while it writes the line of step 3, and all stop after that step.
        fault = Fault(str(run / "metrics.jsonl"), 4, "term")
        begun = Processes(first, run, "checkpoint.every=100", fault=fault)
        codes = begun.wait()
        assert codes == [143] * first, begun.output
        assert len(re.findall("saved at step 3", begun.output)) == 1
        Processes(second, run).finish()
        assert_close(run, alone)


def test_a_model_spread_over_two_goes_on_with_one_or_four_and_is_a_hugging_face_folder(
    alone: Path, tmp_path: Path
) -> None:
    def interrupted(count: int, *overrides: str) -> Path:
        run = tmp_path / f"by-{count}"
        begun = Processes(count, run, *overrides, fault=Fault(str(run / "metrics.jsonl"), 6, "term"))
        assert begun.wait() == [143] * count, begun.output
        return run

    two = interrupted(2, "train.parallel=fsdp")
    assert len(list((two / "checkpoints/step-5/optimizer").glob("*.distcp"))) == 2
    by_one, by_four = (Path(shutil.copytree(two, tmp_path / name)) for name in ("one", "four"))
    Processes(1, by_one).finish()
    Processes(4, by_four, "train.parallel=fsdp").finish()
    back = interrupted(1)
    Processes(2, back, "train.parallel=fsdp").finish()
    for run in (by_one, by_four, back):
        assert_close(run, alone)
        folder = run / "checkpoints/step-12"
        checkpoints.verify(folder)
        # What the weights compute: keys' biases have no gradient but rounding, which Adam scales up.
        mine, reference = (
            AutoModelForCausalLM.from_pretrained(path)(torch.arange(32)[None]).logits
            for path in (folder, alone / "checkpoints/step-12")
        )
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


def test_a_model_spread_in_fp16_within_nodes_is_nearly_that_of_one_process(tmp_path: Path) -> None:
    """Normalisations are rounded to FP16 where blocks are gathered; all else is the same."""
    alone, run = tmp_path / "alone", tmp_path / "run"
    Processes(1, alone, "precision=fp16").finish()
    nodes = {rank: {"LOCAL_WORLD_SIZE": "2"} for rank in range(4)}
    Processes(4, run, "precision=fp16", "train.parallel=hsdp", environment=nodes).finish()
    for row, reference in zip(metrics(run), metrics(alone), strict=True):
        for key, value in reference.items():
            assert row[key] == pytest.approx(value, rel=1e-2 if key == "grad_norm" else 1e-4), key


def test_moments_of_a_spread_model_come_along_into_a_new_run(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    Processes(2, old, "train.parallel=fsdp", "budget=384").finish()
    Processes(1, new, f"init={old}", "init_optimizer=true", "budget=384").finish()
    step = state(new / "checkpoints/step-3")["optimizer"]["state"][0]["step"]
    assert step == 6, "three updates of the old run, three of the new one"


def test_an_overflow_anywhere_skips_the_step_everywhere(tmp_path: Path) -> None:
    overrides = ("precision=fp16", "scaler.init_scale=64e9", "scaler.hysteresis=1", "budget=1024")
    for count in (1, 2):
        Processes(count, tmp_path / str(count), *overrides).finish()
    one, two = (metrics(tmp_path / str(count)) for count in (1, 2))
    assert [row.get("skipped") for row in one] == [row.get("skipped") for row in two]
    assert [row.get("loss_scale") for row in one] == [row.get("loss_scale") for row in two]
    assert one[-1]["skipped"] > 0
    assert_equal_trees(
        state(tmp_path / "1/checkpoints/step-8")["scaler"], state(tmp_path / "2/checkpoints/step-8")["scaler"]
    )


def test_gradients_are_shared_once_a_step_however_many_parts_it_has(tmp_path: Path) -> None:
    counts = []
    for micro in (4, 1):
        run = tmp_path / str(micro)
        Processes(2, run, "profile=true", f"train.micro_batch_size={micro}", "budget=1024").finish()
        counts.append((run / "profile/trace.json").read_text().count('"gloo:all_reduce"'))
    assert counts[0] == counts[1] > 0


def test_a_killed_worker_that_torchrun_restarts_continues_from_the_last_checkpoint(
    alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"),
            *("--master-port", str(free_port()), "-m", "tests.training.elastic_worker"),
            *("train", *SHARED, f"run_dir={run}"),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # torchrun names the worker that it misses first: the one that was killed, or the one that found it gone and left.
    assert re.search(r"Signal 9 \(SIGKILL\)|exitcode: -9|another process is gone", done.stderr), done.stderr
    assert re.search(r"continues after step [36]\n", done.stderr)
    assert_close(run, alone)


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_processes_with_different_configs_do_not_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    together = Processes(2, run, own={1: ["max_lr=1e-5", "seed=3"]})
    assert together.wait() == [2, 2]
    assert "rewarm" not in together.commands[0].output, "said once"
    assert "max_lr (here 1e-05, there 0.001); seed (here 3, there 0)" in together.commands[1].output
    assert not run.exists()


def test_a_cache_that_not_all_processes_see_is_found_out(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    together = Processes(2, run, environment={1: {"REWARM_CACHE": str(elsewhere)}})
    assert together.wait() == [2, 2]
    assert re.search(r"REWARM_CACHE=.*elsewhere on .* is another disk than .*; set REWARM_CACHE to", together.output)
    assert together.output.count("rewarm") == 1, "said once"


def test_a_killed_process_takes_the_others_along(tmp_path: Path) -> None:
    run = tmp_path / "run"
    together = Processes(2, run, fault=Fault(str(run / "metrics.jsonl"), 4, "kill"))
    assert together.wait() == [-signal.SIGKILL, 1]
    assert not (run / "summary.json").exists()
    assert "Traceback" not in together.output


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"RANK": "0"},
            "RANK=0: WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT must be set too; start the run with",
        ),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK, LOCAL_RANK must be set too"),
        ({**WHOLE, "RANK": "x"}, "RANK=x: must be a number"),
        ({**WHOLE, "RANK": "2"}, "RANK=2: must be below WORLD_SIZE=2"),
    ],
)
def test_half_an_environment_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        place(environment)
    assert place(WHOLE) == Place(1, 2, 0)


def test_an_address_alone_is_no_distributed_run() -> None:
    assert place({"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}) == Place()


@pytest.mark.parametrize(
    ("overrides", "processes", "message"),
    [
        (("train.batch_size=32",), 3, "start 1, 2, 4, 8, 16 or 32 processes, or give train.batch_size=30 or 33"),
        (("train.batch_size=4",), 8, "start 1, 2 or 4 processes, or give train.batch_size=8"),
        (("train.batch_size=32", "train.micro_batch_size=8"), 8, "give 1, 2 or 4, or start 1, 2 or 4 processes"),
    ],
)
def test_a_batch_that_cannot_be_shared_says_what_can(
    small: Callable[..., Config], overrides: tuple[str, ...], processes: int, message: str
) -> None:
    config = small(*overrides, "budget=1M")
    check_divides(config, 1)
    with pytest.raises(UserError, match=re.escape(message)):
        check_divides(config, processes)


def test_a_restart_needs_a_folder_to_find(small: Callable[..., Config]) -> None:
    unnamed = replace(small(), run_dir="runs/2026-01-31_23-59-59-000001")
    check_restarts(unnamed, {"TORCHELASTIC_MAX_RESTARTS": "0"})
    check_restarts(small(), {"TORCHELASTIC_MAX_RESTARTS": "3"})
    with pytest.raises(UserError, match="run_dir: give it with torchrun's --max-restarts"):
        check_restarts(unnamed, {"TORCHELASTIC_MAX_RESTARTS": "3"})


def test_what_a_spread_model_cannot_do(small: Callable[..., Config]) -> None:
    config = small("train.parallel=fsdp")
    check_sharding(config, "cpu", 2)
    check_sharding(config, "cuda", 1)
    with pytest.raises(UserError, match=r"train\.micro_batch_size"):
        check_sharding(config, "cuda", 2)
    compiled = small("train.parallel=hsdp", "train.compile=true", "precision=auto")
    check_sharding(replace(compiled, precision="fp32"), "cpu", 2)
    with pytest.raises(UserError, match=r"train\.compile=true: with train\.parallel=hsdp on CPUs"):
        check_sharding(compiled, "cpu", 2)
    with pytest.raises(UserError, match=r"train\.parallel=hsdp: 1 processes with 2 on this node"):
        world.nodes({"LOCAL_WORLD_SIZE": "2"})
    with pytest.raises(UserError, match=r"train\.parallel=zero: unknown choice"):
        small("train.parallel=zero")


def test_no_thread_is_left_in_the_store_when_a_process_leaves() -> None:
    """One that is there while Python shuts down aborts the process."""
    before = set(threading.enumerate())
    for failure in (None, ValueError("no")):
        messages = dist.HashStore()
        with suppress(PeerFailedError, ValueError), together._failing_together(messages, messages):
            assert set(threading.enumerate()) > before
            if failure is not None:
                raise failure
        assert set(threading.enumerate()) == before


def test_a_sweep_is_not_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="-m: a sweep starts processes of its own"):
        Swept.of(parse(["-m", "seed=0,1"]))


def test_without_nccl_only_cpus_go_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    monkeypatch.setenv("RANK", "0")
    assert together.choose_backend(torch.device("cpu")) == "gloo"
    assert "no NCCL" in caplog.text
    with pytest.raises(UserError, match="no NCCL"):
        together.choose_backend(torch.device("cuda", 0))
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    assert together.choose_backend(torch.device("cuda", 0)) == "cpu:gloo,cuda:nccl"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert world.local_device(torch.device("cuda"), 1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="LOCAL_RANK=2: this node has 2 GPUs"):
        world.local_device(torch.device("cuda"), 2)


def test_one_process_alone_talks_to_nobody() -> None:
    values = torch.tensor([1.0, 2.0])
    assert collectives.total(values) is values
    assert collectives.largest(3) == 3
    assert collectives.broadcast_object(lambda: "mine") == "mine"
    assert collectives.all_gather_object("mine") == ["mine"]
    assert world.share(6) == range(6)
