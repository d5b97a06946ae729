"""Sweeps in which Optuna chooses the runs, for both final losses: a study that several commands share.

The study lies in the sweep's folder. A trial that was interrupted is done first, in the folder that it had.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from rewarm.commands.arms import Swept
from rewarm.commands.launch import Job, Source
from rewarm.config.schema import SIDES
from rewarm.errors import UserError
from rewarm.runs.run import read_summary
from rewarm.storage import exclusive

if TYPE_CHECKING:
    import optuna

DIGITS = 4
"""Significant digits of a number that is chosen out of an interval."""
log = logging.getLogger(__name__)


def distribution(override: Override) -> optuna.distributions.BaseDistribution:
    """Return what Optuna may choose from. Raises `UserError` for a sweep that it cannot."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, ChoiceSweep) or (isinstance(value, RangeSweep) and "log" not in value.tags):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None
        assert high is not None
        if not low < high:
            raise UserError(f"{override.input_line}: the interval ends before it begins")
        if isinstance(low, int) and isinstance(high, int) and "float" not in value.tags:
            return IntDistribution(low, high, log="log" in value.tags)
        return FloatDistribution(float(low), float(high), log="log" in value.tags)
    raise UserError(f"{override.input_line}: sweep.trials takes choice(…), range(…) and interval(…)")


class Study(Source):
    """Runs that Optuna chooses one after the other, until the study has as many as are asked for."""

    def __init__(self, swept: Swept, trials: int) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise UserError(f"sweep.trials={trials}: Optuna is not installed; pip install 'rewarm[optuna]'")
        import optuna
        from optuna.trial import TrialState

        if not swept.several:
            raise UserError(f"sweep.trials={trials}: there is nothing to choose; give a key several values")
        optuna.logging.set_verbosity(logging.WARNING)
        self._swept, self._trials = swept, trials
        self._keys = {o.get_key_element(): distribution(o) for o in swept.several}
        swept.folder.mkdir(parents=True, exist_ok=True)
        self._workers = workers = _Workers(swept.folder / ".workers")
        self._study = optuna.create_study(
            study_name="rewarm",
            storage=f"sqlite:///{swept.folder / 'optuna.db'}",
            directions=["minimize"] * len(SIDES),
            load_if_exists=True,
        )
        if workers.are_none():  # trials that count as running were interrupted: the next ones to be done
            for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
                self._study.enqueue_trial(trial.params)
                self._study.tell(trial.number, state=TrialState.PRUNED)
        workers.join()
        self._asked: dict[str, list[int]] = {}
        """The trials of each run that has not ended; several where the same values were chosen again meanwhile."""

    def close(self) -> None:
        """Work on the study no more."""
        self._workers.close()

    def next(self) -> Job | None:
        """Return the run of the next trial; None where the study has enough."""
        while (trial := self._ask()) is not None:
            arm = self._swept.arm([f"{key}={_text(value)}" for key, value in trial.params.items()])
            numbers = self._asked.setdefault(arm.name, [])
            numbers.append(trial.number)
            if len(numbers) == 1:
                return arm
        return None

    def _ask(self) -> Any:  # noqa: ANN401 - Optuna is an extra
        """Return the next trial; None where there are enough, those that other commands asked for among them."""
        from optuna.trial import TrialState

        counted = (TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING)
        with exclusive(self._swept.folder / ".asking", wait=True):  # else two that count at once both ask
            enough = len(self._study.get_trials(deepcopy=False, states=counted)) >= self._trials
            return None if enough else self._study.ask(self._keys)

    def all(self) -> Sequence[Job]:
        """Return the runs of all trials that are left, chosen before the first of them has ended."""
        return list(iter(self.next, None))

    def to_leave(self) -> Sequence[str]:
        """Return no run: each is an answer only at its end."""
        return ()

    def done(self, ended: Job, code: int) -> None:
        """Tell the study what a run came to. One that diverged is an answer too; one that was stopped is none."""
        from optuna.trial import TrialState

        summary = read_summary(ended.folder)
        ends = [summary[side]["final"] if summary else None for side in SIDES]
        losses = [loss for loss in ends if loss is not None and math.isfinite(loss)]
        for number in self._asked.pop(ended.name):
            if code == 0 and len(losses) == len(ends):
                self._study.tell(number, losses)
            elif code < 128 and code != 75:  # what was stopped stays as it is: the next command takes it up
                self._study.tell(number, state=TrialState.FAIL)


def _text(value: Any) -> str:  # noqa: ANN401 - a number or a word
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


class _Workers:
    """Those who work on a study: each holds a lock that several can hold, and the lock dies with its owner."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def are_none(self) -> bool:
        """Return whether nobody else works on the study; if so, nobody can begin before `join`."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # others hold it, or there are no locks here: better then to redo nothing
            return False
        return True

    def join(self) -> None:
        """Work on the study until this process ends."""
        with suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def close(self) -> None:
        """Work on the study no more."""
        self._file.close()
