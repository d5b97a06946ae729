"""One run from its config to its summary."""

from __future__ import annotations

import logging
import math
import os
import platform
import secrets
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from rewarm.config.plan import end_of, make_plan
from rewarm.config.schema import SIDES, Config
from rewarm.data.prepare import check_domain_fields, open_data
from rewarm.data.tokenizers import load_tokenizer
from rewarm.errors import UserError
from rewarm.model.generation import StartModel
from rewarm.model.init import Init, pin, resolve_init, resolve_pinned
from rewarm.model.shape import run_flops
from rewarm.model.weights import count_parameters
from rewarm.runs.checkpoint import step_of
from rewarm.runs.folder import RunFolder
from rewarm.runs.fork import begin_as_asked
from rewarm.runs.manifest import Chosen, Manifest, Pinned
from rewarm.runs.run import open_run, read_manifest, read_summary
from rewarm.runs.summary import table
from rewarm.storage import cache_dir
from rewarm.training.agreement import agreed, check_divides, check_restarts, check_sharding
from rewarm.training.checkpoints import folder as checkpoints
from rewarm.training.checkpoints.loading import load_moments
from rewarm.training.checkpoints.saving import Writer, make_saver
from rewarm.training.compiling import compile_model, compiles
from rewarm.training.distributed import collectives, together, world
from rewarm.training.exactness import changed, conditions, describe_change, kept_threads
from rewarm.training.loop import Loop, train
from rewarm.training.precision import resolve_device
from rewarm.training.profiling import StepProfiler
from rewarm.training.recorder import Recorder, RunRecorder
from rewarm.training.resume import (
    check_continues,
    check_empty,
    check_manifest,
    check_metrics,
    check_same_data,
    describe_seam,
    extend,
)
from rewarm.training.setup import (
    build_state,
    choose_precision,
    make_choices,
    peak_tokens_per_second,
    resume,
    set_up_host,
)
from rewarm.training.signals import StopRequest

log = logging.getLogger(__name__)


def _manifest(begun: Manifest, pinned: Pinned | None, loop: Loop, chosen: Chosen) -> Manifest:
    """Return the manifest of a run that begins, or goes on from the one that was `begun`."""
    return Manifest(
        id=begun.id or secrets.token_hex(4),
        chosen=chosen,
        conditions=conditions(loop.precision.device),
        init=pinned,
        data=loop.data.fingerprint,
        extensions=begun.extensions,
        forked=begun.forked,
        changes=begun.changes,
        started=begun.started or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        other=begun.other
        | ({"self_replay": loop.data.written.told()} if loop.data.written and begun.id is None else {})
        | {
            "python": platform.python_version(),
            "machine": platform.platform(),
            "parameters": count_parameters(loop.state.model),
            "argv": sys.argv,
        },
    )


def run(config: Config) -> tuple[float, float]:
    """Train as `config` says, or continue the run in its folder; return final upstream and downstream loss.

    Under torchrun each process calls this, and they train together. The first one has the folder: it alone writes
    there, and what it finds there holds for all.
    """
    here = world.place(os.environ)
    check_divides(config, here.size)
    device = world.local_device(resolve_device(config.device), here.local_rank)
    check_restarts(config, os.environ)
    check_sharding(config, device.type, here.size)
    level = logging.INFO if here.rank == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    with together.joined(device), ExitStack() as held:
        config = agreed(config)
        folder = RunFolder(Path(config.run_dir))

        def begin() -> tuple[bool, Path | None]:
            if not folder.exists():
                check_empty(folder)
                resolve_init(config.init)
                begin_as_asked(config, compiles=compiles(config, device, run_flops(config, make_plan(config))))
            folder.create()
            held.enter_context(folder.lock())
            return _find_start(config, folder) if folder.exists() else (True, None)

        trains, saved = collectives.broadcast_object(begin)
        if trains:
            _train(config, folder, device, saved)
        summary = collectives.broadcast_object(lambda: read_summary(folder.path))
    assert summary is not None
    upstream, downstream = (summary[side]["final"] for side in SIDES)
    return math.nan if upstream is None else upstream, math.nan if downstream is None else downstream


def _find_start(config: Config, folder: RunFolder) -> tuple[bool, Path | None]:
    """Return whether the run in `folder` goes on, and from which checkpoint; extend it where that is asked for."""
    run = open_run(folder.path)
    check_manifest(folder)
    extends = check_continues(run, config)
    if run.finished and not extends:
        log.info("%s: is finished already; nothing to do", folder.path)
        return False, None
    checkpoints.clean(folder.checkpoints)
    saved = checkpoints.latest(folder.checkpoints)
    step = step_of(saved) if saved else None
    if step is not None:
        check_metrics(folder, run, step, allowed=config.allow_lost_metrics)
    if extends:
        plan, step = make_plan(config, run.manifest.extensions), step or 0
        if plan.steps < step:
            key, tokens = end_of(config)
            raise UserError(
                f"{key}={tokens}: is {plan.steps:,} steps, and the run is at step {step:,} already; give more"
            )
        extensions = extend(folder, run, config, step)
        log.info("%s", describe_seam(make_plan(config, extensions), step))
    return True, saved


def _train(config: Config, folder: RunFolder, device: torch.device, saved: Path | None) -> None:
    """Train from the checkpoint `saved`, or from `init` where there is none, to the end."""
    collectives.check_shared(folder.path, "run_dir")
    collectives.check_shared(cache_dir(), "REWARM_CACHE")
    # A manifest without a config is that of a command which was killed before its run began.
    begun = collectives.broadcast_object(lambda: read_manifest(folder.path) if folder.exists() else Manifest())
    plan = make_plan(config, begun.extensions)
    if early := plan.early_stop():
        log.info("%s", early)
    set_up_host(config.train, device, kept_threads(config.train.threads, begun.conditions.threads, os.environ))
    # Where `init` leads to can change from day to day: what it meant when the run was begun holds, and for all.
    pinned = begun.init or collectives.broadcast_object(lambda: None if saved else pin(resolve_init(config.init)))
    with collectives.main_process_first():
        init = resolve_pinned(pinned) if pinned and not saved else Init(str(saved), saved, whole=True)
        tokenizer = load_tokenizer(config.data.tokenizer)
        data = open_data(
            config,
            plan,
            tokenizer,
            fills=world.is_first(),
            author=StartModel.of(config, pinned, tokenizer, device),
        )
        if begun.id is None:  # a run that was begun with a field that nobody has can go on
            check_domain_fields(config, data.validation)
    data.wait()  # for the start model, which then gives back its memory
    check_same_data(begun.data, data.fingerprint, folder)
    precision = choose_precision(config, begun.chosen, device)
    state, token_loss, anchor = build_state(config, plan, init, pinned if saved else None, tokenizer, precision)
    if saved is not None:
        resume(config, state, saved)
        log.info("%s: continues after step %d", folder.path, state.step)
    elif config.init_optimizer:
        load_moments(init.folder, state, config.init)
    chosen = make_choices(config, plan, begun.chosen, token_loss, precision)
    assert chosen.micro_batch_size is not None
    if chosen.compiled:
        compile_model(token_loss, by_block=world.size() > 1)
    peak = peak_tokens_per_second(config, precision)
    loop = Loop(config, plan, state, token_loss, data, precision, chosen.micro_batch_size, peak, anchor)
    recorder = Recorder()
    if world.is_first():
        folder.trim_metrics(state.step if saved else -1)
        manifest = _manifest(begun, pinned, loop, chosen)
        if saved and (difference := changed(begun, manifest)):
            log.warning("%s: %s", folder.path, describe_change(difference, state.step))
            manifest = replace(manifest, changes=[*begun.changes, {"after": state.step, **difference}])
        folder.write_manifest(manifest)
        folder.write_config(config)
        recorder = RunRecorder(config, plan, folder, manifest.id or "", state.tokens, begins=begun.id is None)
    profiled = folder.path / "profile" if config.profile and world.is_first() else None
    writer = Writer(folder, config.checkpoint, plan, state.model, tokenizer.folder)
    with recorder:
        with (
            make_saver(state, writer) as saver,
            StopRequest(config.max_hours, collectives.largest) as stop,
            StepProfiler(profiled, plan.steps - state.step) as profiler,
        ):
            train(loop, recorder, saver, stop, profiler)
        if state.step < plan.steps:
            raise stop.error()
        summary = recorder.finish()
    if summary is not None:
        sys.stdout.write(table(folder.path, summary, plan.early_stop(), proxy=config.proxied))
