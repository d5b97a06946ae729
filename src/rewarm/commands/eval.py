"""`rewarm eval`: both perplexities of any checkpoint."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rewarm.commands.begin import begin
from rewarm.config.checks import check
from rewarm.config.schema import Config
from rewarm.runs.run import open_run, run_named

if TYPE_CHECKING:
    from torch import nn

    from rewarm.data.tokenizers import Tokenizer
    from rewarm.data.validation import ValidationSet
    from rewarm.model.init import Init
    from rewarm.training.precision import Precision

log = logging.getLogger(__name__)


def as_the_run_was(config: Config, overrides: Sequence[str]) -> Config:
    """Return the config with the data and the precision of the run that `init` lies in, if it lies in one.

    So a run's checkpoints are scored on what the run was scored on. What `overrides` set themselves stays.
    """
    path = run_named(config.init)
    given = {override.lstrip("+").split("=")[0].split(".")[0] for override in overrides}
    if path is None or "scale" in given:
        return config
    saved = open_run(path).config
    taken = [k for k in ("data", "train", "evaluation", "model", "precision", "seed") if k not in given]
    return check(replace(config, **{key: getattr(saved, key) for key in taken}))


def evaluate(arguments: Sequence[str]) -> None:
    """Score the checkpoint that the arguments name."""
    asked = begin("eval", arguments)
    if asked is not None:
        evaluate_init(as_the_run_was(asked.config, asked.overrides))


@dataclass(frozen=True)
class Scoring:
    """What a checkpoint is scored with, as a run of a config would score it."""

    config: Config
    precision: Precision
    tokenizer: Tokenizer
    validation: Mapping[str, ValidationSet]

    @classmethod
    def of(cls, config: Config) -> Scoring:
        """Return what a config asks for, with its validation text read."""
        from rewarm.data.prepare import check_domain_fields, open_validation
        from rewarm.data.tokenizers import load_tokenizer
        from rewarm.training.precision import resolve_device, resolve_precision
        from rewarm.training.setup import set_up_host

        device = resolve_device(config.device)
        precision = resolve_precision(config.precision, device)
        set_up_host(config.train, device)
        tokenizer = load_tokenizer(config.data.tokenizer)
        validation = open_validation(config, tokenizer)
        check_domain_fields(config, validation)
        return cls(config, precision, tokenizer, validation)

    def load(self, init: Init) -> nn.Module:
        """Return the model of a checkpoint. Raises `UserError` where it does not fit the tokenizer or the context."""
        from rewarm.model.weights import check_fits, load_model

        model = load_model(init, self.config.model, self.config.seed, self.precision.device)
        check_fits(model, self.config.train.context, self.tokenizer)
        return model

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Return the scores of a model on both sides, as metrics name them: `upstream/loss` and the like."""
        from rewarm.model.losses import TokenLoss
        from rewarm.training.evaluation import evaluate_sides

        batch = self.config.evaluation.batch_size
        return evaluate_sides(TokenLoss(model), self.validation, self.precision, batch)


def evaluate_init(config: Config) -> None:
    """Score the checkpoint that `init` names on both validation sets, as a run of this config would."""
    from rewarm.model.init import resolve_init

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    init = resolve_init(config.init)
    scoring = Scoring.of(config)
    model = scoring.load(init)
    for key, value in scoring.scores(model).items():
        sys.stdout.write(f"{key} {value!r}\n")
    if config.tasks:
        from rewarm.commands.lm_eval import keep, score

        task_scores = score(model, scoring.tokenizer, config.tasks, config.train.context)
        for task, metrics in task_scores.items():
            for key, value in metrics.items():
                sys.stdout.write(f"tasks/{task}/{key} {value!r}\n")
        if keep(init, task_scores):
            log.info("the task scores are in the run's summary.json; rewarm report shows them")
