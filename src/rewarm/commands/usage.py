"""What `rewarm VERB --help` says."""

from __future__ import annotations

_RUN = """\
The most used keys, with their defaults at scale=local:
  schedule=cosine       constant, cosine, cosine_neox, wsd, linear, inverse_sqrt,
                        infinite_cosine, infinite_inverse_sqrt, no_rewarm
  max_lr=…              the model's own peak LR; the LR that the warm-up rises to
  min_lr_ratio=0.1      the LR at the end, as a share of max_lr
  warmup=0.01           as a share of the schedule's length
  budget=2.048M         tokens, over which the schedule is laid out
  stop=null             tokens after which the run ends, on the same curve
  replay=0              share of every batch that is old data
  init=builtin          scratch, a checkpoint, RUN@step-500, owner/name@revision
  model=tiny  data=builtin  scale=local|paper  seed=0  precision=auto
  run_dir=runs/…        the same command with it goes on where it was cut
"""

USAGE = {
    "train": f"""\
rewarm train [FILE.yaml] [key=value …] [-m]

Trains one run, or goes on with the one in run_dir. With -m: a sweep over all
combinations of values with commas, each run in a folder of run_dir.

{_RUN}
Sweeps: seeds=3, experiment=max_lr, sweep.jobs=2 (at once), sweep.trials=20 (by
Optuna), sweep.launcher=slurm sweep.slurm.partition=gpu.
  dry_run=true          says what it would be and cost, and does nothing
  --cfg job             prints the whole config
  --config-dir DIR      configs of your own, laid out as conf/
docs/reference.md explains every key.
""",
    "eval": f"""\
rewarm eval init=CHECKPOINT [key=value …]

Scores a checkpoint on both validation sets; one of a run on those of the run.
  tasks=[lambada_openai]  scores of lm-evaluation-harness too

{_RUN}""",
    "prepare": f"""\
rewarm prepare [key=value …]

Tokenises what the run of the same keys would read, ahead of training.

{_RUN}""",
    "schedule": f"""\
rewarm schedule [key=value …]

Draws and tabulates the learning rate, into run_dir: schedule.csv, schedule.png.

{_RUN}""",
    "report": """\
rewarm report RUN_OR_FOLDER… [key=value …] [--watch]

The answer first, then figures, tables, verdicts on the paper's claims, and one
page (report/index.html) that needs no network. --watch follows running runs.
  wandb=true            puts figures, charts and the table into W&B
""",
    "forecast": """\
rewarm forecast RUN_OR_CSV… [key=value …]

Fits a law of the loss to what was run, holds each arm out in turn, and predicts.
  max_forgetting=0.05   recommends within a loss of old data, in nats or per cent
  weights=1,1           or by a weighted sum of upstream and downstream loss
  schedule=cosine max_lr=3e-4,6e-4 budget=4M replay=0.05     what to predict
  law=cpt               cpt, single, multipower, cpt_multipower, auto
  holdout=NAME          runs that are predicted and never fitted
  verbose=true          the parameters too
For CSV files: tokens_per_step= start_lr= warmup_steps= total_steps= lr_curve=
""",
    "search": """\
rewarm search tokens=60M max_forgetting=0.05|weights=1,1 [key=value …]

From a goal and a number of tokens to a recipe. Trains a few recipes that lie
far apart, then those that are expected to gain the most for their tokens, and
leaves those that cannot win. The same command goes on, with more tokens too.
  max_forgetting=0.05   least loss of new data within a loss of old, nats or %
  weights=1,1           or the least weighted sum of both losses
Values with commas, choice(…), range(…) and interval(…) are what is chosen
among; without any: schedule, max_lr and replay. Other keys are training's:
  rewarm search tokens=60M weights=1,1 max_lr='interval(1e-4,3e-3)' budget=4M
  from=runs/earlier     takes in its finished runs, where they fit
  sweep.jobs=2          runs at once
""",
    "diagnose": """\
rewarm diagnose RUN_OR_FOLDER_OR_CSV… [key=value …]

Says of each training what it sees, with the evidence and what to try, the
likeliest first, or that nothing is wrong. Columns of a CSV file: step or
tokens, lr, and losses: upstream_loss, downstream_loss, train_loss, or any
NAME_loss.
For CSV files: tokens_per_step= start_lr= warmup_steps= total_steps= lr_curve=
""",
    "merge": """\
rewarm merge START END [alphas=0:1:0.1] [key=value …]
rewarm merge RUN [window=0.2,0.4] [shape=linear,mean,1-sqrt,cosine]
rewarm merge RUN RUN RUN…

Averages of weights, scored on both validation sets, beside the arms of the
sweep: on the line from one model to another (any two that init= takes); over
the last part of a run's kept checkpoints, as if it had decayed; of several
runs, such as seeds.
  save=0.4              keeps that average, which can be an init
  save=best             the best by weights=1,1, or within max_forgetting=0.05
  extrapolate=true      alphas below 0 and above 1
  output=FOLDER         where table, figure and averages go
Other keys say what scores them (data=…, device=…); END's run otherwise.
""",
    "recipe": """\
rewarm recipe [key=value … | RUN | forecast.json] to=TRAINER [output=FILE]

The settings of another trainer for a run, a forecast's advice, or overrides:
transformers, axolotl, llamafactory, torchtitan, olmo-core, gpt-neox, megatron,
nanotron, litgpt, json.
""",
}
