"""One run from its config to its summary, and `rewarm eval`."""

from __future__ import annotations

import ctypes
import logging
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rewarm import __version__
from rewarm.config import Config
from rewarm.data.prepare import RunData, open_data, open_validation
from rewarm.data.tokenizers import Tokenizer, load_tokenizer
from rewarm.errors import RewarmError, UserError
from rewarm.evaluation import evaluate
from rewarm.models import Init, check_fits, count_parameters, load_model, resolve_init
from rewarm.plan import Plan, make_plan
from rewarm.rundir import RunFolder
from rewarm.summary import summarize, table
from rewarm.tracking import Trackers
from rewarm.training import checkpoints
from rewarm.training.loop import Loop
from rewarm.training.precision import LossScaler, Precision, resolve_device, resolve_precision
from rewarm.training.signals import StopRequest
from rewarm.training.state import TrainState, make_optimizer

log = logging.getLogger(__name__)

CPU_TOKENS_AT_ONCE = 8192
GPU_TOKENS_AT_ONCE = 16384
NEUTRAL_KEYS = frozenset({"run_dir", "dry_run", "tracker", "device"})
"""Top-level keys that may differ when a run continues: they do not change its numbers."""


def set_up_host(config: Config, device: torch.device) -> None:
    """Set threads, and on a CPU tell glibc to keep large blocks: giving them back costs a third of the speed."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def micro_batch_size(config: Config, device: torch.device) -> int:
    """Return the sequences to run at once: the largest divisor of the batch under a fixed number of tokens."""
    if config.train.micro_batch_size:
        return config.train.micro_batch_size
    at_once = CPU_TOKENS_AT_ONCE if device.type == "cpu" else GPU_TOKENS_AT_ONCE
    most = max(1, at_once // config.train.context)
    return max(n for n in range(1, most + 1) if config.train.batch_size % n == 0)


def _manifest(config: Config, init: Init, data: RunData, precision: Precision, parameters: int) -> dict[str, Any]:
    import transformers

    device = precision.device
    return {
        "rewarm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": precision.name,
        "parameters": parameters,
        "init": {"asked": config.init, "folder": str(init.folder) if init.folder else None},
        "data": data.fingerprint,
        "argv": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _differing(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ, with both values."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differing(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} (was {a}, now {b})")
    return found


def check_continues(folder: RunFolder, config: Config) -> None:
    """Raise `UserError` where the run in `folder` was begun with a config that gives other numbers."""

    def telling(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in NEUTRAL_KEYS}

    differing = _differing(telling(folder.read_config()), telling(asdict(config)))
    if differing:
        raise UserError(
            f"run_dir={folder.path}: holds a run with another config; choose another run_dir, or undo: "
            + "; ".join(differing)
        )


def _build_state(config: Config, init: Init, tokenizer: Tokenizer, precision: Precision) -> TrainState:
    model = load_model(init, config.model, config.seed, precision.device)
    check_fits(model, config.train.context, tokenizer.size)
    scaler = LossScaler(config.scaler, precision.device, dynamic=precision.scales)
    return TrainState(model, make_optimizer(model, config.optimizer), scaler)


def run(config: Config) -> tuple[float, float]:
    """Train as `config` says, or continue the run in its folder; return final upstream and downstream loss."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    plan = make_plan(config)
    folder = RunFolder(Path(config.run_dir))
    if folder.exists():
        check_continues(folder, config)
        if (summary := folder.read_summary()) is not None:
            log.info("%s: is finished already; nothing to do", folder.path)
            return summary["upstream"]["final"], summary["downstream"]["final"]
    init = resolve_init(config.init)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    set_up_host(config, device)
    tokenizer = load_tokenizer(config.data.tokenizer)
    folder.create()
    data = open_data(config, plan, tokenizer)
    saved = checkpoints.latest(folder.checkpoints)
    state = _build_state(config, Init(str(saved), saved) if saved else init, tokenizer, precision)
    if saved is not None:
        checkpoints.load_state(saved, state)
        log.info("%s: continues after step %d", folder.path, state.step)
    folder.mend_metrics()
    folder.write_config(config)
    folder.write_manifest(_manifest(config, init, data, precision, count_parameters(state.model)))
    with StopRequest() as stop:
        _fit(config, plan, folder, state, data, precision, tokenizer, stop)
    summary = folder.read_summary()
    assert summary is not None
    return summary["upstream"]["final"], summary["downstream"]["final"]


def _fit(
    config: Config,
    plan: Plan,
    folder: RunFolder,
    state: TrainState,
    data: RunData,
    precision: Precision,
    tokenizer: Tokenizer,
    stop: StopRequest,
) -> None:
    trackers = Trackers(config, folder.path)
    summary = None

    def record(metrics: dict[str, float]) -> None:
        folder.append_metrics(metrics)
        trackers.log(metrics)

    def save() -> None:
        checkpoints.save(folder.checkpoints, state, tokenizer.folder)
        checkpoints.prune(folder.checkpoints, config.checkpoint.keep, plan.milestones)

    loop = Loop(
        config=config,
        plan=plan,
        state=state,
        data=data,
        precision=precision,
        micro_batch_size=micro_batch_size(config, precision.device),
        record=record,
        save=save,
        stop_asked=stop.asked,
    )
    try:
        if not loop.run():
            raise stop.exit_error(state.step)
        summary = summarize(folder.read_metrics())
        folder.write_summary(summary)
    finally:
        trackers.finish(summary)
    sys.stdout.write(table(folder.path, summary))


def evaluate_init(config: Config) -> None:
    """Score the checkpoint that `init` names on both validation sets, as a run of this config would."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    init = resolve_init(config.init)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    set_up_host(config, device)
    tokenizer = load_tokenizer(config.data.tokenizer)
    validation = open_validation(config, tokenizer)
    model = load_model(init, config.model, config.seed, device)
    check_fits(model, config.train.context, tokenizer.size)
    for side, data in validation.items():
        scores = evaluate(model, data, precision, config.evaluation.batch_size)
        for key, value in scores.items():
            sys.stdout.write(f"{side}/{key} {value!r}\n")


__all__ = ["RewarmError", "evaluate_init", "run"]
