"""Hydra's Optuna sweeper over a study that several commands share and that any of them goes on with.

The plugin's sweeper does `n_trials` each time that it is called, and forgets a trial that was interrupted. Here it is
called for a few at a time, until the study as a whole has `n_trials`, and interrupted trials are done first.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from rewarm.errors import PreemptedError, UserError

PLUGIN = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
DEFAULTS = {
    "direction": "[minimize,minimize]",  # final upstream loss, final downstream loss
    "storage": "sqlite:///${hydra.sweep.dir}/optuna.db",
    "study_name": "rewarm",
    "n_jobs": "1",
    "max_failure_rate": "1.0",  # a run that diverges is an answer too
}
"""What rewarm sets of the plugin's options where the command line does not. `n_trials` counts for the whole study."""


def prepare(given: Collection[str]) -> list[str]:
    """Return the overrides that make a sweep a study, but for `given` keys. Raises `UserError` without the extra."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError("hydra/sweeper=optuna: its libraries are not installed; pip install 'rewarm[optuna]'")
    # Hydra makes sweepers only of classes inside `hydra_plugins`: in its register ours takes the place of that one.
    Plugins.instance().class_name_to_class[PLUGIN] = StudySweeper
    options = {f"hydra.sweeper.{name}": value for name, value in DEFAULTS.items()}
    return [f"{key}={value}" for key, value in options.items() if key not in given]


class StudySweeper(Sweeper):
    """The plugin's sweeper, called until the study is complete. All options are the plugin's own."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - numbers, names and a sampler
        # Of SQLAlchemy 1.4, which the plugin's Optuna needs: it warns of its own successor.
        os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper

        self._options = options
        self._plugin = OptunaSweeper(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hand everything on to the plugin, with a launcher that lets an interrupted run end the sweep."""
        self._plugin.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        launcher = self._plugin.sweeper.launcher
        assert launcher is not None, "the plugin has just set it up"
        self._plugin.sweeper.launcher = Interruptible(launcher)
        self._folder = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> None:
        """Do trials until the study has all that it is to have. Raises the error of a run that was interrupted."""
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(logging.WARNING)
        for name in ("hydra", "hydra_plugins"):  # what they say is in the tables at the end
            logging.getLogger(name).setLevel(logging.WARNING)
        options, sweeper = self._options, self._plugin.sweeper
        self._folder.mkdir(parents=True, exist_ok=True)
        crew = _Crew(self._folder / ".workers")
        study = optuna.create_study(
            study_name=options["study_name"],
            storage=options["storage"],
            directions=sweeper._get_directions(),  # noqa: SLF001 - what the plugin makes of `direction`
            load_if_exists=True,
        )
        if crew.is_alone():  # trials that count as running were interrupted: the next ones to be done
            for trial in study.get_trials(states=(TrialState.RUNNING,)):
                study.enqueue_trial(trial.params)
                study.tell(trial.number, state=TrialState.PRUNED)
        crew.join()
        ended = (TrialState.COMPLETE, TrialState.FAIL)
        while (left := options["n_trials"] - len(study.get_trials(deepcopy=False, states=ended))) > 0:
            sweeper.n_trials = min(left, options["n_jobs"])
            self._plugin.sweep(arguments)


class Interruptible(Launcher):
    """A launcher that raises what interrupted one of its runs, so that no further ones are asked for."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Do nothing: the launcher inside is ready."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs. Raises the `PreemptedError` of one that was asked to stop."""
        returns: Sequence[JobReturn] = self._launcher.launch(job_overrides, initial_job_idx)
        for job in returns:
            try:
                _ = job.return_value
            except PreemptedError:
                raise
            except Exception:  # noqa: S112 - the plugin counts it as a failed trial
                continue
        return returns


class _Crew:
    """Those who work on a study: each holds a lock that several can hold, and the lock dies with its owner."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def is_alone(self) -> bool:
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
