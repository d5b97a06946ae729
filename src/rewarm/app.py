"""The verbs that take overrides, driven by Hydra."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from rewarm import sweeps
from rewarm.checks import check, from_dict, from_hydra
from rewarm.compose import explain
from rewarm.config import Config, conf_dir
from rewarm.errors import PreemptedError, RewarmError, UserError, nearest, tell
from rewarm.rundir import RunFolder

FLAGS = (  # those of Hydra's own parser
    *("--multirun", "-m", "--run", "-r", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i"),
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--shell-completion", "-sc"),
    *("--hydra-help", "--version", "--experimental-rerun"),
)


def _config_of(cfg: DictConfig) -> Config:
    """Return the checked config; in a sweep, `run_dir` becomes the folder of this one run.

    Where a sweep runs one process for each core, a run gets one thread.
    """
    config = from_hydra(cfg)
    job = HydraConfig.get()
    if job.mode != RunMode.MULTIRUN:
        return config
    if job.runtime.choices["hydra/launcher"] == "joblib" and config.train.threads is None:
        config = replace(config, train=replace(config.train, threads=1))
    return replace(config, run_dir=job.runtime.output_dir)


def _train(cfg: DictConfig) -> object:
    config = _config_of(cfg)
    if config.dry_run:
        from rewarm.estimate import describe

        sys.stdout.write(describe(config))
        return None
    from rewarm.training.run import run

    return run(config)


def _as_the_run_was(config: Config) -> Config:
    """Return the config with the data and the precision of the run that `init` lies in, if it lies in one.

    So a run's checkpoints are scored on what the run was scored on. What the command line sets itself stays.
    """
    base = Path(config.init.partition("@")[0]).expanduser()
    run = next((p for p in (base, base.parent.parent) if (p / "config.yaml").is_file()), None)
    if run is None:
        return config
    saved = from_dict(RunFolder(run).read_config())
    given = {override.lstrip("+").split("=")[0].split(".")[0] for override in HydraConfig.get().overrides.task}
    if "scale" in given:
        return config
    taken = [k for k in ("data", "train", "evaluation", "model", "precision", "seed") if k not in given]
    return check(replace(config, **{key: getattr(saved, key) for key in taken}))


def _eval(cfg: DictConfig) -> None:
    config = _as_the_run_was(_config_of(cfg))
    from rewarm.training.run import evaluate_init

    evaluate_init(config)


def _prepare(cfg: DictConfig) -> None:
    config = _config_of(cfg)
    from rewarm.data.prepare import prepare

    prepare(config)


def _schedule(cfg: DictConfig) -> None:
    config = _config_of(cfg)
    from rewarm.preview import preview

    preview(config)


def _in_sweep(task: Callable[[DictConfig], object], cfg: DictConfig, name: str) -> object:
    """Do one run of a sweep; what it says, and what went wrong, comes at once and under its name."""
    logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s", stream=sys.stderr, force=True)
    sys.stderr.write(f"{name}: starts\n")
    try:
        return task(cfg)
    except RewarmError as error:
        sys.stderr.write(f"rewarm: {name}: {error}\n")
        if isinstance(error, PreemptedError):
            sweeps.stop_after(error)
        raise
    except Exception as error:
        traceback.print_exc()
        raise RewarmError(f"{type(error).__name__}: {error}") from error
    finally:
        sys.stdout.flush()


def _app(task: Callable[[DictConfig], object]) -> Callable[[], object]:
    """Return `task` as a Hydra application that reports its own errors.

    What still comes out of the application as an exception is then Hydra's: a mistake in the config.
    """

    @functools.wraps(task)
    def guarded(cfg: DictConfig) -> object:
        job = HydraConfig.get()
        try:
            if job.mode != RunMode.MULTIRUN:
                return task(cfg)
            sweeps.check_may_start()
            return _in_sweep(task, cfg, Path(job.runtime.output_dir).name)
        except RewarmError as error:
            if job.mode == RunMode.MULTIRUN:
                raise  # the sweep goes on; Hydra raises the first failure at its end
            tell(error)
            sys.exit(error.exit_code)
        except Exception:
            traceback.print_exc()
            sys.exit(1)

    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    return cast("Callable[[], object]", main(guarded))


TASKS = {"train": _app(_train), "eval": _app(_eval), "prepare": _app(_prepare), "schedule": _app(_schedule)}


def _check_flags(arguments: Sequence[str]) -> None:
    for argument in arguments:
        flag = argument.split("=", 1)[0]
        if flag.startswith("-") and flag not in FLAGS:
            raise UserError(f"{argument}: unknown option{nearest(flag, FLAGS)} (overrides are key=value)")


def run_verb(verb: str, arguments: Sequence[str]) -> None:
    """Compose the config of `arguments` and run `verb` on it. Raises `UserError` for a mistake in it."""
    _check_flags(arguments)
    arguments = sweeps.prepare(arguments)
    # Hydra then raises what went wrong, instead of printing pages about it and leaving.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"rewarm {verb}", *arguments]
    try:
        if sweeps.is_sweep(arguments):
            _sweep(verb, arguments)
        else:
            TASKS[verb]()
    except RewarmError:
        raise
    except HydraException as error:  # before OSError, which one of them is as well
        raise explain(error) from error
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; choose another run_dir") from error
    except Exception as error:
        raise explain(error) from error


def _sweep(verb: str, arguments: Sequence[str]) -> None:
    """Run a sweep; of training, say at its end how the runs compare. Raises the error that it ends with."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of processes side by side would overwrite each other
    failed: RewarmError | None = None
    with sweeps.passing_on_signals() as came:
        try:
            TASKS[verb]()
        except RewarmError as error:
            failed = error
        except Exception as error:
            if not came:
                raise
            failed = RewarmError(f"stopped by a signal before every run could be saved ({error})")
    folder = Path(next(a for a in reversed(arguments) if a.startswith("run_dir=")).removeprefix("run_dir="))
    trained = verb == "train" and sweeps.finished_runs(folder)[0]
    if trained:
        sys.stdout.write(sweeps.table(folder))
        if sweeps.asks_for_study(arguments):
            sys.stdout.write(sweeps.pareto(folder))
    if failed is not None:
        failed = sweeps.failure(folder, failed) if trained else failed
        failed.exit_code = 128 + came[0] if came else failed.exit_code
        raise failed
