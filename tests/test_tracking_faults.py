"""A tracker can fail in any way and at any time, and training does not notice."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rewarm import tracking
from rewarm.config.schema import Config
from rewarm.tracking import Trackers
from tests.conftest import rewarm
from tests.training.killing import TINY

Small = Callable[..., Config]


class Faulty:
    """A tracker that raises, or never comes back, in one of its methods."""

    def __init__(self, where: str, kind: str, taken: list[Any], release: threading.Event) -> None:
        self._where, self._kind, self._taken, self._release = where, kind, taken, release
        self._fail("init")

    def _fail(self, where: str) -> None:
        if where == self._where:
            if self._kind == "hang":
                self._release.wait()
            else:
                raise OSError(28, "No space left on device") if self._kind == "disk" else KeyError("what?")

    def log(self, metrics: Mapping[str, float]) -> None:
        self._fail("log")
        self._taken.append(dict(metrics))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        self._fail("finish")
        self._taken.append(summary)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name.startswith("tracker-"):
            thread.join()


def use(monkeypatch: pytest.MonkeyPatch, release: threading.Event, where: str = "", kind: str = "") -> list[Any]:
    taken: list[Any] = []
    monkeypatch.setitem(tracking.TRACKERS, "wandb", lambda *_: Faulty(where, kind, taken, release))
    return taken


@pytest.mark.parametrize("kind", ["raise", "disk", "hang"])
@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failing_tracker_is_dropped_with_a_warning(
    small: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    release: threading.Event,
    caplog: pytest.LogCaptureFixture,
    where: str,
    kind: str,
) -> None:
    use(monkeypatch, release, where, kind)
    trackers = Trackers(small("tracker=wandb", "tracker.patience=0.2"), tmp_path, "id")
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            trackers.log({"step": step})
        trackers.finish({"steps": 3})
    assert ("left behind" if kind == "hang" else "tracker wandb is off") in caplog.text
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("tracker-")]
    assert left == (["tracker-wandb"] if kind == "hang" else [])


def test_a_tracker_gets_everything_in_order(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    taken = use(monkeypatch, release)
    trackers = Trackers(small("tracker=wandb"), tmp_path, "id")
    for step in range(100):
        trackers.log({"step": step})
    trackers.finish({"steps": 100})
    assert taken == [*({"step": step} for step in range(100)), {"steps": 100}]


def test_a_server_that_never_answers_does_not_keep_the_command_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and says nothing
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        done = rewarm(
            *("train", *TINY, "budget=384", "tracker=wandb", "tracker.patience=0.5"),
            f"run_dir={tmp_path / 'run'}",
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr
    assert "tracker wandb: does not end; left behind after 0.5 s" in done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 3
    assert os.environ["WANDB_API_KEY"] not in (tmp_path / "run/manifest.json").read_text()
