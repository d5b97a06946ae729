"""Continual pre-training of language models: re-warm the learning rate, and measure what it costs.

For Python programs: `lr` and `ScheduleSpec`, `LRScheduler` for torch, `Callback` for the Trainer of transformers, and
`read_runs` for pandas. Each is imported when it is first used, so that `import rewarm` takes no time.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "lr": "rewarm.schedules",
    "lr_curve": "rewarm.schedules",
    "ScheduleSpec": "rewarm.schedules",
    "LRScheduler": "rewarm.api.scheduler",
    "Callback": "rewarm.api.callback",
    "read_runs": "rewarm.api.frames",
}
__all__ = ["Callback", "LRScheduler", "ScheduleSpec", "__version__", "lr", "lr_curve", "read_runs"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any of those in `_PLACES`
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'rewarm' has no attribute {name!r}")
