"""Trackers: where metrics go beside `metrics.jsonl`. A tracker that fails never stops a run."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import netrc
import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rewarm.config.schema import Config

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


def wandb_mode(mode: str) -> str:
    """Return W&B's mode for ours: `auto` is online with an account, offline without."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if has_wandb_account() else "offline")


class WandbTracker:
    """Weights & Biases, with tokens as the x axis; offline, and without a prompt, where there is no account.

    The run that is continued is continued there as well: `run_id` is its name in W&B. Offline, each part lies in a
    folder of its own, and `wandb sync` joins those of one name.
    """

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:
        import wandb

        mode = wandb_mode(config.tracker.mode)
        if mode == "offline":
            log.info("W&B: offline, into %s/wandb; `wandb sync` uploads it", folder)
        self._run = wandb.init(
            project=config.tracker.project,
            entity=config.tracker.entity,
            id=run_id,
            resume="allow",
            name=folder.name,
            group=folder.resolve().parent.name,  # the sweep
            job_type=config.arm.name or "run",
            tags=[*config.tracker.tags, *filter(None, [config.experiment.name, config.model.name])],
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


class TensorboardTracker:
    """TensorBoard event files in the run folder; a step there is a number of tokens."""

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:  # noqa: ARG002 - all trackers are made alike
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RuntimeError("needs tensorboard; pip install 'rewarm[tensorboard]'") from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, metrics: Mapping[str, float]) -> None:
        """Log a step."""
        for key, value in metrics.items():
            if key != "tokens" and math.isfinite(value):
                self._writer.add_scalar(key, value, int(metrics["tokens"]))

    def finish(self, summary: Mapping[str, Any] | None) -> None:  # noqa: ARG002 - it has no place for a summary
        """Close the files."""
        self._writer.close()


TRACKERS: dict[str, Callable[[Config, Path, str], Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorboardTracker,
}


class _Guarded(threading.Thread):
    """A tracker in a thread of its own: whatever it does there, the run goes on.

    What is logged waits in a queue; after an error, or while a tracker hangs with the queue full, it is dropped.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        super().__init__(name=f"tracker-{name}", daemon=True)  # `cli` knows by the name who is left behind
        self._tracker_name, self._make = name, make
        self._actions: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MOST_WAITING)
        self.start()

    def run(self) -> None:
        try:
            tracker = self._make()
            while (action := self._actions.get()) is not None:
                action(tracker)
        except Exception as error:
            log.warning("tracker %s is off: %s", self._tracker_name, error)

    def do(self, action: Callable[[Tracker], None] | None) -> None:
        """Have `action` done on the tracker, after those before it; None ends the thread."""
        with contextlib.suppress(queue.Full):
            self._actions.put_nowait(action)

    def end(self, seconds: float) -> None:
        """Wait until all is done, but not for ever."""
        self.do(None)
        self.join(seconds)
        if self.is_alive():
            log.warning("tracker %s: does not end; left behind after %g s", self._tracker_name, seconds)


MOST_WAITING = 10_000
"""Lines of metrics that may wait for a tracker."""


class Trackers:
    """All trackers of a run. One that raises or hangs is dropped with a warning; training goes on."""

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:
        self._patience = config.tracker.patience
        self._trackers = [
            _Guarded(name, functools.partial(TRACKERS[name], config, folder, run_id)) for name in config.tracker.names
        ]

    def log(self, metrics: Mapping[str, float]) -> None:
        """Log a step to every tracker."""
        for tracker in self._trackers:
            tracker.do(lambda t: t.log(metrics))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Close every tracker, in no more than the time that the config grants it."""
        for tracker in self._trackers:
            tracker.do(lambda t: t.finish(summary))
            tracker.end(self._patience)
        self._trackers.clear()
