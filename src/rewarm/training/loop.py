"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from tqdm import tqdm

from rewarm.config import SIDES, Config
from rewarm.data.prepare import RunData
from rewarm.errors import DivergedError, RewarmError
from rewarm.evaluation import evaluate
from rewarm.losses import TokenLoss
from rewarm.plan import Plan
from rewarm.schedules import lr
from rewarm.training import distributed
from rewarm.training.microbatch import next_smaller
from rewarm.training.precision import Precision
from rewarm.training.state import TrainState

log = logging.getLogger(__name__)

Metrics = dict[str, float]


def describe(tokens: int, metrics: Metrics) -> str:
    """Return an evaluation in one line."""
    sides = ", ".join(f"{side} {metrics[f'{side}/loss']:.4f}" for side in SIDES)
    speed = metrics["tokens_per_second"]
    known = f", {speed:,.0f} tokens/s" if math.isfinite(speed) else ""
    return f"{tokens:,} tokens: loss {sides}, lr {metrics['lr']:.3g}{known}"


@dataclass
class Loop:
    """One run's training: updates, metrics, evaluations and checkpoints in step order."""

    config: Config
    plan: Plan
    state: TrainState
    token_loss: TokenLoss
    data: RunData
    precision: Precision
    micro_batch_size: int
    record: Callable[[Metrics], None] = lambda _: None
    """Called with each line of metrics."""
    save: Callable[[], object] = lambda: None
    """Called when a checkpoint is due."""
    settle: Callable[[], None] = lambda: None
    """Called before an update changes the state, which a save may still be copying."""
    stop_asked: Callable[[], bool] = lambda: False
    """Asked after every step: whether to save and leave."""
    updated: Callable[[], None] = lambda: None
    """Called after every update."""
    micro_batch_shrunk: Callable[[int], None] = lambda _: None
    """Called with a smaller micro-batch that is used from now on, because the device ran out of memory."""
    peak_tokens_per_second: float | None = None
    """What the device could do if it did nothing but the model's products, for the metric `mfu`."""
    training_seconds: float = 0.0
    """Time spent in updates, evaluations and checkpoints left out."""
    _timed: tuple[float, int] = field(default=(0.0, 0))
    _trained: nn.Module = field(init=False)
    """What goes forward and backward: `token_loss`, alone or as several processes share it."""

    def __post_init__(self) -> None:
        self._trained = distributed.replicate(self.token_loss, self.precision.device)

    def run(self) -> bool:
        """Train from the state's step to the last one; return False where it was asked to stop before."""
        if self.state.step == 0:
            self._log(self._evaluate())
        total = self.plan.steps * self.plan.tokens_per_step
        hidden = None if distributed.is_first() else True
        with tqdm(total=total, initial=self.state.tokens, unit="tok", unit_scale=True, disable=hidden) as bar:
            while self.state.step < self.plan.steps:
                start = time.perf_counter()
                self.update()
                self.updated()
                step = self.state.step
                metrics = self._training_metrics() if self.plan.logs(step) else {}
                self.training_seconds += time.perf_counter() - start
                bar.update(self.plan.tokens_per_step)
                if metrics:
                    metrics |= self._speed()
                    bar.set_postfix(loss=f"{metrics['train/loss']:.3f}", lr=f"{metrics['lr']:.2e}", refresh=False)
                    if self.plan.evaluates(step):
                        metrics |= self._evaluate()
                        if bar.disable:  # no terminal: a line in the log instead
                            log.info("%s", describe(self.state.tokens, metrics))
                    self._log(metrics)
                stop = self.stop_asked()
                if self.plan.saves(step) or stop:
                    self._check_finite()
                    self.state.gather_sums()
                    self.save()
                if stop and step < self.plan.steps:
                    return False
        return True

    def update(self) -> None:
        """Do one optimizer step on the batch of the next step. Nothing here waits for the device."""
        state, step = self.state, self.state.step + 1
        with record_function("batch"):
            share = distributed.share(self.config.train.batch_size)
            rows = self.data.batches.rows(step, share.start, share.stop)
            windows = torch.from_numpy(rows)
            if self.precision.device.type == "cuda":
                windows = windows.pin_memory()  # else the copy is made twice, and the host waits for the first
            windows = windows.to(self.precision.device, non_blocking=True)
        with record_function("forward and backward"):
            loss = self._gradients(windows)
        with record_function("optimizer"):
            self._apply(loss, step)
        state.step = step
        state.tokens += self.plan.tokens_per_step

    def _apply(self, loss: Tensor, step: int) -> None:
        """Clip the gradients and take the optimizer's step, unless something in it is not finite."""
        state, clip = self.state, self.config.optimizer.clip
        gradients = [p.grad for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = distributed.whole(torch.nn.utils.get_total_norm(gradients, foreach=True)) / state.scaler.scale
        found_inf = distributed.any_of((~torch.isfinite(norm + loss)).float())
        # The fused step divides by `grad_scale`, which undoes the loss scale and clips in one pass, and leaves
        # weights and moments alone where `found_inf` is 1.
        optimizer = state.optimizer
        optimizer.grad_scale = state.scaler.scale * (norm / clip).clamp(min=1.0)  # type: ignore[attr-defined]
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["lr"] = lr(self.plan.schedule, step)
        self.settle()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.scaler.update(found_inf)
        state.add(loss, norm, found_inf)

    def _gradients(self, windows: Tensor) -> Tensor:
        """Do what `_accumulate_gradients` does, in smaller parts where the device runs out of memory."""
        while True:
            try:
                return self._accumulate_gradients(windows)
            except torch.OutOfMemoryError as error:
                smaller = next_smaller(len(windows), self.micro_batch_size)
                if distributed.size() > 1 and smaller is not None:
                    raise RewarmError(
                        f"train.micro_batch_size={self.micro_batch_size}: does not fit the device's memory, and "
                        f"several processes cannot change it on the way; give train.micro_batch_size={smaller}"
                    ) from None
                if smaller is None:
                    raise RewarmError(
                        f"train.context={self.config.train.context}: not even one sequence fits the device's memory; "
                        f"give a shorter context or a smaller model ({str(error).splitlines()[0]})"
                    ) from None
            self.state.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            log.warning("out of memory: %d sequences at once from now on, not %d", smaller, self.micro_batch_size)
            self.micro_batch_size = smaller
            self.micro_batch_shrunk(smaller)

    def _accumulate_gradients(self, windows: Tensor) -> Tensor:
        """Add the gradient of the batch's mean loss, times the loss scale; return that mean, FP32, 0-dim.

        Of several processes each returns its own part of the mean, and all have the gradient of the whole.
        """
        scale = self.state.scaler.scale
        factor = scale * distributed.size()  # because gradients are averaged over the processes
        scaled = torch.zeros((), device=self.precision.device)
        parts = torch.split(windows, self.micro_batch_size)
        for number, micro in enumerate(parts, 1):
            with distributed.sharing_gradients(self._trained, now=number == len(parts)):
                with self.precision.autocast():
                    part = self._trained(micro, factor / self.plan.tokens_per_step)
                part.backward()
            scaled += part.detach()
        return scaled / factor

    def _training_metrics(self) -> Metrics:
        """Return the metrics of the steps since the last line. Here the host waits for the device."""
        state = self.state
        loss, norm = state.take_means()
        self._check_finite()
        return {
            "train/loss": loss,
            "lr": lr(self.plan.schedule, state.step),
            "grad_norm": norm,
            "loss_scale": state.scaler.scale.item(),
            "skipped": float(state.scaler.skipped.item()),
        }

    def _check_finite(self) -> None:
        """Stop the run after too many non-finite steps in a row; without loss scaling, one is too many."""
        scaler = self.state.scaler
        allowed = self.config.train.max_bad_steps if scaler.dynamic else 1
        bad = int((scaler.skipped_in_a_row if scaler.dynamic else scaler.skipped).item())
        if bad >= allowed:
            raise DivergedError(
                f"stopped at step {self.state.step}: {bad} non-finite steps in a row "
                f"(lr {lr(self.plan.schedule, self.state.step):.3g}, loss scale {scaler.scale.item():g}); "
                f"the last checkpoint is kept; lower max_lr, or lengthen warmup"
            )

    def _speed(self) -> Metrics:
        """Return the speed since the last call, NaN the first time, which compiles and allocates."""
        seconds, tokens = self._timed
        self._timed = (self.training_seconds, self.state.tokens)
        elapsed = self.training_seconds - seconds
        speed = (self.state.tokens - tokens) / elapsed if tokens and elapsed > 0 else math.nan
        mfu = {} if self.peak_tokens_per_second is None else {"mfu": speed / self.peak_tokens_per_second}
        return {"tokens_per_second": speed, **mfu}

    def _evaluate(self) -> Metrics:
        """Score both validation sets. A loss that is not finite is logged as it is, and training goes on."""
        scores: Metrics = {}
        for side, data in {"upstream": self.data.upstream, "downstream": self.data.downstream}.items():
            found = evaluate(self.token_loss, data, self.precision, self.config.evaluation.batch_size)
            scores |= {f"{side}/{key}": value for key, value in found.items()}
            if not math.isfinite(found["loss"]):
                log.warning("%s loss is %g at step %d; training goes on", side, found["loss"], self.state.step)
        return scores

    def _log(self, metrics: Metrics) -> None:
        self.record({"step": self.state.step, "tokens": self.state.tokens} | metrics)
