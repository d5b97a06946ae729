"""The `rewarm` command: picks the verb, and turns errors into one line and an exit code.

Nothing heavy is imported here: `rewarm --help` must answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from rewarm import __version__
from rewarm.errors import RewarmError, UserError, nearest, tell
from rewarm.training.signals import leave_on_signals

HELP = """\
rewarm: continual pre-training of language models, to learn how to re-warm the learning rate.

  rewarm train    [overrides] [-m]   one run; with -m a sweep over comma-separated values
  rewarm eval     [overrides]        upstream and downstream perplexity of a checkpoint
  rewarm prepare  [overrides]        tokenise ahead of training
  rewarm schedule [overrides]        draw and tabulate the learning-rate curve
  rewarm report   RUN_OR_SWEEP...    figures, verdicts on the paper's claims, one page; --watch follows a run
  rewarm forecast RUN... [overrides] predict schedules not yet run from the loss curves of those that were

Overrides are key=value. The ones most used:
  schedule=cosine   max_lr=6e-4   min_lr_ratio=0.1   warmup=0.01   budget=50M   horizon=300B
  replay=0.05       init=builtin  seed=0             precision=auto  run_dir=runs/mine
  scale=local|paper   model=…   data=…   tracker=wandb|none   dry_run=true

  rewarm train schedule=cosine max_lr=6e-4        a first run: a minute, no GPU, no network
  rewarm train -m warmup=0,0.005,0.01,0.02        how long should the warm-up be?
  rewarm train -m experiment=all seeds=3          the paper's five experiments; then: rewarm report FOLDER
  rewarm train --cfg job                          the whole config, resolved
"""


def _hydra_verb(name: str) -> Callable[[Sequence[str]], None]:
    def run(arguments: Sequence[str]) -> None:
        from rewarm.app import run_verb

        run_verb(name, arguments)

    return run


def _forecast(arguments: Sequence[str]) -> None:
    from rewarm.forecast.command import forecast

    forecast(arguments)


def _report(arguments: Sequence[str]) -> None:
    from rewarm.report.command import report

    report(arguments)


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    name: _hydra_verb(name) for name in ("train", "eval", "prepare", "schedule")
} | {"forecast": _forecast, "report": _report}


def _dispatch(arguments: Sequence[str]) -> None:
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        sys.stdout.write(HELP)
        return
    verb, rest = arguments[0], arguments[1:]
    if verb == "--version":
        sys.stdout.write(f"rewarm {__version__}\n")
        return
    if verb not in VERBS:
        raise UserError(f"{verb}: unknown command{nearest(verb, VERBS)} (commands: {', '.join(VERBS)})")
    VERBS[verb](rest)


def _main() -> int:
    try:
        _dispatch(sys.argv[1:])
    except RewarmError as error:
        tell(error)
        return error.exit_code
    except BrokenPipeError:
        return 1
    except SystemExit as leaving:  # an application of Hydra's, which has said why
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def main() -> None:
    """Run the command line of this process; exit codes are 0, 2 for a user's mistake, 128+signal, or 1."""
    os.umask(os.umask(0) | 0o002)  # nothing that a run leaves behind is writable for all
    # Read when torch is loaded. Threads that spin for long while they wait for each other take ten times as long on a
    # busy machine; threads that never spin are a quarter slower on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    leave_on_signals()
    code = _main()
    hung = getattr(sys.modules.get("rewarm.tracking"), "hung", None)
    if hung:  # a tracker that does not end would keep the process from ending too
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
