"""Why a run of a sweep was left early: `stopped.json`, which its sweep writes beside the run's own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rewarm.storage import write_json

STOPPED = "stopped.json"


@dataclass(frozen=True)
class Reason:
    """Why an arm cannot win. All losses are final ones, in nats a token."""

    predicted: dict[str, float]
    """Of this arm, for each side."""
    errors: dict[str, float]
    """Standard deviations of these."""
    better: str
    """The finished arm that beats it most often."""
    measured: dict[str, float]
    """Of that arm."""

    def __str__(self) -> str:
        ends = (f"{side} {loss:.3f} (± {self.errors[side]:.3f})" for side, loss in self.predicted.items())
        better = (f"{side} {loss:.3f}" for side, loss in self.measured.items())
        return f"cannot win: {', '.join(ends)} predicted, and {self.better} came to {', '.join(better)}"


@dataclass(frozen=True)
class Stopped:
    """That a run was left early, after so many steps."""

    step: int
    reason: Reason

    def __str__(self) -> str:
        return f"left at step {self.step}; {self.reason}"


def write_stopped(folder: Path, stopped: Stopped) -> None:
    """Write down in the folder of a run that its sweep left it."""
    write_json(folder / STOPPED, {"step": stopped.step} | asdict(stopped.reason))


def parse_stopped(values: Mapping[str, Any]) -> Stopped:
    """Return what `stopped.json` says. Raises `ValueError` for what no sweep has written."""
    try:
        losses = [{k: float(v) for k, v in values[key].items()} for key in ("predicted", "errors", "measured")]
        reason = Reason(losses[0], losses[1], str(values["better"]), losses[2])
        found = Stopped(int(values["step"]), reason)
        str(found)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{error!r}") from error
    return found
