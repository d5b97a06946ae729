"""A run as its folder has it: found, read whole though it is old, refused in one line where it is damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rewarm.commands.eval import as_the_run_was
from rewarm.commands.forecast import forecast
from rewarm.commands.report import report
from rewarm.config.schema import Config
from rewarm.errors import DataError, UserError
from rewarm.forecast.curves import curve_of
from rewarm.report.arms import arms_of, load
from rewarm.runs.folder import RunFolder
from rewarm.runs.manifest import parse_manifest
from rewarm.runs.run import find_runs, open_run, read_config
from rewarm.training.resume import check_continues, check_metrics
from rewarm.training.run import run as train
from tests.conftest import ROOT

OLD = ROOT / "tests" / "assets" / "run-of-0.1.0"
"""A run of 12 steps, extended to 16, as the version of commit 90ae2f6 left it, without weights."""
FILES = ("config.yaml", "manifest.json", "summary.json")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def lines(path: Path) -> list[str]:
    return (path / "metrics.jsonl").read_text().splitlines(keepends=True)


def test_a_run_of_an_earlier_version_reads_whole() -> None:
    run = open_run(OLD)
    assert (run.name, run.seed, run.finished, run.damage) == ("run-of-0.1.0", 0, True, None)
    assert run.config.budget == 2048
    assert run.manifest.chosen.micro_batch_size == 2
    assert run.manifest.conditions.torch == "2.13.0+cpu"
    assert run.manifest.init is not None
    assert (run.manifest.init.asked, run.manifest.init.identity) == ("scratch", None)
    assert (run.manifest.extensions[0].after, run.manifest.extensions[0].budget) == (12, 1536)
    assert run.manifest.other["parameters"] == 279_296
    assert run.checkpoints == [3, 15, 16]
    assert run.checkpoint(15) == OLD / "checkpoints" / "step-15"
    assert run.domains("upstream") == ["code", "prose"]
    assert run.loss("downstream", "code", against="step")[0].tolist() == [0, 4, 8, 12, 16]
    steps, logged = run.metrics.curve("lr", "step")
    assert run.lr[steps.astype(int) - 1] == pytest.approx(logged), "also before the extension"


def test_a_run_of_an_earlier_version_is_reported_forecast_evaluated_and_continued(
    old: Path, small: Callable[..., Config]
) -> None:
    run = open_run(old)
    [arm] = arms_of(load([old]))
    assert arm.recipe.horizon == 2048
    curve = curve_of(run)
    assert curve is not None
    assert curve.trajectory.lr[11] == pytest.approx(1e-4)
    report([str(old)])
    assert (old / "report" / "index.html").is_file()
    scored = as_the_run_was(small(f"init='{old}'"), [])
    assert scored.train.micro_batch_size == 2
    assert not check_continues(run, replace(run.config, extend=False))
    assert check_continues(run, replace(run.config, budget=4096, extend=True))
    check_metrics(RunFolder(old), run, 16, allowed=False)


def test_what_this_version_does_not_know_of_a_manifest_is_kept() -> None:
    values = json.loads((OLD / "manifest.json").read_text())
    values["extensions"][0]["stop"] = None  # which came later
    assert parse_manifest(values).values() == values
    assert parse_manifest(values | {"later": {"a": [1]}, "changes": [{"after": 3}]}).values() == values | {
        "later": {"a": [1]},
        "changes": [{"after": 3}],
    }


def test_runs_are_found_once_and_never_in_checkpoints(tmp_path: Path) -> None:
    sweep = tmp_path / "checkpoints" / "sweep"  # a folder of this name on the way is none of a run's
    for name in ("b", "a/inside"):
        shutil.copytree(OLD, sweep / name)
    (sweep / "b" / "metrics.jsonl").unlink()
    shutil.copytree(OLD, sweep / "b" / "checkpoints" / "step-99")
    (sweep / "other").mkdir()
    (sweep / "other" / "config.yaml").touch()
    assert find_runs([sweep, sweep / "b"]) == [sweep / "a" / "inside", sweep / "b"]
    with pytest.raises(UserError, match="missing: no such folder"):
        find_runs([sweep, sweep / "missing"])
    with pytest.raises(UserError, match="other: holds no run"):
        find_runs([sweep / "other"])


def damage(path: Path, kind: str) -> None:
    """Put something else in the place of a run's file."""
    whole = path.read_text()
    contents: dict[str, bytes] = {
        "empty": b"",
        "null": b"null",
        "a number": b"1",
        "a string": b'"x"',
        "a list": b"[]",
        "nothing in it": b"{}",
        "half": whole[: len(whole) // 2].encode(),
        "UTF-16": whole.encode("utf-16"),
        "Latin-1": b"# \xfc\xe4\n" + whole.encode(),
        "NUL bytes": b"\0" * len(whole),
        "NUL at its end": whole.encode() + b"\0",
        "depth": b"[" * 33_000,
    }
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a loop":
        path.symlink_to(path.name)
    elif kind in contents:
        path.write_bytes(contents[kind])
    else:  # one key of another type
        values = yaml.safe_load(whole) | yaml.safe_load(kind)
        path.write_text(json.dumps(values) if path.suffix == ".json" else yaml.safe_dump(values))


ANYWHERE = (
    *("empty", "null", "a number", "a string", "a list", "nothing in it", "half", "UTF-16", "Latin-1"),
    *("NUL bytes", "NUL at its end", "depth", "a folder", "a loop"),
)
WRONG = [
    *((file, kind) for file in FILES for kind in ANYWHERE),
    *(("config.yaml", f"{{{kind}}}") for kind in (
        "train: 5", "train: {batch_size: 0, context: 32}", "max_lr: many", "max_lr: '???'", "budget: []", "budget: 1",
        "data: {upstream: [1]}", "schedule: cosine", "checkpoint: {milestones: 5}", "nobody: 1", "extend: 7",
        "warmup: {}", "model: null",
    )),
    *(("manifest.json", f"{{{kind}}}") for kind in (
        "extensions: 5", "extensions: [1]", "extensions: [{after: x, budget: 1536}]", "extensions: [{after: 12}]",
        "extensions: [{after: 12, budget: 1}]", "init: builtin", "init: {}", "data: []", "changes: 3", "threads: []",
        "precision: {}", "micro_batch_size: many", "id: []",
    )),
    *(("summary.json", f"{{{kind}}}") for kind in (
        "upstream: 5", "upstream: {}", "upstream: {start: x, peak: 1, final: 1}", "downstream: null", "best_stop: []",
        "best_stop: {}", "tasks: 7", "tasks: {step-16: 1}", "tokens: x", "tasks: {step-16: {arc: {acc: high}}}",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("file", "kind"), WRONG)
def test_a_file_that_holds_the_wrong_thing_is_one_line_with_the_mend(
    old: Path, small: Callable[..., Config], file: str, kind: str
) -> None:
    config = replace(read_config(old), run_dir=str(old))
    damage(old / file, kind)
    before = sorted(path for path in old.rglob("*") if path.name != ".lock")
    verbs: dict[str, Callable[[], object]] = {
        "train": lambda: train(config),
        "eval": lambda: as_the_run_was(small(f"init='{old}@16'"), []),
        "report": lambda: report([str(old)]),
        "forecast": lambda: forecast([str(old)]),
    }
    for verb, do in verbs.items():
        with pytest.raises(DataError) as caught:
            do()
        said = str(caught.value)
        assert said.startswith(f"{old / file}: "), verb
        assert "; put it back from a copy" in said or "; remove it, and the run's own command writes it again" in said
        assert len(said) < 500
    assert sorted(path for path in old.rglob("*") if path.name != ".lock") == before, "nothing was taken or added"


def test_a_run_is_not_begun_over_what_another_has_left(old: Path) -> None:
    config = replace(read_config(old), run_dir=str(old))
    for name, advice in (("manifest.json", "is missing; put it back"), ("config.yaml", "is missing, and the folder")):
        kept = (old / name).read_bytes()
        (old / name).unlink()
        (old / "summary.json").unlink(missing_ok=True)
        with pytest.raises(DataError, match=f"{name}: {advice}"):
            train(config)
        (old / name).write_bytes(kept)
    assert len(lines(old)) == 9


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_said(old: Path) -> None:
    (old / "config.yaml").chmod(0)
    with pytest.raises(DataError, match=r"config.yaml: cannot be read \(Permission denied\)"):
        open_run(old)


def test_damaged_and_missing_lines_are_counted_and_said(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = lines(old)
    (old / "metrics.jsonl").write_text("".join([*kept[:2], kept[2][:90] + "\n", *kept[3:7], *kept[8:]]))
    said = (
        f"{old / 'metrics.jsonl'}: line 3 cannot be read, the values of steps 4, 14 are lost; "
        f"put the file back from a copy"
    )
    assert open_run(old).damage == said
    report([str(old)])
    assert caplog.messages == [said]
    page = (old / "report" / "index.html").read_text()
    assert "1 with damaged metrics" in page
    assert json.dumps(said)[1:-1] in page
    forecast([str(old), "law=single"])
    assert caplog.messages.count(said) == 2


def test_a_young_run_and_one_that_goes_on_lack_nothing(old: Path) -> None:
    (old / "summary.json").unlink()
    shutil.rmtree(old / "checkpoints")
    kept = lines(old)
    for until in range(len(kept)):
        (old / "metrics.jsonl").write_text("".join(kept[:until]) + '{"step": ')
        assert open_run(old).damage is None
    (old / "metrics.jsonl").unlink()
    assert open_run(old).damage is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda kept: [*kept[:2], "x" * 9 + "\n", *kept[3:]], "line 3 cannot be read, the values of step 4 are lost"),
        (lambda kept: kept[:3] + kept[4:], "the values of step 6 are lost"),
        (lambda kept: [line.replace("upstream/", "up/") for line in kept], "of steps 0, 4, 8 and 2 more are lost"),
        (lambda _: [], "the values of steps 0, 2, 4 and 6 more are lost"),
    ],
    ids=["damaged", "missing", "another key", "all gone"],
)  # fmt: skip
def test_a_run_does_not_go_on_over_lost_lines_unless_it_is_told_to(
    old: Path, change: Callable[[list[str]], list[str]], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, folder = open_run(old), RunFolder(old)
    (old / "metrics.jsonl").write_text("".join(change(lines(old))))
    with pytest.raises(DataError, match=f"{said}; put the file back from a copy, or give allow_lost_metrics=true"):
        check_metrics(folder, run, 16, allowed=False)
    check_metrics(folder, run, 16, allowed=True)
    assert said in caplog.text
    copies = list(old.glob("metrics.jsonl.damaged-*"))
    assert len(copies) == ("line 3" in said)
    assert all(copy.read_bytes() == (old / "metrics.jsonl").read_bytes() for copy in copies)


def test_lines_after_the_checkpoint_are_made_again_and_may_be_lost(old: Path) -> None:
    kept = lines(old)
    (old / "metrics.jsonl").write_text("".join(kept[:2]) + "x" * 40 + "\n" + "".join(kept[4:]))
    check_metrics(RunFolder(old), open_run(old), 3, allowed=False)


def test_a_part_that_was_done_again_under_a_later_plan_lacks_nothing(old: Path) -> None:
    """Step 13 was the last of a plan, but after a checkpoint was lost it was done again under one that skips it."""
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["extensions"] = [{"after": 13, "budget": 13 * 128, "horizon": None}]
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert open_run(old).lost == []
