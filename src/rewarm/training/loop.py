"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from rewarm.config.plan import Plan
from rewarm.config.schema import SIDES, Config
from rewarm.data.prepare import RunData
from rewarm.errors import DivergedError, UserError, first_line
from rewarm.model.losses import TokenLoss
from rewarm.model.weights import check_ids
from rewarm.schedules import lr
from rewarm.training.anchor import Anchor
from rewarm.training.checkpoints.saving import Saver
from rewarm.training.distributed import collectives, parallel, world
from rewarm.training.evaluation import evaluate_sides
from rewarm.training.microbatch import too_large
from rewarm.training.precision import Precision
from rewarm.training.profiling import StepProfiler
from rewarm.training.recorder import Recorder
from rewarm.training.signals import StopRequest
from rewarm.training.state import TrainState

log = logging.getLogger(__name__)


class Stopwatch:
    """Adds up the seconds in which it is entered."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._entered: float | None = None

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds, self._entered = self.seconds, None

    @property
    def seconds(self) -> float:
        """Return them, up to now."""
        return self._seconds + (0.0 if self._entered is None else time.perf_counter() - self._entered)


@dataclass
class Loop:
    """One run's training, part by part; `train` says when each is done."""

    config: Config
    plan: Plan
    state: TrainState
    token_loss: TokenLoss
    data: RunData
    precision: Precision
    micro_batch_size: int
    peak_tokens_per_second: float | None = None
    """What the device could do if it did nothing but the model's products, for the metric `mfu`."""
    anchor: Anchor | None = None
    """What pulls the weights towards the start."""
    clock: Stopwatch = field(init=False, default_factory=Stopwatch)
    """Runs while the model trains: evaluations and checkpoints do not count for the speed."""
    _timed: tuple[float, int] = field(init=False, default=(0.0, 0))
    _trained: nn.Module = field(init=False)
    """What goes forward and backward: `token_loss`, alone or as several processes share it."""

    def __post_init__(self) -> None:
        self._trained = parallel.replicate(self.token_loss, self.precision.device)

    def forward_backward(self) -> Tensor:
        """Compute the gradients of the next step's batch and return its loss. Nothing here waits for the device.

        The loss is FP32 and 0-dim: the batch's mean, or this process's part of it. `.grad` holds the gradient of the
        sum of the tokens' losses, each times the scaler's factor; all processes have the mean of theirs.
        """
        with record_function("batch"):
            share = world.share(self.config.train.batch_size)
            rows = self.data.batches.rows(self.state.step + 1, share.start, share.stop)
            check_ids(rows, self.state.model)
            windows = torch.from_numpy(rows)
            if self.precision.device.type == "cuda":
                windows = windows.pin_memory()  # else the copy is made twice, and the host waits for the first
            windows = windows.to(self.precision.device, non_blocking=True)
        with record_function("forward and backward"):
            try:
                return self._accumulate_gradients(windows)
            except torch.OutOfMemoryError as error:
                raise too_large(self.config.train.context, self.micro_batch_size, len(windows), error) from None
            except RuntimeError as error:
                if "does not have a deterministic implementation" not in str(error):
                    raise
                raise UserError(
                    f"train.deterministic=true: not with this model and device; leave it out ({first_line(error)})"
                ) from None

    def update(self, loss: Tensor) -> None:
        """Take the optimizer's step with the clipped gradients, unless something in it is not finite.

        Nothing here waits for the device.
        """
        with record_function("optimizer"):
            self._apply(loss)
        self.state.step += 1
        self.state.tokens += self.plan.tokens_per_step
        if self.state.average is not None:
            self.state.average.take(self.state.step)

    def _apply(self, loss: Tensor) -> None:
        state, clip = self.state, self.config.optimizer.clip
        gradients = [p.grad for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
        # What is in `.grad` is this much larger than the gradient of the batch's mean loss. DDP and FSDP average it.
        scale = state.scaler.factor * (self.plan.tokens_per_step / world.size())
        norm = parallel.full_tensor(torch.nn.utils.get_total_norm(gradients, foreach=True)) / scale
        found_inf = collectives.any_of((~torch.isfinite(norm + loss)).float())
        # The fused step divides by `grad_scale`, which makes means and clips in one pass, and leaves weights and
        # moments alone where `found_inf` is 1.
        optimizer = state.optimizer
        optimizer.grad_scale = scale * (norm / clip).clamp(min=1.0)  # type: ignore[attr-defined]
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["lr"] = lr(self.plan.schedule, state.step + 1)
        optimizer.step()
        if self.anchor is not None:
            self.anchor.pull(lr(self.plan.schedule, state.step + 1), found_inf)
        optimizer.zero_grad(set_to_none=True)
        state.scaler.update(found_inf)
        state.add(loss, norm, found_inf)

    def _accumulate_gradients(self, windows: Tensor) -> Tensor:
        factor = self.state.scaler.factor
        if self.token_loss.teacher is not None:
            self.token_loss.teacher.divergence.zero_()
        scaled = torch.zeros((), device=self.precision.device)
        parts = torch.split(windows, self.micro_batch_size)
        for number, micro in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else parallel.no_sync(self._trained):
                with self.precision.autocast():
                    part = self._trained(micro, factor)
                part.backward()
            scaled += part.detach()
        return scaled / (factor * self.plan.tokens_per_step)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the steps since the last line. Here the host waits for the device."""
        state = self.state
        loss, norm = state.take_means()
        self.check_finite()
        return {
            **state.position(),
            "train/loss": loss,
            "lr": lr(self.plan.schedule, state.step),
            "grad_norm": norm,
            "loss_scale": state.scaler.scale.item(),
            "skipped": float(state.scaler.skipped.item()),
            **({} if self.anchor is None else {"anchor/distance": self.anchor.distance()}),
            **self._divergence(),
            **self._speed(),
        }

    def _divergence(self) -> dict[str, float]:
        """Return how far a token's prediction of the last update was from the teacher's, where there is one."""
        teacher = self.token_loss.teacher
        if teacher is None:
            return {}
        collectives.total(teacher.divergence)
        return {"anchor/kl": teacher.divergence.item() / self.plan.tokens_per_step}

    def check_finite(self) -> None:
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

    def _speed(self) -> dict[str, float]:
        """Return the speed since the last call, NaN the first time, which compiles and allocates."""
        seconds, tokens = self._timed
        self._timed = (self.clock.seconds, self.state.tokens)
        elapsed = self._timed[0] - seconds
        speed = (self.state.tokens - tokens) / elapsed if tokens and elapsed > 0 else math.nan
        mfu = {} if self.peak_tokens_per_second is None else {"mfu": speed / self.peak_tokens_per_second}
        return {"tokens_per_second": speed, **mfu}

    def evaluate(self) -> dict[str, float]:
        """Score both validation sets. A loss that is not finite is logged as it is, and training goes on."""
        batch = self.config.evaluation.batch_size
        scores = evaluate_sides(self.token_loss, self.data.validation, self.precision, batch)
        for side in SIDES:
            loss = scores[f"{side}/loss"]
            if not math.isfinite(loss):
                log.warning("%s loss is %g at step %d; training goes on", side, loss, self.state.step)
        return self.state.position() | scores | self._average_scores()

    def _average_scores(self) -> dict[str, float]:
        """Return both losses of the running average, where there is one."""
        if self.state.average is None:
            return {}
        with self.state.average.swapped():
            batch = self.config.evaluation.batch_size
            scores = evaluate_sides(self.token_loss, self.data.validation, self.precision, batch)
        return {f"{side}/loss_avg": scores[f"{side}/loss"] for side in SIDES}


def train(loop: Loop, recorder: Recorder, saver: Saver, stop: StopRequest, profiler: StepProfiler) -> None:
    """Train from the state's step to the plan's last, or until asked to stop; then the state is saved.

    Every process of a run does this, step by step together. What only one of them has to do, as to write metrics, is
    nothing in the `recorder` and `saver` of the others.
    """
    state, plan = loop.state, loop.plan
    if state.step == 0:
        recorder.write(loop.evaluate())
    while state.step < plan.steps:
        with loop.clock:
            loss = loop.forward_backward()
            saver.wait_for_copy()  # of a checkpoint of the state that changes now
            loop.update(loss)
            metrics = loop.metrics() if plan.logs(state.step) else {}
            if plan.saves(state.step):
                loop.check_finite()  # waits for the device, whose time would else pass while nothing counts it
            profiler.step()  # this too, at the end
        recorder.advance(plan.tokens_per_step)
        if metrics:
            recorder.write(metrics | (loop.evaluate() if plan.evaluates(state.step) else {}))
        leaving = stop.asked(state.step, saver.seconds)
        if plan.saves(state.step) or leaving:
            loop.check_finite()
            state.gather_sums()
            saver.save()
        if leaving:
            return
