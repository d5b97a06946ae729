"""The run folder, a public format: what a run leaves behind, and how it is read again.

config.yaml       the resolved config          manifest.json   versions, fingerprints, device, argv
metrics.jsonl     one object a line            summary.json    final and peak figures, written last
checkpoints/step-N/                            report/
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from rewarm.cache import make_dir, write_durably, write_json
from rewarm.config import Config
from rewarm.errors import DataError

Metrics = Mapping[str, float]


class RunFolder:
    """One run's folder. Reading needs only the files that are there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

    def create(self) -> None:
        """Make the folder. Raises `UserError` where it cannot be written."""
        make_dir(self.path, "run_dir")
        make_dir(self.checkpoints, "run_dir")

    def exists(self) -> bool:
        """Return whether a run was begun here."""
        return (self.path / "config.yaml").is_file()

    def read_config(self) -> dict[str, Any]:
        """Return the resolved config as plain values."""
        return self._load("config.yaml", yaml.safe_load) or {}

    def write_config(self, config: Config) -> None:
        """Write the resolved config."""
        text = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
        write_durably(self.path / "config.yaml", text.encode())

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest, empty where there is none."""
        return self._load("manifest.json", json.loads) or {}

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest."""
        write_json(self.path / "manifest.json", dict(manifest))

    def read_summary(self) -> dict[str, Any] | None:
        """Return the summary, or None where the run has not finished."""
        summary: dict[str, Any] | None = self._load("summary.json", json.loads)
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: from now on the run counts as finished."""
        write_json(self.path / "summary.json", dict(summary))

    def _load(self, name: str, parse: Any) -> Any:  # noqa: ANN401 - YAML and JSON values
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return parse(path.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error

    def append_metrics(self, metrics: Metrics) -> None:
        """Append one line. A value that is not finite is written as null: JSON has no other word for it."""
        safe = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        path = self.path / "metrics.jsonl"
        with path.open("ab") as file:
            file.write((json.dumps(safe) + "\n").encode())

    def mend_metrics(self) -> None:
        """End a last line that a killed process left unfinished, so that the next one stands on its own."""
        path = self.path / "metrics.jsonl"
        if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")

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
