"""One run from its config to its summary, and `rewarm eval`."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import platform
import secrets
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from rewarm import __version__
from rewarm.cache import cache_dir, storing
from rewarm.config import SIDES, Config
from rewarm.data.prepare import RunData, open_data, open_validation
from rewarm.data.tokenizers import Tokenizer, load_tokenizer
from rewarm.errors import RewarmError, UserError
from rewarm.estimate import flops_per_token
from rewarm.evaluation import evaluate
from rewarm.losses import TokenLoss
from rewarm.models import Init, check_fits, count_parameters, load_model, resolve_init
from rewarm.plan import make_plan
from rewarm.rundir import RunFolder
from rewarm.summary import summarize, table
from rewarm.tracking import Trackers
from rewarm.training import checkpoints, distributed, microbatch, sharded
from rewarm.training.agreement import agreed, check_divides, check_restarts, check_sharding
from rewarm.training.compiling import compile_model, compiles, keep_compiled_code
from rewarm.training.loop import Loop
from rewarm.training.precision import LossScaler, Precision, peak_flops, resolve_device, resolve_precision
from rewarm.training.profiling import make_profiler
from rewarm.training.resume import check_continues, check_same_data, describe_seam, extend, extensions
from rewarm.training.saving import Saver
from rewarm.training.signals import StopRequest
from rewarm.training.state import TrainState, make_optimizer

log = logging.getLogger(__name__)


def set_up_host(config: Config, device: torch.device) -> None:
    """Set threads, and on a CPU tell glibc to keep large blocks: giving them back costs a third of the speed."""
    keep_compiled_code()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def _manifest(config: Config, init: Init, data: RunData, loop: Loop) -> dict[str, Any]:
    import transformers

    device = loop.precision.device
    return {
        "id": secrets.token_hex(4),
        "rewarm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "precision": loop.precision.name,
        "micro_batch_size": loop.micro_batch_size,
        "parameters": count_parameters(loop.state.model),
        "init": {"asked": config.init, "folder": str(init.folder) if init.folder else None},
        "data": data.fingerprint,
        "argv": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _build_state(
    config: Config, init: Init, tokenizer: Tokenizer, precision: Precision
) -> tuple[TrainState, TokenLoss]:
    torch.manual_seed(config.seed)
    model = load_model(init, config.model, config.seed, precision.device)
    check_fits(model, config.train.context, tokenizer.size)
    token_loss = TokenLoss(model)
    if config.train.parallel == "fsdp":
        distributed.shard(token_loss, precision.device)
    scaler = LossScaler(config.scaler, precision.device, dynamic=precision.scales)
    return TrainState(model, make_optimizer(model, config.optimizer), scaler), token_loss


def run(config: Config) -> tuple[float, float]:
    """Train as `config` says, or continue the run in its folder; return final upstream and downstream loss.

    Under torchrun each process calls this, and they train together. The first one has the folder: it alone writes
    there, and what it finds there holds for all.
    """
    make_plan(config)  # a mistake in it, or in `init`, must leave no folder behind
    here = distributed.place(os.environ)
    check_divides(config, here.size)
    device = distributed.local_device(resolve_device(config.device), here.local_rank)
    check_restarts(config, os.environ)
    check_sharding(config, device.type, here.size)
    level = logging.INFO if here.rank == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    with distributed.joined(device), ExitStack() as held:
        config = agreed(config)
        folder = RunFolder(Path(config.run_dir))

        def begin() -> tuple[bool, Path | None]:
            if not folder.exists():
                resolve_init(config.init)
            folder.create()
            held.enter_context(folder.lock())
            return _find_start(config, folder) if folder.exists() else (True, None)

        trains, saved = distributed.from_first(begin)
        if trains:
            _train(config, folder, device, saved)
        summary = distributed.from_first(folder.read_summary)
    assert summary is not None
    upstream, downstream = (summary[side]["final"] for side in SIDES)
    return math.nan if upstream is None else upstream, math.nan if downstream is None else downstream


def _find_start(config: Config, folder: RunFolder) -> tuple[bool, Path | None]:
    """Return whether the run in `folder` goes on, and from which checkpoint; extend it where that is asked for."""
    extends = check_continues(folder, config)
    plan = make_plan(config, extensions(folder))
    summary = folder.read_summary()
    if summary is not None and not extends:
        log.info("%s: is finished already; nothing to do", folder.path)
        return False, None
    checkpoints.clean(folder.checkpoints)
    saved = checkpoints.latest(folder.checkpoints)
    if extends:
        step = checkpoints.step_of(saved) if saved else 0
        if plan.steps < step:
            raise UserError(
                f"budget={config.budget}: is {plan.steps:,} steps, and the run is at step {step:,} already; give more"
            )
        extend(folder, config, step)
        log.info("%s", describe_seam(make_plan(config, extensions(folder)), step))
    return True, saved


def _train(config: Config, folder: RunFolder, device: torch.device, saved: Path | None) -> None:
    """Train from the checkpoint `saved`, or from `init` where there is none, to the end."""
    distributed.check_shared(folder.path, "run_dir")
    distributed.check_shared(cache_dir(), "REWARM_CACHE")
    begun = distributed.from_first(folder.read_manifest)
    plan = make_plan(config, begun.get("extensions", []))
    set_up_host(config, device)
    with distributed.first_before_others():
        init = Init(str(saved), saved) if saved else resolve_init(config.init)
        tokenizer = load_tokenizer(config.data.tokenizer)
        data = open_data(config, plan, tokenizer, fills=distributed.is_first())
    check_same_data(begun, data.fingerprint, folder)
    # What rewarm chose by itself when the run was begun stays chosen: its numbers depend on it.
    chosen = begun.get("precision", "auto") if config.precision == "auto" else config.precision
    precision = Precision(distributed.from_first(lambda: resolve_precision(chosen, device).name), device)
    state, token_loss = _build_state(config, init, tokenizer, precision)
    if saved is None and init.folder is not None and (init.folder / "manifest.json").is_file():
        checkpoints.verify(init.folder)
    if saved is not None:
        sharded.load_state(saved, state)
        log.info("%s: continues after step %d", folder.path, state.step)
    elif config.init_optimizer:
        sharded.load_moments(init.folder, state, config.init)
    micro_batch = begun.get("micro_batch_size")
    if not micro_batch or len(distributed.share(config.train.batch_size)) % micro_batch:
        micro_batch = distributed.from_first(lambda: microbatch.choose(config, token_loss, precision))
    loop = Loop(config, plan, state, token_loss, data, precision, micro_batch)
    token_flops = flops_per_token(config)
    peak = peak_flops(config.train.peak_tflops, precision)
    loop.peak_tokens_per_second = peak * distributed.size() / token_flops if peak and token_flops else None
    run_flops = token_flops and token_flops * plan.steps * plan.tokens_per_step
    compiled = begun.get("compiled", distributed.from_first(lambda: compiles(config, device, run_flops)))
    compiled = compiled and not distributed.is_sharded(state.model)
    if compiled:
        compile_model(token_loss)
    if distributed.is_first():
        folder.trim_metrics(state.step if saved else -1)
        kept = {key: begun[key] for key in ("id", "init", "started", "extensions") if key in begun}
        folder.write_manifest(_manifest(config, init, data, loop) | {"compiled": compiled} | kept)
        folder.write_config(config)
        sys.stdout.write(table(folder.path, _fit(config, folder, loop, tokenizer)))
    else:
        _follow(config, folder, loop)


def _follow(config: Config, folder: RunFolder, loop: Loop) -> None:
    """Run the loop beside the first process, which does all the writing but that of others' parts of the state."""
    if distributed.is_sharded(loop.state.model):
        loop.save = lambda: sharded.write_part(loop.state, folder.checkpoints)
    with StopRequest(config.max_hours, distributed.largest) as stop:
        loop.stop_asked = lambda: stop.asked(0.0)
        if not loop.run():
            raise stop.error(loop.state.step)


def _fit(config: Config, folder: RunFolder, loop: Loop, tokenizer: Tokenizer) -> dict[str, Any]:
    """Run the loop with everything that listens to it, and return the summary."""
    state = loop.state

    def write(snapshot: checkpoints.Snapshot) -> None:
        folder.sync_metrics()
        checkpoints.write(folder.checkpoints, snapshot, state.model, tokenizer.folder)
        retain()

    def retain() -> None:
        c = config.checkpoint
        with storing(folder.checkpoints):
            checkpoints.prune(folder.checkpoints, c.keep, c.keep_every, loop.plan.milestones)

    def record(metrics: dict[str, float]) -> None:
        folder.append_metrics(metrics)
        trackers.log(metrics)

    summary = None
    retain()  # a process that was killed after its last save had no time to
    trackers = Trackers(config, folder.path, folder.read_manifest()["id"])
    try:
        with (
            Saver(write) as saver,
            StopRequest(config.max_hours, distributed.largest) as stop,
            ExitStack() as more,
        ):
            if config.profile and (profiler := make_profiler(folder.path / "profile", loop.plan.steps - state.step)):
                loop.updated = more.enter_context(profiler).step

            def stop_asked() -> bool:
                saver.check()
                return stop.asked(saver.seconds(state))

            loop.record, loop.stop_asked = record, stop_asked
            loop.micro_batch_shrunk = lambda n: folder.write_manifest(
                folder.read_manifest() | {"micro_batch_size": n}
            )
            if distributed.is_sharded(state.model):  # then all processes write, and the loop waits for it
                loop.save = lambda: write(sharded.take_snapshot(state, folder.checkpoints))
            else:
                loop.save, loop.settle = (lambda: saver.save(state)), saver.settle
            done = loop.run()
        if not done:
            raise stop.error(state.step)
        summary = summarize(folder.read_metrics())
        folder.write_summary(summary)
    finally:
        trackers.finish(summary)
    return summary


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
    token_loss = TokenLoss(model)
    for side, data in validation.items():
        scores = evaluate(token_loss, data, precision, config.evaluation.batch_size)
        for key, value in scores.items():
            sys.stdout.write(f"{side}/{key} {value!r}\n")
    if config.tasks:
        from rewarm.tasks import keep, score

        task_scores = score(model, tokenizer, config.tasks, config.train.context)
        for task, metrics in task_scores.items():
            for key, value in metrics.items():
                sys.stdout.write(f"tasks/{task}/{key} {value!r}\n")
        if keep(init, task_scores):
            log.info("the task scores are in the run's summary.json; rewarm report shows them")


__all__ = ["RewarmError", "evaluate_init", "run"]
