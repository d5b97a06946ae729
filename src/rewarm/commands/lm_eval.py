"""Task scores of a checkpoint, through EleutherAI's lm-evaluation-harness (the extra `tasks`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rewarm.data.tokenizers import Tokenizer
from rewarm.errors import RewarmError, UserError
from rewarm.model.init import Init
from rewarm.runs.checkpoint import run_of
from rewarm.runs.folder import RunFolder
from rewarm.runs.run import is_run, open_run

Scores = dict[str, dict[str, float]]
"""By task, then by metric."""


def _local(task: str) -> tuple[str, Path | None]:
    """Return the name of a task, and the folder of its file where `task` is one."""
    path = Path(task).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        return task, None
    try:
        name = re.search(r"(?m)^task:\s*(\S+)", path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tasks={task}: cannot be read; give a task of the harness or the file of one") from error
    if name is None:
        raise UserError(f"tasks={task}: names no task; a task file of the harness has a line 'task: NAME'")
    return name[1], path.resolve().parent


def score(model: Any, tokenizer: Tokenizer, tasks: Sequence[str], context: int) -> Scores:  # noqa: ANN401
    """Return the scores of a transformers model on tasks, each a name the harness knows or the path of a task file.

    Where all tasks are files and their data is local, nothing is asked of the network.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise RewarmError(f"tasks: needs lm-evaluation-harness; pip install 'rewarm[tasks]' ({error})") from error
    from transformers import PreTrainedTokenizerFast

    found = [_local(task) for task in tasks]
    folders = sorted({folder for _, folder in found if folder is not None})
    manager = TaskManager(include_path=folders or None, include_defaults=any(folder is None for _, folder in found))
    names = [name for name, _ in found]
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(
            f"tasks={','.join(unknown)}: unknown to the harness; lm-eval --tasks list shows those it knows"
        )
    end = tokenizer.fast.id_to_token(tokenizer.end_of_text)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer.fast, bos_token=end, eos_token=end, pad_token=end)  # type: ignore[no-untyped-call]
    wrapped = HFLM(pretrained=model.eval(), tokenizer=fast, max_length=context, batch_size=8)
    with torch.no_grad():
        outcome = simple_evaluate(wrapped, tasks=names, task_manager=manager, bootstrap_iters=0)
    return {task: _numbers(metrics) for task, metrics in outcome["results"].items()}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are numbers, without the harness's filter name where that says nothing."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "stderr" not in key and "," in key
    }


def keep(init: Init, scores: Scores) -> bool:
    """Put scores into the summary of the finished run that the checkpoint belongs to; return whether there is one."""
    path = run_of(init.folder) if init.folder else None
    if init.folder is None or path is None or not is_run(path) or not open_run(path).finished:
        return False
    folder = RunFolder(path)
    with folder.lock():
        summary = dict(open_run(path).summary or {})
        tasks = summary.setdefault("tasks", {})
        tasks[init.folder.name] = tasks.get(init.folder.name, {}) | scores
        folder.write_summary(summary)
    return True
