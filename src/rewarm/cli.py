"""The `rewarm` command: picks the verb, and turns errors into one line and an exit code.

Nothing heavy is imported here: `rewarm --help` must answer at once.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module

from rewarm import __version__
from rewarm.errors import RewarmError, UserError, nearest, tell
from rewarm.training.signals import ignore_signals, leave_on_signals

HELP = """\
rewarm: continual pre-training of language models, to learn how to re-warm the learning rate.

  rewarm train    [overrides] [-m]   one run; with -m a sweep over comma-separated values
  rewarm eval     [overrides]        upstream and downstream perplexity of a checkpoint
  rewarm prepare  [overrides]        tokenise ahead of training
  rewarm schedule [overrides]        draw and tabulate the learning-rate curve
  rewarm report   RUN_OR_SWEEP...    figures, verdicts on the paper's claims, one page; --watch follows a run
  rewarm forecast RUN... [overrides] predict schedules not yet run from the loss curves of those that were
  rewarm search   tokens=… [overrides] from a goal and a number of tokens to a recipe: trains what tells the most
  rewarm diagnose RUN_OR_CSV...      what went wrong in a training, with the evidence and what to try
  rewarm merge    START END          averages of models on the line between two, of a run's end, of several runs
  rewarm recipe   [overrides] to=…   the settings of another trainer (transformers, torchtitan, megatron, …)

Overrides are key=value. The ones most used:
  schedule=cosine   max_lr=6e-4   min_lr_ratio=0.1   warmup=0.01   budget=50M   horizon=300B
  replay=0.05       init=builtin  seed=0             precision=auto  run_dir=runs/mine
  scale=local|paper   model=…   data=…   tracker=wandb|none   dry_run=true

  rewarm train schedule=cosine max_lr=6e-4        a first run: a minute, no GPU, no network
  rewarm train -m warmup=0,0.005,0.01,0.02        how long should the warm-up be?
  rewarm train -m experiment=all seeds=3          the paper's five experiments; then: rewarm report FOLDER
  rewarm train --cfg job                          the whole config, resolved
  rewarm train runs/mine/config.yaml seed=1       a run out of a file of keys

rewarm help VERB says more of each; docs/reference.md explains every key.
"""


VERBS = {
    "train": "train",
    "eval": "evaluate",
    "prepare": "prepare",
    "schedule": "schedule",
    "report": "report",
    "forecast": "forecast",
    "search": "search",
    "diagnose": "diagnose_all",
    "merge": "merge",
    "recipe": "recipe",
}
"""Each verb: a file of `commands/` of that name, and the function there that takes its arguments."""


def _act(verb: str) -> Callable[[Sequence[str]], None]:
    """Return what does a verb; its module is imported only now."""
    act: Callable[[Sequence[str]], None] = getattr(import_module(f"rewarm.commands.{verb}"), VERBS[verb])
    return act


def _help(verb: str | None) -> str:
    if verb in VERBS:
        from rewarm.commands.usage import USAGE

        return USAGE[verb]
    return HELP


def _dispatch(arguments: Sequence[str]) -> None:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("help", ())
    if verb == "help" or any(a in ("-h", "--help") for a in arguments):
        named = [a for a in arguments if not a.startswith("-") and a != "help"]
        if named and named[0] not in VERBS:
            raise _unknown(named[0])
        sys.stdout.write(_help(named[0] if named else None))
        return
    if verb in ("--version", "version") or "--version" in rest:
        sys.stdout.write(f"rewarm {__version__}\n")
        return
    if verb not in VERBS:
        raise _unknown(verb)
    try:
        _act(verb)(rest)
    except OSError as error:
        if error.filename is None or isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"{error.filename}: {error.strerror}; choose another place") from error


def _unknown(verb: str) -> UserError:
    return UserError(f"{verb}: unknown command{nearest(verb, VERBS)} (commands: {', '.join(VERBS)})")


def _main() -> int:
    try:
        _dispatch(sys.argv[1:])
    except RewarmError as error:
        tell(error)
        return error.exit_code
    except BrokenPipeError:
        return 1
    return 0


def main() -> None:
    """Run the command line of this process; exit codes are 0, 2 for a user's mistake, 128+signal, or 1."""
    os.umask(os.umask(0) | 0o002)  # nothing that a run leaves behind is writable for all
    # Read when torch is loaded. Threads that spin for long while they wait for each other take ten times as long on a
    # busy machine; threads that never spin are a quarter slower on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    leave_on_signals()
    code = _main()
    ignore_signals()
    if any(thread.name.startswith("tracker-") for thread in threading.enumerate()):
        # A tracker that was left behind, hanging, would keep the process from ending too.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
