"""Trackers: where metrics go beside `metrics.jsonl`. A tracker that fails never stops a run."""

from __future__ import annotations

import logging
import math
import netrc
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rewarm.config import Config

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes metrics and, at the end, a summary."""

    def log(self, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step, under the names of `metrics.jsonl`."""
        ...

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Take the summary (None: the run was interrupted) and close."""
        ...


def has_wandb_account() -> bool:
    """Return whether W&B credentials are at hand, without asking anyone."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbTracker:
    """Weights & Biases, with tokens as the x axis; offline, and without a prompt, where there is no account."""

    def __init__(self, config: Config, folder: Path) -> None:
        import wandb

        mode = config.tracker.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_account() else "offline")
        if mode == "offline":
            log.info("W&B: offline, into %s/wandb; `wandb sync` uploads it", folder)
        self._run = wandb.init(
            project=config.tracker.project,
            entity=config.tracker.entity,
            name=folder.name,
            group=config.experiment.name or folder.parent.name,
            job_type=config.arm.name or "run",
            tags=config.tracker.tags,
            config=asdict(config),
            dir=str(folder),
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def log(self, metrics: Mapping[str, float]) -> None:
        """Log a step."""
        self._run.log({k: v for k, v in metrics.items() if math.isfinite(v)})

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Close the W&B run; the summary goes into its own."""
        if summary:
            self._run.summary.update({"result": dict(summary)})
        self._run.finish(exit_code=0 if summary else 1)


TRACKERS = {"wandb": WandbTracker}


class Trackers:
    """All trackers of a run. One that raises is dropped with a warning; training goes on."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._trackers: dict[str, Tracker] = {}
        for name in config.tracker.names:
            try:
                self._trackers[name] = TRACKERS[name](config, folder)
            except Exception as error:
                log.warning("tracker %s is off: %s", name, error)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Log a step to every tracker."""
        self._each(lambda tracker: tracker.log(metrics))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Close every tracker."""
        self._each(lambda tracker: tracker.finish(summary))
        self._trackers.clear()

    def _each(self, action: Any) -> None:  # noqa: ANN401 - a callable on a tracker
        for name, tracker in list(self._trackers.items()):
            try:
                action(tracker)
            except Exception as error:
                log.warning("tracker %s is off: %s", name, error)
                del self._trackers[name]
