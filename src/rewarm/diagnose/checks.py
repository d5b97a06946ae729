"""The checks of a diagnosis, each a pure function from what was seen to a finding, or to nothing.

Losses are nats a token. What is healthy in continued training is no finding: a loss that rises while the learning
rate is re-warmed and comes back, new data that is learned, old data that loses less than `NOTABLE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rewarm.diagnose.seen import FEWEST, Seen, Series

NOTABLE = 0.02
"""Difference below which losses count as equal: 2 % of perplexity, as in the verdicts of a report."""
DIVERGED = 1.0
"""How far a loss that was learned must rise over its lowest to count as lost."""
JUMP = 0.1
"""Least height of a spike at the start, of a jump later on, and of a domain's loss that comes back."""
BEYOND_NOISE = 6.0
"""A jump is so many times larger than the noise."""
SKIPPED = 0.01
"""Share of updates skipped in FP16 from which on the loss scale is in trouble."""
LR_JUMP = 1.5
"""Factor by which the LR jumps from one update to the next, where it does."""


@dataclass(frozen=True)
class Finding:
    """What a check saw."""

    what: str
    evidence: str
    advice: str


def _rose(series: Series, least: float = NOTABLE) -> bool:
    """Return whether a loss ends above its start, the state before the first update, by more than noise."""
    return len(series) > 1 and series.steps[0] == 0 and series.rise > max(least, 3 * np.nan_to_num(series.noise))


def divergence(seen: Seen) -> Finding | None:
    """Find a loss that was learned and then lost."""
    found, advice = seen.learned, f"max_lr={seen.cooler:.1g}, or a longer warmup, from a checkpoint before it"
    trained = seen.column("train/loss")[seen.column("step") > 0]
    if len(trained) > 1 and np.isnan(trained[-2:]).all() and len(seen.train):  # a skipped update leaves one such line
        return Finding(
            "divergence", f"the training loss is not finite after step {seen.train.steps[-1]:,.0f}", advice
        )
    low = int(found.losses.argmin()) if len(found) else 0
    if not len(found) or found.losses[-1] - found.losses[low] < DIVERGED:
        return None
    evidence = (
        f"{seen.own_text} went from {found.losses[low]:.3f} at step {found.steps[low]:,.0f} to {found.losses[-1]:.3f}"
    )
    return Finding("divergence", f"{evidence}; the LR went up to {seen.top_lr:.3g}", advice)


def loss_scale(seen: Seen) -> Finding | None:
    """Find updates that were skipped because a gradient was not finite."""
    skipped, scale = (values[np.isfinite(values)] for values in map(seen.column, ("skipped", "loss_scale")))
    if seen.run is None or not len(skipped) or not skipped[-1]:
        return None
    fp16 = seen.run.manifest.chosen.precision == "fp16"
    at_bottom = len(scale) > 1 and scale[-1] <= seen.run.config.scaler.min_scale
    if fp16 and not at_bottom and skipped[-1] <= max(5, SKIPPED * seen.last_step):
        return None
    ends = f", and the loss scale ends at {scale[-1]:g}" if fp16 and len(scale) else ""
    return Finding(
        "trouble with the loss scale" if fp16 else "gradients that are not finite",
        f"{skipped[-1]:.0f} of {seen.last_step:,} updates were skipped{ends}",
        ("precision=bf16 where the device can; else " if fp16 else "") + "a lower max_lr, or a longer warmup",
    )


def step_of_return(found: Series) -> float | None:
    """Return the step at which a falling loss is back where it began; None where it does not fall.

    A line is fitted by least squares to the losses of the later half since the peak, against the logarithm of the
    step, in which losses fall about straight.
    """
    since = max(found.top, len(found) - max(3, (len(found) - found.top) // 2 + 1))
    steps, losses = found.steps[since:], found.losses[since:]
    if len(steps) < 3 or steps[0] <= 0:
        return None
    slope, _ = np.polyfit(np.log(steps), losses, 1)
    if -slope * math.log(steps[-1] / steps[0]) <= 2 * np.nan_to_num(found.noise):
        return None
    return float(steps[-1] * math.exp(min(found.rise / -slope, 30)))


def gap(seen: Seen) -> Finding | None:
    """Find a stability gap (Lange et al. 2022) that is not over: what is trained on does worse than ever before."""
    found, planned = seen.learned, len(seen.lr)
    if not seen.shifted or not _rose(found) or found.losses[0] - found.losses.min() > NOTABLE or divergence(seen):
        return None
    above = f"{seen.own_text} is {found.rise:.2f} above its start ({found.ends})"
    back = step_of_return(found)
    pace = "it does not fall yet" if back is None else f"at this pace it is back at step {back:,.0f}"
    if not seen.finished and (seen.early or (back is not None and back <= planned)):
        more = "the LR still rises" if seen.last_step <= seen.warmup_steps else pace
        wait = f"wait {seen.amount(back - seen.last_step)} more" if back is not None else "wait until half of the run"
        return Finding("a stability gap", f"{above} at step {seen.last_step:,} of {planned:,}; {more}", wait)
    lr = float(seen.lr[max(seen.last_step, 1) - 1])
    return Finding(
        "the LR is too hot for the budget",
        f"{above} at step {seen.last_step:,} of {planned:,}; {pace}; the LR is {lr:.3g} of at most {seen.top_lr:.3g}",
        f"max_lr={seen.cooler:.1g}, a decay that ends with the budget (schedule=cosine), or more tokens",
    )


def forgetting(seen: Seen) -> Finding | None:
    """Find old data that is lost, and say by what, where a run on the old data alone tells."""
    old, same = seen.sides.get("upstream"), seen.files.same_data
    if old is None or seen.scratch or not _rose(old) or (seen.early and not seen.finished):
        return None
    lost = f"the loss on the old data rose by {old.rise:.3f} ({old.ends})"
    cooler, replay = "a lower max_lr, or a decay to its end", "replay=0.05, or 0.25 for a strong shift"
    if not seen.shifted:
        return Finding("forgetting that is the LR's", f"{lost}, though nothing else is trained on", cooler)
    if same is None:
        which = f"; whether it is the shift or the LR, say: {seen.files.same_data_command}"
        return Finding("forgetting", lost, f"{replay}; {cooler}{which if seen.files.same_data_command else ''}")
    share = max(0.0, min(1.0, same / old.rise))
    return Finding(
        f"forgetting that is mostly the {'LR' if share > 0.5 else 'shift'}'s",
        f"{lost}; the same run on the old data alone lost {same:.3f}, {share:.0%} of it",
        cooler if share > 0.5 else replay,
    )


def cold(seen: Seen) -> Finding | None:
    """Find a run whose LR was too low to learn anything."""
    found = seen.learned
    if len(found) < FEWEST or found.steps[0] > 0 or not seen.shifted or seen.last_step < 0.3 * len(seen.lr):
        return None
    if abs(found.rise) > NOTABLE or found.losses.max() - found.losses[0] > NOTABLE:
        return None
    peak = seen.peak_lr
    return Finding(
        "the LR is too cold to learn",
        f"{seen.own_text} moved by {found.rise:+.4f} in {seen.amount(seen.last_step)} and never rose; the LR is at "
        f"most {seen.top_lr:.3g}" + (f", pre-training's was {peak:.3g}" if peak else ""),
        f"max_lr={max(3 * seen.top_lr, (peak or 0) / 3):.1g}; or the model knows this data already",
    )


def restart(seen: Seen) -> Finding | None:
    """Find a start that lies above the end of the run it goes on from."""
    for side, was in seen.files.before.items():
        series = seen.sides.get(side)
        if series is None or series.steps[0] > 0 or series.losses[0] - was <= NOTABLE:
            continue
        return Finding(
            "a restart that begins higher than it ended",
            f"{side} loss is {series.losses[0]:.3f} before the first update, and was {was:.3f} at the checkpoint; "
            + (", ".join(seen.files.differs) or "tokenizer and context are the same, precision may not be"),
            "the tokenizer and the packing that the checkpoint knows",
        )
    return None


def begin_of_text(seen: Seen) -> Finding | None:
    """Find a model that knows a begin-of-text token, and lost much when it was trained without one."""
    token, found = seen.files.begins_with, seen.learned
    if token is None or not len(found) or found.losses.max() - found.losses[0] < JUMP:
        return None
    evidence = f"the start checkpoint's tokenizer puts {token} before every text, and this data has none"
    return Finding("texts without their begin-of-text token", evidence, f"{token} at the start of each text")


def jump(seen: Seen) -> Finding | None:
    """Find a jump in the middle of a curve that was not rising, as a restart or a new LR makes one."""
    since = max(2.0 * seen.warmup_steps, 0.1 * len(seen.lr))
    for name, series in ((seen.own, seen.learned), ("train", seen.train)):
        if len(series) < FEWEST:
            continue
        changes, steps = np.diff(series.losses), series.steps
        before, rises, after = changes[:-2], changes[1:-1], changes[2:]
        least = max(JUMP, BEYOND_NOISE * series.noise)
        # One outlier is no jump, and a loss that rises as it did before is none either.
        sudden = (rises > least) & (rises > 3 * before) & (after > -rises / 2) & (steps[1:-2] >= since)
        if not 1 <= sudden.sum() <= 3:
            continue
        i = int(sudden.argmax()) + 1
        evidence = f"{name} loss rises by {changes[i]:.2f} between steps {steps[i]:,.0f} and {steps[i + 1]:,.0f}"
        lr = np.maximum(seen.lr[max(int(steps[i]), 1) - 1 : int(steps[i + 1])], 1e-12)
        at = int((lr[1:] / lr[:-1]).argmax()) if len(lr) > 1 else 0
        if len(lr) > 1 and lr[at + 1] > LR_JUMP * lr[at]:
            evidence += f", where the LR goes from {lr[at]:.3g} to {lr[at + 1]:.3g}"
            return Finding("the LR jumps", evidence, "a warm-up to the new LR, or the old one")
        return Finding(
            "a restart that begins higher than it ended",
            f"{evidence}, and the LR does not",
            "where it was restarted, the optimizer state (init_optimizer=true), tokenizer, packing, and begin- and "
            "end-of-text tokens as before",
        )
    return None


def spike(seen: Seen) -> Finding | None:
    """Find a spike at the start that a warm-up would have spared."""
    found, planned = seen.learned, len(seen.lr)
    early = found.steps <= 0.05 * planned
    if seen.warmup_steps >= 0.005 * planned or early.sum() < 2 or early.all() or found.steps[0] > 0:
        return None
    top = int(found.losses[early].argmax())
    height = float(found.losses[top] - found.losses[0])
    if height < JUMP or found.losses[top] - found.losses[~early][0] < height / 2:
        return None
    return Finding(
        "a spike for want of a warm-up",
        f"{seen.own_text} jumps by {height:.2f} in {found.steps[top]:,.0f} steps, and {seen.warmup_steps:,} warm up",
        "warmup=0.01, or leave it: it leaves no mark in the end",
    )


def repeated(seen: Seen) -> Finding | None:
    """Find data that was read so often that it is learned by heart."""
    train, found = seen.train, seen.sides.get(seen.own or "", Series.none())
    low = int(found.losses.argmin()) if len(found) else 0
    later = train.steps >= found.steps[low] if len(found) else np.zeros(0, bool)
    if later.sum() < 6 or len(found) - low < 3 or low == 0:
        return None
    first, *_, last = np.array_split(train.losses[later], 3)
    fell, up = float(first.mean() - last.mean()), float(found.losses[-1] - found.losses[low])
    if fell < NOTABLE or up < max(NOTABLE, 3 * np.nan_to_num(found.noise)):
        return None
    read = f", read {seen.files.epochs:.1f} times," if seen.files.epochs and seen.files.epochs > 1 else ""
    evidence = f"since step {found.steps[low]:,.0f} the training loss{read} fell by {fell:.3f}"
    return Finding(
        "repeated data",
        f"{evidence}, and {seen.own_text} rose by {up:.3f}",
        f"an end after {seen.amount(found.steps[low])}, or more data",
    )


def order(seen: Seen) -> Finding | None:
    """Find a sorted corpus: domains that are learned one after the other, and lost again."""
    for one, losses in seen.domains.items():
        low = int(losses.argmin())
        if low == 0 or losses[-1] - losses[low] < JUMP:
            continue
        for other, others in seen.domains.items():
            if len(others) == len(losses) and others[low] - others[-1] > JUMP:
                evidence = f"{one} was learned and rose again by {losses[-1] - losses[low]:.2f}, while {other} fell"
                return Finding("a sorted corpus", evidence, "shuffled documents, or a larger data.shuffle_window")
    return None


def embeddings(seen: Seen) -> Finding | None:
    """Find an embedding that is, to the last bit, what it was at the start."""
    evidence = f"{seen.files.frozen} is what it was at the start, other weights are not"
    advice = "an optimizer that is made after the embedding was resized or tied"
    return Finding("embeddings that are not trained", evidence, advice) if seen.files.frozen else None


def noise(seen: Seen) -> Finding | None:
    """Find an evaluation that says less than what it is asked for."""
    for side, series in seen.sides.items():
        if series.noise > NOTABLE and abs(series.rise) < 2 * series.noise:
            evidence = f"{side} loss moved by {series.rise:+.3f} in all, and scatters by {series.noise:.3f}"
            return Finding(
                "an evaluation noisier than the differences",
                evidence,
                "more text, and the same each time (data.validation_tokens)",
            )
    return None


CHECKS: tuple[Callable[[Seen], Finding | None], ...] = (
    divergence,
    loss_scale,
    gap,
    forgetting,
    cold,
    restart,
    begin_of_text,
    jump,
    spike,
    repeated,
    order,
    embeddings,
    noise,
)
"""All checks, the likeliest causes first."""


def diagnose(seen: Seen) -> list[Finding]:
    """Return what the checks found, the likeliest first."""
    return [finding for check in CHECKS if (finding := check(seen)) is not None]
