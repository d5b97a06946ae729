"""The run folder, a public format: what a run leaves behind, and how it is read again.

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

from rewarm.cache import exclusive, make_dir, storing, write_durably
from rewarm.config import Config
from rewarm.errors import DataError, UserError

Metrics = Mapping[str, float]

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
    return redacted(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True))


def _line(metrics: Metrics) -> str:
    """Return a line of `metrics.jsonl`. What is not finite becomes null: JSON has no other word for it."""
    return json.dumps({key: value if math.isfinite(value) else None for key, value in metrics.items()}) + "\n"


class RunFolder:
    """One run's folder. Reading needs only the files that are there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

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
        return (self.path / "config.yaml").is_file()

    def read_config(self) -> dict[str, Any]:
        """Return the resolved config as plain values."""
        return self._load("config.yaml", yaml.safe_load) or {}

    def write_config(self, config: Config) -> None:
        """Write the resolved config."""
        self._write("config.yaml", config_text(config))

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest, empty where there is none."""
        return self._load("manifest.json", json.loads) or {}

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest."""
        self._write("manifest.json", json.dumps(dict(manifest), indent=1, ensure_ascii=False) + "\n")

    def read_summary(self) -> dict[str, Any] | None:
        """Return the summary, or None where the run has not finished."""
        summary: dict[str, Any] | None = self._load("summary.json", json.loads)
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: from now on the run counts as finished."""
        self._write("summary.json", json.dumps(dict(summary), indent=1, ensure_ascii=False) + "\n")

    def remove_summary(self) -> None:
        """Take the summary away: the run counts as unfinished again."""
        with storing(self.path / "summary.json"):
            (self.path / "summary.json").unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        with storing(self.path / name):
            write_durably(self.path / name, redacted(text).encode())

    def _load(self, name: str, parse: Any) -> Any:  # noqa: ANN401 - YAML and JSON values
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return parse(path.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error

    def append_metrics(self, metrics: Metrics) -> None:
        """Append one line."""
        path = self.path / "metrics.jsonl"
        with storing(path), path.open("ab") as file:
            file.write(_line(metrics).encode())

    def sync_metrics(self) -> None:
        """Make the lines so far durable, so that no checkpoint outlives the metrics before it."""
        path = self.path / "metrics.jsonl"
        if path.is_file():
            with storing(path), path.open("rb") as file:
                os.fsync(file.fileno())

    def trim_metrics(self, step: int) -> None:
        """Drop what was logged after `step`, from where the run goes on, and lines left unfinished."""
        path = self.path / "metrics.jsonl"
        if path.is_file():
            kept = "".join(_line(row) for row in self.read_metrics() if row["step"] <= step)
            with storing(path):
                write_durably(path, kept.encode())

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the metrics in order of steps, each step once: of a step logged twice, the later line.

        A line that a killed process left unfinished is passed over; null comes back as NaN.
        """
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        by_step: dict[int, dict[str, float]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                step = int(row["step"])
            except (ValueError, KeyError, TypeError):
                continue
            by_step[step] = {key: math.nan if value is None else value for key, value in row.items()}
        return [by_step[step] for step in sorted(by_step)]
