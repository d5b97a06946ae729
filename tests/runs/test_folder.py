"""The run folder: what is written, what is read again, and what must never stand in it."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.config.schema import Config
from rewarm.errors import StorageError, UserError
from rewarm.runs.folder import RunFolder, redacted
from rewarm.runs.manifest import Manifest
from tests.conftest import rewarm


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def rows(folder: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def test_what_is_not_finite_is_null(folder: RunFolder) -> None:
    folder.append_metrics({"step": 1, "train/loss": 0.1 + 0.2})
    folder.append_metrics({"step": 2, "train/loss": math.inf})
    assert rows(folder) == [{"step": 1, "train/loss": 0.1 + 0.2}, {"step": 2, "train/loss": None}]


def test_a_resumed_run_has_each_step_once_even_in_the_file(folder: RunFolder) -> None:
    for step in range(5):
        folder.append_metrics({"step": step, "tokens": 9 * step, "train/loss": 1.0})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')
    folder.trim_metrics(3)
    folder.append_metrics({"step": 4, "tokens": 36, "train/loss": 2.0})
    assert [(row["step"], row["train/loss"]) for row in rows(folder)] == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2)]


def test_the_lock_names_its_owner_and_ends_with_it(folder: RunFolder) -> None:
    with folder.lock(), pytest.raises(UserError, match=f"is in use by process {os.getpid()} on "), folder.lock():
        pass
    with folder.lock():
        pass


def test_a_full_disk_is_one_clear_line(folder: RunFolder) -> None:
    (folder.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"metrics.jsonl: cannot be written \(No space left on device\); what"):
        folder.append_metrics({"step": 1})


def test_secrets_never_reach_the_folder(
    folder: RunFolder, small: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2)
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrst")
    secrets = ("0123456789abcdef", "hf_abcdefghijklmnopqrst", "pass:word", "hf_ZYXWVUTSRQPONMLKJIHG")
    text = f"{secrets[0] * 2} {secrets[1]} https://user:pass:word@host/x {secrets[3]}"
    assert not any(secret in redacted(text) for secret in secrets)
    folder.write_config(small(f"data.upstream='https://user:pass:word@host/{secrets[0] * 2}'", "tracker=none"))
    folder.write_manifest(Manifest(other={"argv": text.split()}))
    for path in folder.path.glob("*.*"):
        assert not any(secret in path.read_text() for secret in secrets), path
    assert "https://***@host/***" in (folder.path / "config.yaml").read_text()


def test_nothing_of_a_run_is_writable_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARM_CACHE", str(tmp_path / "cache"))
    previous = os.umask(0)
    try:
        done = rewarm(
            "train", "init=scratch", "tracker=none", "data.upstream=/no/such", f"run_dir={tmp_path / 'run'}"
        )
    finally:
        os.umask(previous)
    assert done.returncode in (1, 2)
    made = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    assert made
    assert not [path for path in made if path.stat().st_mode & stat.S_IWOTH]
