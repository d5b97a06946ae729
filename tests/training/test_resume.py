"""A run that was interrupted, however and wherever, equals the one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import ROOT
from tests.hub.content import jsonl, pile
from tests.training.killing import TINY, Fault, Runs, assert_same, kill_at_random, metrics


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def changes(runs: Runs) -> list[str]:
    return runs.changes()


def at(changes: list[str], text: str, after: int = 0) -> int:
    """Return the number of the first change to the file system after that one whose description contains `text`."""
    return next(n for n, change in enumerate(changes, start=1) if n > after and text in change)


def test_kills_at_random_moments_change_nothing(runs: Runs) -> None:
    kill_at_random(runs, kills=25, seed=0)


def test_kills_at_changes_of_the_file_system_change_nothing(runs: Runs, changes: list[str]) -> None:
    rename = at(changes, "os.rename checkpoints/.step-6.tmp/.manifest")
    last_removal = at(changes, "os.rename checkpoints/step-6")  # the last checkpoint is saved by then
    numbers = {rename, rename + 1, last_removal, *random.Random(0).sample(range(1, len(changes) + 1), 5)}
    for number in sorted(numbers):
        run = runs.new()
        command = runs.start(run, Fault(str(run), number, "kill"))
        assert command.wait() == -signal.SIGKILL, command.output
        runs.finish(run)
        runs.check(run)


def test_two_kills_in_a_row_without_a_completed_step(runs: Runs, changes: list[str]) -> None:
    run = runs.new()
    runs.start(run, Fault(str(run), at(changes, ".step-6.tmp"), "kill")).wait()
    for number in (2, 4, 5):  # while it is starting again
        assert runs.start(run, Fault(str(run), number, "kill")).wait() == -signal.SIGKILL
    runs.finish(run)
    runs.check(run)


def test_kills_change_nothing_in_fp16_with_a_moving_loss_scale(tmp_path: Path) -> None:
    overrides = ("precision=fp16", "scaler.init_scale=67108864", "scaler.growth_interval=3", "budget=1152")
    runs = Runs(tmp_path, *overrides)
    scales = [row["loss_scale"] for row in metrics(runs.reference) if "loss_scale" in row]
    assert len(set(scales)) > 1
    kill_at_random(runs, kills=4, seed=1)


def test_sigterm_before_the_first_step_leaves_nothing_broken(runs: Runs, changes: list[str]) -> None:
    run = runs.new()
    command = runs.start(run, Fault(str(run), at(changes, "open metrics.jsonl"), "term"))
    assert command.wait() == 128 + signal.SIGTERM
    assert "left at once" in command.output
    runs.finish(run)
    runs.check(run)


@pytest.mark.parametrize("kind", ["term", "term2"])
@pytest.mark.parametrize("moment", ["open metrics.jsonl", ".step-6.tmp/config.json"])
def test_sigterm_saves_and_the_same_command_goes_on(runs: Runs, changes: list[str], moment: str, kind: str) -> None:
    run = runs.new()
    number = at(changes, moment, after=at(changes, ".step-3.tmp"))
    command = runs.start(run, Fault(str(run), number, kind))
    assert command.wait() == 128 + signal.SIGTERM
    assert command.output.count("saved at step") == 1
    assert "Traceback" not in command.output
    runs.finish(run)
    runs.check(run)


@pytest.mark.parametrize(
    ("call", "at"),
    [("_accumulate_gradients", 2), ("any_of", 3), ("perplexity", 4), ("take_means", 2)],
    ids=["gradients", "update", "evaluation", "metrics"],
)
def test_sigterm_in_any_part_of_the_loop_saves_and_the_same_command_goes_on(runs: Runs, call: str, at: int) -> None:
    run = runs.new()
    command = runs.start(run, Fault(str(run), at, "term", call=call))
    assert command.wait() == 128 + signal.SIGTERM
    assert command.output.count("saved at step") == 1
    runs.finish(run)
    runs.check(run)


def test_a_signal_to_a_whole_job_lets_tokenising_go_on_until_the_run_has_saved(tmp_path: Path) -> None:
    """As from SLURM or Ctrl-C: the processes that tokenise get it too."""
    lines = [json.dumps({"text": f"line {n}: " + "some old and some new text " * 99}) for n in range(4000)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    source = [f"data.{side}={tmp_path / 'text.jsonl'}" for side in ("upstream", "downstream")]
    command = [sys.executable, "-m", "rewarm", "train", *TINY, "data=files", *source, "data.workers=1"]
    command += ["budget=1280000", "evaluation.every=10", "data.shard_tokens=4096", f"run_dir={tmp_path / 'run'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "REWARM_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if sum(": loss upstream" in line for line in said) == 2:
                os.killpg(process.pid, signal.SIGTERM)
                break
        said += process.stderr.readlines()
        assert process.wait() == 128 + signal.SIGTERM, said
    assert sum("saved at step" in line for line in said) == 1
    assert not any("Traceback" in line for line in said)


def test_a_signal_during_imports_leaves_no_folder_and_no_traceback(tmp_path: Path) -> None:
    program = """
import os, signal, sys
def hook(event, arguments):
    if event == "import" and arguments[0] == "torch":
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(hook)
from rewarm.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "train", f"run_dir={tmp_path / 'run'}", "init=scratch"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_max_hours_saves_and_leaves_in_time(runs: Runs) -> None:
    run = runs.new()
    command = runs.start(run, None, "max_hours=1e-6")
    assert command.wait() == 75
    assert "saved at step 1" in command.output
    runs.finish(run)
    runs.check(run)


def test_a_full_disk_at_any_write_leaves_the_last_checkpoint_and_a_clear_line(runs: Runs, changes: list[str]) -> None:
    # What takes no room cannot meet a full disk, and a second `mkdir` of the same folder is none.
    writes = [n for n, change in enumerate(changes, start=1) if change.split()[0] in ("open", "os.rename")]
    for number in [*random.Random(1).sample(writes, 4), at(changes, "open metrics.jsonl")]:
        run = runs.new()
        command = runs.start(run, Fault(str(run), number, "enospc"))
        assert command.wait() in (1, 2), changes[number - 1]
        assert "No space left on device" in command.output
        assert "Traceback" not in command.output
        runs.finish(run)
        runs.check(run)


def test_a_disk_that_is_really_full(runs: Runs, tmp_path: Path) -> None:
    def mount(*options: str) -> int:
        return subprocess.run(["mount", *options, str(tmp_path)], capture_output=True, check=False).returncode

    if mount("-t", "tmpfs", "-o", "size=8m", "none") != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        run = tmp_path / "run"
        command = runs.start(run, None)
        assert command.wait() == 1
        assert "what was saved before is intact" in command.output
        assert "Traceback" not in command.output
        assert (run / "checkpoints/step-6/manifest.json").is_file()
        assert mount("-o", "remount,size=64m") == 0
        runs.finish(run)
        runs.check(run)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_and_kept(runs: Runs, file: str) -> None:
    run = runs.new()
    shutil.copytree(runs.reference, run)
    (run / "summary.json").unlink()
    damaged = run / "checkpoints/step-12"
    os.truncate(damaged / file, 100)
    content = (damaged / file).read_bytes()
    command = runs.finish(run)
    assert "going back to the checkpoint before it" in command.output
    kept = run / "checkpoints/step-12.damaged-1"
    assert (kept / file).read_bytes() == content
    shutil.rmtree(kept)
    runs.check(run)


def test_a_second_process_is_refused_until_the_first_is_dead(runs: Runs, changes: list[str]) -> None:
    run = runs.new()
    holder = runs.start(run, Fault(str(run), at(changes, ".step-3.tmp"), "stop"))
    while not holder.is_stopped():
        assert holder.wait(0.02) is None, holder.output
    second = runs.start(run)
    assert second.wait() == 2
    assert f"is in use by process {holder.process.pid} on " in second.output
    holder.kill()
    holder.wait()
    runs.finish(run)
    runs.check(run)


def test_a_finished_run_says_so_and_does_nothing(runs: Runs) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.reference.rglob("*") if path.name != ".lock"}
    command = runs.finish(runs.reference)
    assert "is finished already; nothing to do" in command.output
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_config_is_refused_with_the_keys_that_differ(runs: Runs) -> None:
    command = runs.start(runs.reference, None, "max_lr=3e-4", "seed=7", "checkpoint.keep=5")
    assert command.wait() == 2
    line = command.output.splitlines()[-1]
    assert "max_lr (was 0.001, now 0.0003)" in line
    assert "seed (was 0, now 7)" in line
    assert "keep" not in line


def test_a_budget_written_differently_is_the_same(runs: Runs) -> None:
    assert "nothing to do" in runs.finish(runs.reference, "budget=1.536K").output


def test_changed_data_is_refused(runs: Runs) -> None:
    run = runs.new()
    shutil.copytree(runs.reference, run)
    (run / "summary.json").unlink()
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["data"]["upstream"] = "another"
    (run / "manifest.json").write_text(json.dumps(manifest))
    command = runs.start(run)
    assert command.wait() == 2
    assert "the data is not what the run was begun on (upstream differs)" in command.output


def test_other_validation_text_is_refused_and_the_same_text_in_a_new_file_is_not(runs: Runs, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    (tmp_path / "text.jsonl").write_bytes(jsonl(pile("text", 60)))
    side = f"{{path:{tmp_path / 'text.jsonl'},validation_path:{held_out}}}"
    data = ("data=files", f"data.upstream={side}", f"data.downstream={side}")
    run = runs.new()
    held_out.write_bytes(jsonl(pile("validation", 20)))
    assert runs.start(run, None, *data, "max_hours=1e-6").wait() == 75
    held_out.write_bytes(jsonl(pile("another validation", 20)))
    refused = runs.start(run, None, *data)
    assert refused.wait() == 2
    assert refused.output.count("downstream validation, upstream validation differ") == 1
    held_out.write_bytes(jsonl(pile("validation", 20)))
    assert runs.start(run, None, *data, "max_hours=1e-6").wait() == 75
    # A manifest of an earlier version knows nothing of validation: it is recorded when the run goes on.
    manifest = json.loads((run / "manifest.json").read_text())
    known = manifest["data"]
    manifest["data"] = {key: value for key, value in known.items() if not key.endswith("validation")}
    (run / "manifest.json").write_text(json.dumps(manifest))
    runs.finish(run, *data)
    assert json.loads((run / "manifest.json").read_text())["data"] == known


def test_a_run_that_goes_on_under_other_conditions_says_so_in_one_line(runs: Runs) -> None:
    run = runs.new()
    assert runs.start(run, None, "max_hours=1e-6").wait() == 75
    manifest = json.loads((run / "manifest.json").read_text())
    assert {"torch", "cpu", "threads", "processes", "device", "micro_batch_size", "compiled"} <= manifest.keys()
    (run / "manifest.json").write_text(json.dumps(manifest | {"cpu": "Z80", "threads": 3}))
    said = runs.start(run, None, "max_hours=1e-6")
    assert said.wait() == 75
    line = (
        f"goes on after step 1 with cpu {manifest['cpu']} (was Z80), threads 1 (was 3): from here on its numbers are"
    )
    assert said.output.count(line) == 1
    same = runs.finish(run)
    assert "from here on" not in same.output.partition("continues after step 2")[2]
    kept = json.loads((run / "manifest.json").read_text())
    assert kept["changes"] == [{"after": 1, "cpu": ["Z80", manifest["cpu"]], "threads": [3, 1]}]
    runs.check(run)


def test_an_extension_keeps_the_curve_that_was_run_and_says_what_comes(runs: Runs) -> None:
    run = runs.new()
    shutil.copytree(runs.reference, run)
    refused = runs.start(run, None, "budget=2048")
    assert refused.wait() == 2
    assert "give extend=true to go on with it" in refused.output
    command = runs.finish(run, "budget=2048", "extend=true")
    assert "extends after step 12 to step 16: the learning rate was 0.0001 and jumps up" in command.output
    old, new = metrics(runs.reference), metrics(run)
    assert new[: len(old)] == old
    assert [row["step"] for row in new[len(old) :]] == [14, 16]
    assert json.loads((run / "manifest.json").read_text())["extensions"] == [
        {"after": 12, "budget": 1536, "horizon": None, "stop": None}
    ]
    assert yaml.safe_load((run / "config.yaml").read_text())["budget"] == 2048
    assert "nothing to do" in runs.finish(run, "budget=2048", "extend=true").output


def test_an_extended_run_that_is_killed_equals_one_that_is_not(runs: Runs) -> None:
    overrides = ("budget=2304", "horizon=4096", "extend=true")
    undisturbed, killed = runs.new(), runs.new()
    for run in (undisturbed, killed):
        shutil.copytree(runs.reference, run)
    runs.finish(undisturbed, *overrides)
    for number in (2, 4, 6, 9, 14):
        assert runs.start(killed, Fault(str(killed), number, "kill"), *overrides).wait() == -signal.SIGKILL
    runs.finish(killed, *overrides)
    assert_same(killed, undisturbed)


def test_optimizer_state_comes_along_only_where_asked_for(runs: Runs) -> None:
    first = f"init={runs.reference}"
    changed = ("max_lr=3e-4", "budget=384", "train.log_every=1")
    plain, warm = runs.new(), runs.new()
    runs.finish(plain, first, *changed)
    runs.finish(warm, first, *changed, "init_optimizer=true")
    assert metrics(plain)[0] | {} == metrics(warm)[0]
    assert metrics(plain)[1]["train/loss"] == metrics(warm)[1]["train/loss"]
    assert metrics(plain)[2]["train/loss"] != metrics(warm)[2]["train/loss"]
    assert [row.get("lr") for row in metrics(plain)] == [row.get("lr") for row in metrics(warm)]
    assert max(row.get("lr", 0) for row in metrics(warm)) <= 3e-4


def test_optimizer_state_that_is_not_there_is_an_error(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.reference / "checkpoints/step-12", tmp_path / "weights")
    for name in ("state.pt", "manifest.json"):
        (tmp_path / "weights" / name).unlink()
    run = runs.new()
    command = runs.start(run, None, f"init={tmp_path / 'weights'}", "init_optimizer=true")
    assert command.wait() == 2
    assert "has no optimizer state" in command.output


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kills_change_nothing_on_a_gpu(tmp_path: Path) -> None:
    runs = Runs(tmp_path, "device=cuda", "precision=fp16", "scaler.growth_interval=3")
    kill_at_random(runs, kills=4, seed=2)
