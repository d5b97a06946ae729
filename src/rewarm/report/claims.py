"""The six claims of Gupta et al. 2023 (arXiv 2308.04014), each a pure function from arms to a verdict.

Arms are chosen by what they are, never by name, so that any sweep can be judged. A claim is a list of tests, each a
difference of losses that is measured once for each seed. A test holds or fails only where the 95 % interval of its
mean over seeds (Student's t) lies wholly on one side of its threshold; one seed has no interval, and decides
nothing. A claim is supported where all its tests hold, contradicted where one fails, and undecided otherwise.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy import stats

from rewarm.report.arms import Arm
from rewarm.report.select import constant_arm, early_family, max_lr_family, reference_arm, scratch_arm, warmup_family
from rewarm.runs.words import experiment_words

MARGIN = 0.02
"""Nats a token below which a difference counts as none: 2 % of perplexity."""
SHOWN = 50 / 296.86
"""Share of the horizon that the paper shows of its shorter runs."""
EARLY = 0.02
"""Share of the horizon in which a spike without warm-up would show: the longest warm-up."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Test:
    """One measured difference against a threshold. `below`: it must lie under the threshold, else above."""

    what: str
    samples: tuple[float, ...]
    """Nats a token, one for each seed."""
    threshold: float
    below: bool = False

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return fmean(self.samples) if self.samples else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the mean; it has no ends where there is one seed."""
        n = len(self.samples)
        if n < 2:
            return -math.inf, math.inf
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * float(np.std(self.samples, ddof=1)) / math.sqrt(n)
        return self.mean - half, self.mean + half

    @property
    def holds(self) -> bool | None:
        """Return whether the whole interval is on the side asked for; None where it reaches over the threshold."""
        low, high = self.interval
        if low > self.threshold:
            return not self.below
        if high < self.threshold:
            return self.below
        return None


@dataclass(frozen=True)
class Evidence:
    """What the arms hold for and against a claim."""

    arms: Sequence[Arm]
    """Those looked at."""
    missing: Sequence[str]
    """What is not there and would be needed."""
    tests: Sequence[Test]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict(Evidence):
    """What the runs say about a claim."""

    number: int
    title: str
    claim: str
    command: str
    """What to run where the claim is undecided."""

    @property
    def verdict(self) -> str:
        """Return supported, contradicted or undecided."""
        if any(test.holds is False for test in self.tests):
            return "contradicted"
        if self.missing or not self.tests or any(test.holds is None for test in self.tests):
            return "undecided"
        return "supported"

    @property
    def seeds(self) -> int:
        """Return the number of seeds behind the weakest test."""
        return min((len(test.samples) for test in self.tests), default=0)

    @property
    def runs(self) -> tuple[str, ...]:
        """Return the names of the runs looked at."""
        return tuple(run.name for arm in self.arms for run in arm.runs)

    @property
    def reason(self) -> str:
        """Return why the claim is undecided; empty where it is not."""
        if self.verdict != "undecided":
            return ""
        if self.missing:
            return "missing: " + "; ".join(self.missing)
        if self.seeds < 2:
            return "one seed has no spread to judge by"
        return "the spread over seeds reaches over the threshold"


def _minus(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[float, ...]:
    """Return the differences of the seeds that both have: the same seed is the same order of the same data."""
    return tuple(a[seed] - b[seed] for seed in sorted(a.keys() & b.keys()))


def _end(arms: Sequence[Arm]) -> float:
    """Return the tokens that all of these arms have been trained on."""
    return min((arm.tokens for arm in arms), default=0.0)


def _spread(arms: Sequence[Arm], side: str, tokens: float) -> tuple[float, ...]:
    """Return for each seed that all arms have how far the best and the worst arm are apart after `tokens`."""
    losses = [arm.at(side, tokens) for arm in arms]
    seeds = set.intersection(*(set(values) for values in losses)) if losses else set()
    return tuple(max(v[s] for v in losses) - min(v[s] for v in losses) for s in sorted(seeds))


def _rise(arm: Arm, side: str, until: float) -> dict[int, float]:
    """Return by seed how far the loss rises above its start before `until` tokens."""
    rises = {}
    for run in arm.runs:
        tokens, loss = run.loss(side)
        rises[run.seed] = float(loss[tokens <= until].max() - loss[0])
    return rises


def _values(by_seed: Mapping[int, float]) -> tuple[float, ...]:
    return tuple(by_seed[seed] for seed in sorted(by_seed))


def _share(arm: Arm) -> str:
    return f"{arm.config.warmup:.3g}"


def warmup_length(arms: Sequence[Arm]) -> Evidence:
    """Return the evidence on claim 1."""
    family = warmup_family(arms)
    lengths = [arm.config.warmup for arm in family]
    missing = [] if len([w for w in lengths if w > 0]) >= 2 else ["two lengths of warm-up or more"]
    missing += [] if 0.0 in lengths else ["an arm without warm-up"]
    tests: list[Test] = []
    notes: list[str] = []
    if not missing:
        horizon = family[0].one.horizon
        at, end = min(SHOWN * horizon, _end(family)), _end(family)
        for side in ("downstream", "upstream"):
            what = f"{side} loss after {at / horizon:.0%} of the horizon: worst minus best warm-up"
            tests.append(Test(what, _spread(family, side, at), MARGIN, below=True))
            if end > 1.05 * at:
                late = Test("", _spread(family, side, end), MARGIN, below=True)
                notes.append(f"after {end / horizon:.0%} of the horizon the {side} spread is {late.mean:.4f}")
        spike, gentle = (_rise(arm, "upstream", EARLY * horizon) for arm in (family[0], family[-1]))
        what = f"highest upstream loss in the first {EARLY:.0%}: no warm-up minus the longest"
        tests.append(Test(what, _minus(spike, gentle), MARGIN))
        notes.append(
            f"without warm-up the upstream loss rises by {fmean(spike.values()):.4f} in the first {EARLY:.0%}"
        )
    return Evidence(family, missing, tests, notes)


def max_lr(arms: Sequence[Arm]) -> Evidence:
    """Return the evidence on claim 2."""
    family = max_lr_family(arms)
    missing = [] if len(family) >= 2 else ["two max LRs or more, all else the same"]
    tests = []
    if not missing:
        low, high, end = family[0], family[-1], _end(family)
        for side, below in (("downstream", True), ("upstream", False)):
            samples = _minus(high.at(side, end), low.at(side, end))
            tests.append(Test(f"final {side} loss: highest minus lowest max LR", samples, 0.0, below=below))
    return Evidence(family, missing, tests)


def rewarm_and_decay(arms: Sequence[Arm]) -> Evidence:
    """Return the evidence on claim 3."""
    reference, constant = reference_arm(max_lr_family(arms)), constant_arm(arms)
    missing = [] if reference else ["a re-warmed arm"]
    missing += [] if constant else ["an arm at the constant LR at which pre-training ended"]
    tests: list[Test] = []
    notes: list[str] = []
    if reference and constant:
        end = _end([reference, constant])
        tokens, loss = reference.grid("upstream")
        kept = tokens <= end
        top = float(tokens[kept][loss.mean(axis=0)[kept].argmax()])
        down = _minus(reference.at("downstream", end), constant.at("downstream", end))
        tests = [
            Test("final downstream loss: re-warmed minus constant", down, 0.0, below=True),
            Test(
                "upstream loss where the re-warmed is highest: re-warmed minus constant",
                _minus(reference.at("upstream", top), constant.at("upstream", top)),
                MARGIN,
            ),
            Test(
                "final upstream loss: re-warmed minus constant",
                _minus(reference.at("upstream", end), constant.at("upstream", end)),
                MARGIN,
                below=True,
            ),
        ]
        stops = [run.summary["best_stop"] for run in constant.runs if run.summary and run.summary.get("best_stop")]
        if stops:
            at = fmean(stop["tokens"] for stop in stops) / constant.one.horizon
            notes.append(f"the constant arm is best, by the sum of both losses, after {at:.0%} of the horizon")
    return Evidence([arm for arm in (reference, constant) if arm], missing, tests, notes)


def from_scratch(arms: Sequence[Arm]) -> Evidence:
    """Return the evidence on claim 4."""
    family, scratch, constant = max_lr_family(arms), scratch_arm(arms), constant_arm(arms)
    missing = [] if family else ["a re-warmed arm"]
    missing += [] if scratch else ["an arm from scratch"]
    missing += [] if constant else ["an arm at the constant LR at which pre-training ended"]
    tests: list[Test] = []
    notes: list[str] = []
    looked_at = [*family, *(arm for arm in (scratch, constant) if arm)]
    if scratch and constant and family:
        end = _end(looked_at)
        worst = max(family, key=lambda arm: fmean(arm.at("downstream", end).values()))
        against = _minus(scratch.at("downstream", end), worst.at("downstream", end))
        passed = _minus(constant.at("downstream", end), scratch.at("downstream", end))
        tests = [
            Test("final downstream loss: scratch minus the worst re-warmed", against, 0.0),
            Test("final downstream loss: constant minus scratch", passed, 0.0),
        ]
        tokens, loss = scratch.grid("downstream")
        at, other = constant.grid("downstream")
        ahead = tokens[loss.mean(axis=0) < np.interp(tokens, at, other.mean(axis=0))]
        share = f"after {ahead[0] / scratch.one.horizon:.0%} of the horizon" if len(ahead) else "never"
        notes.append(f"scratch passes the constant arm {share}; in the paper after about 67 %")
    return Evidence(looked_at, missing, tests, notes)


def same_data(arms: Sequence[Arm]) -> Evidence:
    """Return the evidence on claim 5."""
    family = max_lr_family(arms, train="upstream")
    missing = [] if family else ["a re-warmed arm that goes on with upstream data (data.train=upstream)"]
    tests: list[Test] = []
    notes: list[str] = []
    if (reference := reference_arm(family)) is not None:
        horizon = reference.one.horizon
        at, end = min(SHOWN * horizon, reference.tokens), reference.tokens
        start = reference.at("upstream", 0)
        left = _minus(reference.at("upstream", at), start)
        tests = [
            Test("highest upstream loss minus the start", _values(_rise(reference, "upstream", at)), MARGIN),
            Test(f"upstream loss after {at / horizon:.0%} of the horizon minus the start", left, 0.0),
        ]
        if end > 1.05 * at:
            late = fmean(_minus(reference.at("upstream", end), start))
            notes.append(f"after {end / horizon:.0%} of the horizon it is {late:+.4f} from the start")
    return Evidence(family, missing, tests, notes)


def early_checkpoints(arms: Sequence[Arm]) -> Evidence:
    """Return the evidence on claim 6."""
    family = early_family(arms)
    missing = [] if family else ["the same recipe from two checkpoints of one pre-training"]
    tests: list[Test] = []
    latest = {arm.config.warmup: arm for arm in family if arm.config.init == family[0].config.init}
    for early in family:
        last = latest.get(early.config.warmup)
        if last is None or last is early:
            continue
        at = min(SHOWN * early.one.horizon, _end([early, last]))
        name = f"{early.config.init} minus {last.config.init}, warm-up {_share(early)}"
        final = _minus(early.at("downstream", at), last.at("downstream", at))
        mean = _minus(_mean_loss(early, at), _mean_loss(last, at))
        tests.append(Test(f"downstream loss after {at / early.one.horizon:.0%}: {name}", final, 0.0))
        tests.append(Test(f"mean downstream loss until then: {name}", mean, 0.0))
    return Evidence(family, missing, tests)


def _mean_loss(arm: Arm, until: float) -> dict[int, float]:
    """Return by seed the downstream loss averaged over the tokens up to `until`."""
    means = {}
    for run in arm.runs:
        tokens, loss = run.loss("downstream")
        grid = np.linspace(0, until, 500)
        means[run.seed] = float(np.interp(grid, tokens, loss).mean())
    return means


@dataclass(frozen=True)
class Claim:
    """A claim, what gives the evidence on it, and the experiment that is made for it."""

    evidence: Callable[[Sequence[Arm]], Evidence]
    experiment: str
    title: str
    text: str


CLAIMS = (
    Claim(
        warmup_length,
        "warmup_length",
        "Warm-up length does not matter",
        "The length of the warm-up makes no significant difference to the losses in the end; without any, the "
        "loss spikes at the start and the spike leaves no lasting mark.",
    ),
    Claim(
        max_lr,
        "max_lr",
        "A higher max LR learns more and forgets more",
        "A larger max LR ends better downstream and worse upstream; a smaller one the reverse.",
    ),
    Claim(
        rewarm_and_decay,
        "max_lr",
        "Re-warming and decaying is needed",
        "Re-warming and then decaying is needed to learn downstream well; a constant LR is better upstream at "
        "first, and that advantage disappears with enough tokens.",
    ),
    Claim(
        from_scratch,
        "from_scratch",
        "Keeping the old model beats training anew",
        "Every re-warmed model ends better downstream than one trained from scratch; scratch passes the model "
        "at a constant LR after about two thirds of the horizon.",
    ),
    Claim(
        same_data,
        "same_data",
        "Re-warming hurts on the same data too",
        "Re-warming on the data of pre-training raises its loss as well, so the optimizer causes it and not "
        "only the shift; the model does not recover within the run.",
    ),
    Claim(
        early_checkpoints,
        "early_checkpoint",
        "The latest checkpoint is the best start",
        "An earlier checkpoint learns downstream neither faster nor better; the latest is best.",
    ),
)


def judge(arms: Sequence[Arm]) -> list[Verdict]:
    """Return the verdict on each claim, from arms of one setting."""
    return [
        Verdict(
            **vars(claim.evidence(arms)),
            number=number,
            title=claim.title,
            claim=claim.text,
            command="rewarm train " + shlex.join(experiment_words(arms[0].one, claim.experiment)),
        )
        for number, claim in enumerate(CLAIMS, start=1)
    ]
