"""What a run trains with: its host, its model and state, and what rewarm chooses where a config leaves it open."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch
from torch import nn

from rewarm.config.plan import Plan
from rewarm.config.schema import Config, TrainConfig
from rewarm.data.tokenizers import Tokenizer
from rewarm.errors import CheckpointError
from rewarm.model.architectures import balance_of
from rewarm.model.init import Init, resolve_pinned
from rewarm.model.losses import Teacher, TokenLoss
from rewarm.model.shape import flops_per_token, run_flops
from rewarm.model.weights import check_fits, load_model
from rewarm.runs.checkpoint import AVERAGE
from rewarm.runs.manifest import Chosen, Pinned
from rewarm.training import microbatch
from rewarm.training.anchor import Anchor
from rewarm.training.average import RunningAverage
from rewarm.training.checkpoints.loading import load
from rewarm.training.compiling import compiles, keep_compiled_code
from rewarm.training.distributed import collectives, parallel, world
from rewarm.training.exactness import be_deterministic
from rewarm.training.precision import DTYPES, LossScaler, Precision, peak_flops, resolve_precision
from rewarm.training.recompute import recompute
from rewarm.training.state import TrainState, make_optimizer


def set_up_host(config: TrainConfig, device: torch.device, threads: int | None = None) -> None:
    """Set threads, and whether all that this process computes is the same each time it does.

    On a CPU, also tell glibc to keep large blocks: giving them back costs a third of the speed.
    """
    keep_compiled_code()
    if threads := threads or config.threads:
        torch.set_num_threads(threads)
    asked = config.deterministic
    be_deterministic(wanted=device.type == "cpu" if asked is None else asked, strict=asked is True)
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def build_state(
    config: Config, plan: Plan, init: Init, start: Pinned | None, tokenizer: Tokenizer, precision: Precision
) -> tuple[TrainState, TokenLoss, Anchor | None]:
    """Return the state with the weights of `init`, its model together with its loss, and what pulls it to its start.

    The start is `init`, or for a run that goes on what it began with.
    """
    torch.manual_seed(config.seed)

    def load_start() -> nn.Module:
        return load_model(resolve_pinned(start) if start else init, config.model, config.seed, precision.device)

    model = load_model(init, config.model, config.seed, precision.device)
    check_fits(model, config.train.context, tokenizer)
    recompute(model, config.train.recompute)
    teacher = Teacher.of(load_start(), config.anchor.kl) if config.anchor.kl else None
    token_loss = TokenLoss(model, balance_of(model, config.model.router_loss), teacher)
    if config.train.parallel != "ddp":
        nodes = world.nodes(os.environ) if config.train.parallel == "hsdp" else 1
        parallel.shard(token_loss, precision.device, DTYPES[precision.name], nodes)
    scaler = LossScaler(config.scaler, precision.device, dynamic=precision.scales)
    average = RunningAverage.of(config.average, plan, model)
    anchor = Anchor.of(config.anchor.l2, model, load_start() if start else None) if config.anchor.l2 else None
    return TrainState(model, make_optimizer(model, config.optimizer), scaler, average), token_loss, anchor


def resume(config: Config, state: TrainState, saved: Path) -> None:
    """Take everything but the weights out of a checkpoint. Raises `CheckpointError` where that has not all of it."""
    load(saved, state)
    if state.average is None:
        return
    if not (saved / AVERAGE).is_dir():
        raise CheckpointError(f"{saved}: has no running average; leave average.half_life out")
    init = Init(str(saved), saved / AVERAGE, whole=True)
    whole = load_model(init, config.model, config.seed, torch.device("cpu"))
    values = (p.detach() for p in whole.parameters() if p.requires_grad)
    for mean, value in zip(state.average.means, values, strict=True):
        parallel.copy_whole(value, mean)


def choose_precision(config: Config, begun: Chosen, device: torch.device) -> Precision:
    """Return the precision: as asked for, else that which the run was `begun` with, else what suits the device."""
    name = begun.precision or "auto" if config.precision == "auto" else config.precision
    return Precision(collectives.broadcast_object(lambda: resolve_precision(name, device).name), device)


def make_choices(config: Config, plan: Plan, begun: Chosen, token_loss: TokenLoss, precision: Precision) -> Chosen:
    """Return what rewarm chooses by itself. What it chose when the run was `begun` stays: numbers depend on it."""
    micro_batch = config.train.micro_batch_size or begun.micro_batch_size
    if not micro_batch or len(world.share(config.train.batch_size)) % micro_batch:
        micro_batch = collectives.broadcast_object(lambda: microbatch.choose(config, token_loss, precision))
    compiled = begun.compiled
    if compiled is None:
        compiled = collectives.broadcast_object(lambda: compiles(config, precision.device, run_flops(config, plan)))
    return Chosen(precision.name, micro_batch, compiled)


def peak_tokens_per_second(config: Config, precision: Precision) -> float | None:
    """Return what all devices could do if they did nothing but the model's products; None where that is not known."""
    peak, flops = peak_flops(config.train.peak_tflops, precision), flops_per_token(config)
    return peak * world.size() / flops if peak and flops else None
