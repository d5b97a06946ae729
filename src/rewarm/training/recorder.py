"""Where the metrics of a run go while it trains: its folder, the trackers, a progress bar."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Self

from tqdm import tqdm

from rewarm.config.plan import Plan
from rewarm.config.schema import SIDES, Config
from rewarm.runs.folder import METRICS, Line, RunFolder
from rewarm.runs.metrics import read_content, read_lines, read_metrics
from rewarm.runs.summary import summarize
from rewarm.text import marked
from rewarm.tracking import Trackers

log = logging.getLogger(__name__)

STRANGE = 1.0
"""Nats by which a proxy of old data is known less than the new data, from which on it is hardly one."""


class Recorder:
    """Takes what a process has to tell. This one, of any process but the first, keeps nothing of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def advance(self, tokens: int) -> None:
        """Take note that so many more tokens were trained on."""

    def write(self, metrics: Line) -> None:
        """Take a line of metrics."""

    def finish(self) -> Mapping[str, Any] | None:
        """Take note that the run has ended, and return its summary."""
        return None


class RunRecorder(Recorder):
    """Writes to a run's folder, and feeds the trackers, which are closed at the end of the block."""

    def __init__(
        self, config: Config, plan: Plan, folder: RunFolder, run_id: str, tokens: int, *, begins: bool
    ) -> None:
        self._folder = folder
        self._proxy = config.proxied
        self._trackers = Trackers(config, folder.path, run_id)
        if begins:  # what was trained by the run that this one begins as; trackers have not seen it
            for _, _, values in read_lines(read_content(folder.path / METRICS)):
                self._trackers.log(values or {})
        self._summary: Mapping[str, Any] | None = None
        total = plan.steps * plan.tokens_per_step
        # Without a terminal there is no bar, but a line in the log for each evaluation.
        self._bar = tqdm(total=total, initial=tokens, unit="tok", unit_scale=True, disable=None)

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._trackers.finish(self._summary)

    def advance(self, tokens: int) -> None:
        """Move the bar."""
        self._bar.update(tokens)

    def write(self, metrics: Line) -> None:
        """Write a line to `metrics.jsonl` and to the trackers."""
        self._folder.append_metrics(metrics)
        self._trackers.log(metrics)
        if "train/loss" in metrics:
            self._bar.set_postfix(loss=f"{metrics['train/loss']:.3f}", lr=f"{metrics['lr']:.2e}", refresh=False)
            if self._bar.disable and f"{SIDES[0]}/loss" in metrics:
                log.info("%s", marked(describe(metrics), proxy=self._proxy))
        if self._proxy and metrics["step"] == 0 and (strange := strange_proxy(metrics)):
            log.warning("%s", strange)

    def finish(self) -> Mapping[str, Any]:
        """Write the summary: from now on the run counts as finished."""
        self._summary = summarize(read_metrics(self._folder.path / METRICS))
        self._folder.write_summary(self._summary)
        return self._summary


def strange_proxy(metrics: Line) -> str | None:
    """Return the warning that a proxy cannot be like the old data, by its loss before training; None where it may."""
    old, new = (metrics[f"{side}/loss"] for side in SIDES)
    if not old > new + STRANGE:
        return None
    return (
        f"data.upstream=proxy: before training the model's loss is {old:.2f} nats a token on the proxy and {new:.2f} "
        f"on the new data: that is hardly text of the kind that it was trained on, perhaps of another language; give "
        f"other text with data.proxy=PATH"
    )


def describe(metrics: Line) -> str:
    """Return an evaluation in one line."""
    sides = ", ".join(f"{side} {metrics[f'{side}/loss']:.4f}" for side in SIDES)
    speed = metrics["tokens_per_second"]
    known = f", {speed:,.0f} tokens/s" if math.isfinite(speed) else ""
    return f"{metrics['tokens']:,} tokens: loss {sides}, lr {metrics['lr']:.3g}{known}"
