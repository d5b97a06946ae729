"""What W&B and TensorBoard are given, read back from their files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewarm.commands.report import report
from rewarm.report.merging import Row, as_json
from rewarm.storage import write_json
from rewarm.training.run import run as train
from tests.conftest import make_config
from tests.report.runs import write_run

# wandb imports what Python has deprecated, and leaves a file open at exit.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def frames(content: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log: blocks of 32 KiB, before each part its CRC, length and type."""
    header, block, position, parts = 7, 32768, 7, []
    assert content[:4] == b":W&B"
    while position + header <= len(content):
        if block - position % block < header:
            position += block - position % block
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + header])
        if kind == 0:
            break
        parts.append(content[position + header : position + header + length])
        position += header + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def records(folder: Path) -> list[Any]:
    """Return the records of the one offline W&B run under `folder`, as W&B's own messages.

    W&B's Python package has the messages and no longer a reader of the file around them.
    """
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its process writes the file, and has written all of it when it has ended
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found = []
    for frame in frames(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(frame)
        found.append(record)
    return found


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_a_report_goes_to_wandb_with_figures_charts_table_and_files(tmp_path: Path) -> None:
    for arm in ("cosine_0.5", "cosine_1", "constant"):
        run = write_run(tmp_path / "sweep", arm)
    row = Row("alpha=0.5", {"upstream/loss": 2.2, "downstream/loss": 2.4}, {"builtin": 0.5, "end": 0.5}, 0.5)
    (run.path / "report").mkdir()
    write_json(run.path / "report" / "merge.json", as_json([row], [], None, ["Said."]))
    report([str(tmp_path / "sweep"), f"out={tmp_path / 'out'}", "wandb=true"])
    found = records(tmp_path / "out")
    (begun,) = [record.run for record in found if record.HasField("run")]
    assert (begun.run_group, begun.job_type, begun.project) == ("sweep", "report", "rewarm")
    logged = {item.key or ".".join(item.nested_key) for record in found for item in record.history.item}
    assert {"figures/figure-2", "charts/tradeoff_table", "arms", "averages"} <= {
        name.split(".")[0] for name in logged
    }
    artifacts = [record.request.log_artifact.artifact for record in found if record.request.HasField("log_artifact")]
    artifacts += [record.artifact for record in found if record.HasField("artifact")]
    files = {entry.path for artifact in artifacts for entry in artifact.manifest.contents}
    assert {"index.html", "summary.csv", "figure-2.svg"} <= files
    summary = {item.key: json.loads(item.value_json) for record in found for item in record.summary.update}
    assert summary["claim 2"] == "undecided"


def test_tensorboard_gets_the_same_names_over_tokens(small: Any) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'rewarm[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small("init=scratch", "tracker=tensorboard")
    assert config.tracker.names == make_config("tracker=tensorboard").tracker.names == ["tensorboard"]
    train(config)
    events = EventAccumulator(f"{config.run_dir}/tensorboard")
    events.Reload()
    assert {"upstream/loss", "downstream/loss", "lr", "train/loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("upstream/loss")] == [0, 640, 1280]
