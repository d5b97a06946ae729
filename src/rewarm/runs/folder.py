"""The run folder, a public format: what a run leaves behind. `run.py` reads it again.

config.yaml       the resolved config          manifest.json   versions, fingerprints, device, argv
metrics.jsonl     one object a line            summary.json    final and peak figures, written last
checkpoints/step-N/                            report/
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from rewarm.config.schema import Config
from rewarm.errors import UserError
from rewarm.runs.checkpoint import CHECKPOINTS
from rewarm.runs.manifest import Manifest
from rewarm.runs.metrics import read_content, read_lines
from rewarm.storage import exclusive, make_dir, storing, write_durably

CONFIG, MANIFEST, METRICS, SUMMARY = "config.yaml", "manifest.json", "metrics.jsonl", "summary.json"
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's is ten times as fast, where it is there
Line = Mapping[str, float]
"""What is logged at a step, by name."""

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=://)[^/@\s]+(?=@)")


def redacted(text: str) -> str:
    """Return `text` without what is secret: environment values with a telling name, Hub tokens, logins in URLs."""
    secrets = [v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= 12 and v[0] != "/"]
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _SECRET_VALUE.sub("***", text)


def config_text(config: Config) -> str:
    """Return what `config.yaml` holds of a config."""
    return redacted(yaml_text(asdict(config)))


def yaml_text(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML, in their order."""
    return str(yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _line(metrics: Line) -> str:
    """Return a line of `metrics.jsonl`. What is not finite becomes null: JSON has no other word for it."""
    return json.dumps({key: value if math.isfinite(value) else None for key, value in metrics.items()}) + "\n"


class RunFolder:
    """One run's folder, for the process that trains: it alone writes there, under a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def create(self) -> None:
        """Make the folder. Raises `UserError` where it cannot be written."""
        make_dir(self.path, "run_dir")
        make_dir(self.checkpoints, "run_dir")
        with storing(self._lock):
            self._lock.touch()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from this run; the lock dies with its owner. Raises `UserError` if it is taken."""
        with exclusive(self._lock, wait=False) as got:
            if not got:
                owner = self._lock.read_text(errors="replace") or "another process"
                raise UserError(f"run_dir={self.path}: is in use by {owner}; wait for it, or choose another run_dir")
            for left_by_killed in self.path.glob(".*.tmp"):
                left_by_killed.unlink(missing_ok=True)
            yield

    def exists(self) -> bool:
        """Return whether a run was begun here."""
        return os.path.lexists(self.path / CONFIG)

    def write_config(self, config: Config) -> None:
        """Write the resolved config."""
        self._write(CONFIG, config_text(config))

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest."""
        self._write(MANIFEST, json.dumps(manifest.values(), indent=1, ensure_ascii=False) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: from now on the run counts as finished."""
        self._write(SUMMARY, json.dumps(dict(summary), indent=1, ensure_ascii=False) + "\n")

    def remove_summary(self) -> None:
        """Take the summary away: the run counts as unfinished again."""
        with storing(self.path / SUMMARY):
            (self.path / SUMMARY).unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        with storing(self.path / name):
            write_durably(self.path / name, redacted(text).encode())

    def append_metrics(self, metrics: Line) -> None:
        """Append one line."""
        path = self.path / METRICS
        with storing(path), path.open("ab") as file:
            file.write(_line(metrics).encode())

    def sync_metrics(self) -> None:
        """Make the lines so far durable, so that no checkpoint outlives the metrics before it."""
        path = self.path / METRICS
        if path.is_file():
            with storing(path), path.open("rb") as file:
                os.fsync(file.fileno())

    def keep_metrics(self) -> None:
        """Keep a copy of the metrics as they are, damage and all."""
        number = 1
        while (copy := self.path / f"{METRICS}.damaged-{number}").exists():
            number += 1
        with storing(copy):
            write_durably(copy, read_content(self.path / METRICS))

    def trim_metrics(self, step: int) -> None:
        """Drop what was logged after `step`, from where the run goes on, and lines that cannot be read.

        Of a step that was logged twice the later line stays.
        """
        path = self.path / METRICS
        lines = read_lines(read_content(path))
        kept = {int(values["step"]): line for _, line, values in lines if values and values["step"] <= step}
        if path.is_file():
            with storing(path):
                write_durably(path, b"".join(kept[at] + b"\n" for at in sorted(kept)))
