"""Our scores and our run folder in a training by the Trainer of transformers."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rewarm.config.command_line import parse
from rewarm.config.compose import from_hydra
from rewarm.config.plan import Plan, make_plan
from rewarm.config.schema import Config
from rewarm.config.values import quoted
from rewarm.data.prepare import check_domain_fields, open_validation
from rewarm.data.tokenizers import load_tokenizer
from rewarm.data.validation import ValidationSet
from rewarm.errors import UserError
from rewarm.model.losses import TokenLoss
from rewarm.model.weights import check_fits
from rewarm.runs.folder import METRICS, RunFolder
from rewarm.runs.manifest import Chosen, Manifest
from rewarm.runs.metrics import read_metrics
from rewarm.runs.summary import summarize
from rewarm.schedules import SHAPE_PARAMETERS, ScheduleSpec, lr
from rewarm.training.evaluation import evaluate_sides
from rewarm.training.exactness import conditions
from rewarm.training.precision import Precision

log = logging.getLogger(__name__)

NEEDED = {"model": "which model it is, such as 'model=pythia-410m'", "train.context": "the tokens of a sequence"}
"""Overrides that cannot be guessed."""
CLOSE = 1e-6
"""Relative difference of learning rates that is rounding."""


class Callback(TrainerCallback):
    """Scores both validation sets while a Trainer trains, and writes a run folder that `rewarm` reads.

    `spec` is the schedule that the Trainer follows, `LRScheduler(optimizer, spec)`; `overrides` are those of
    `rewarm train` that say what the model, its context and the data are. Losses are those of `rewarm eval`.
    """

    def __init__(self, run_dir: str, spec: ScheduleSpec, *overrides: str) -> None:
        given = [word.partition("=")[0] for word in overrides]
        for key, what in NEEDED.items():
            if key not in given:
                raise UserError(f"Callback: give {what} ({key}=…)")
        self._overrides, self._spec = overrides, spec
        self._folder = RunFolder(Path(run_dir))
        self._config: Config
        self._plan: Plan
        self._validation: dict[str, ValidationSet] = {}
        self._precision: Precision
        self._lr: float | None = None
        self._line: dict[str, float] = {}
        """The line of a step whose training loss has not come yet."""
        self._warned = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Make the run folder, or go on with it, and score the model before its first update."""
        if args.fsdp or args.deepspeed:
            raise UserError("Callback: scores a model that each process has whole; without FSDP and DeepSpeed")
        model = kwargs["model"]
        self._config = self._asked(args, state.max_steps)
        self._plan = make_plan(self._config)
        name = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        self._precision = Precision(name, next(model.parameters()).device)
        tokenizer = load_tokenizer(self._config.data.tokenizer)
        check_fits(model, self._config.train.context, tokenizer)
        self._validation = open_validation(self._config, tokenizer)
        check_domain_fields(self._config, self._validation)
        if state.is_world_process_zero:
            self._begin(state.global_step, name, tokenizer.fingerprint)
        if state.global_step == 0:
            self._write(state, self._scores(model))

    def _asked(self, args: Any, max_steps: int) -> Config:  # noqa: ANN401
        """Return the config of a run of rewarm's that trains as the Trainer does."""
        spec, sequences = self._spec, args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        context = int(parse(self._overrides).given["train.context"])
        shape = [f"schedule.{key}={getattr(spec, key)!r}" for key in SHAPE_PARAMETERS.get(spec.name, ())]
        ours = [
            *(f"schedule={spec.name}", f"max_lr={spec.max_lr!r}", f"min_lr_ratio={spec.min_lr / spec.max_lr!r}"),
            *(f"warmup={spec.warmup_steps / spec.total_steps!r}", f"budget={spec.total_steps * sequences * context}"),
            *(f"train.batch_size={sequences}", "train.log_every=1", f"seed={args.seed}"),
            *([f"stop={max_steps * sequences * context}"] if max_steps < spec.total_steps else []),
        ]
        line = parse([*self._overrides, *ours, *shape, f"run_dir={quoted(str(self._folder.path))}"])
        return from_hydra(line.compose())

    def _begin(self, step: int, precision: str, tokenizer: str) -> None:
        folder = self._folder
        if folder.exists() and step == 0:
            raise UserError(f"run_dir={folder.path}: holds a run already; give the Callback another folder")
        folder.create()
        if folder.exists():
            folder.trim_metrics(step)
            folder.remove_summary()
            return
        data = {f"{side} validation": found.digest for side, found in self._validation.items()}
        manifest = Manifest(
            id=secrets.token_hex(4),
            chosen=Chosen(precision),
            conditions=conditions(self._precision.device),
            data={**data, "tokenizer": tokenizer},
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            other={"trainer": "transformers", "argv": sys.argv},
        )
        folder.write_manifest(manifest)
        folder.write_config(self._config)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Take note of the learning rate of the update that is done now."""
        self._lr = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Score the model where a run of rewarm's would, and take the line of this step."""
        self._flush()
        step = state.global_step
        wanted = lr(self._spec, step)
        if self._lr is None:
            self._lr = wanted
        if abs(self._lr - wanted) > CLOSE * self._spec.max_lr and not self._warned:
            self._warned = True
            log.warning(
                "%s: update %d had the learning rate %.6g, and the schedule says %.6g: forecasts leave this run out; "
                "train with optimizers=(optimizer, rewarm.LRScheduler(optimizer, spec))",
                *(self._folder.path, step, self._lr, wanted),
            )
        scores = self._scores(kwargs["model"]) if self._plan.evaluates(step) else {}
        self._write(state, {"lr": self._lr} | scores)

    def _scores(self, model: Any) -> dict[str, float]:  # noqa: ANN401
        """Return the scores on both sides. All processes take part, and leave the model's mode as it was."""
        training, whole = model.training, getattr(model, "module", model)
        batch = self._config.evaluation.batch_size
        scores = evaluate_sides(TokenLoss(whole), self._validation, self._precision, batch)
        model.train(training)
        return scores

    def _write(self, state: Any, values: dict[str, float]) -> None:  # noqa: ANN401
        if state.is_world_process_zero:
            position = {"step": state.global_step, "tokens": state.global_step * self._plan.tokens_per_step}
            self._line = position | values

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Take the training loss of the step whose line is not written yet."""
        if self._line.get("step") == state.global_step and "loss" in (logs or {}):
            self._line["train/loss"] = float(logs["loss"])

    def _flush(self) -> None:
        if self._line:
            self._folder.append_metrics(self._line)
            self._line = {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Have everything on disk that a checkpoint of the Trainer's goes on from."""
        self._flush()
        if state.is_world_process_zero:
            self._folder.sync_metrics()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Write the summary, where the training has come to its end."""
        self._flush()
        if state.is_world_process_zero and state.global_step >= self._plan.steps:
            self._folder.write_summary(summarize(read_metrics(self._folder.path / METRICS)))
