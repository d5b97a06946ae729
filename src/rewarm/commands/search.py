"""`rewarm search`: from a question and a number of tokens to a recipe.

A few trainings that lie far apart come first. From then on the next one is that which is expected to gain the most
for its tokens, by the surrogate that is fitted to all that has been measured; runs that cannot win are left early. It
ends when nothing is expected to gain anything worth while, or when the tokens are spent. Each is an ordinary run in
the search's folder, so that the same command goes on where it was, with more tokens too.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from hydra.core.override_parser.types import IntervalSweep

from rewarm.commands.arms import Arm, Swept, finished, parse_overrides
from rewarm.commands.launch import Job, here
from rewarm.commands.leaving import Leaving, curves_of, in_telling_order, like, planned
from rewarm.config.command_line import parse
from rewarm.config.compose import from_hydra
from rewarm.config.schema import SIDES
from rewarm.config.sharing import differing_keys
from rewarm.config.sweep_schema import SweepConfig
from rewarm.config.values import parse_tokens
from rewarm.errors import DivergedError, UserError
from rewarm.forecast import options as asked
from rewarm.forecast.options import Options
from rewarm.forecast.recommend import Goal
from rewarm.forecast.search import FEWEST, Proposal, propose
from rewarm.forecast.stopping import Asked
from rewarm.runs.run import is_run, open_run
from rewarm.storage import write_json
from rewarm.text import text_table, tokens_text

log = logging.getLogger(__name__)

WORTH = 5e-4
"""Least gain, in nats of the goal, that is worth another training."""
LRS = 2.0 ** np.arange(-3, 2.5, 0.75)
"""Max LRs that are looked at where nothing is said, as multiples of the model's own peak."""
USUAL = ("schedule=cosine,wsd", "replay=0,0.01,0.05,0.25")
OF_AN_INTERVAL = 9
"""Values that stand for an interval, evenly spaced, in their logs where it spans more than a factor of three."""
MOST_ARMS = 256
MOST_FAILED = 3
"""Trainings that may fail before any has been finished; one that fails later tells that its recipe is none."""
RECORD = "search.json"


@dataclass(frozen=True)
class Question:
    """What is asked: the tokens that may be spent, and the goal."""

    tokens: int
    goal: Options


def question(arguments: Sequence[str]) -> tuple[Question, list[str]]:
    """Return what is asked, and the arguments of training. Raises `UserError` for a mistake."""
    given, rest = {}, []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and key in ("tokens", "max_forgetting", "weights"):
            given[key] = text
        else:
            rest.append(argument)
    if "tokens" not in given:
        raise UserError("search: say how many tokens may be trained on in all; for example tokens=60M")
    goal = {key: asked.PARSERS[key](key, text) for key, text in given.items() if key != "tokens"}
    if not goal:
        raise UserError("search: say what is to be found: max_forgetting=0.05 (nats, or 2%), or weights=1,1")
    share = given.get("max_forgetting", "").endswith("%")
    options = Options(paths=(), forgetting_is_share=share, **goal)  # type: ignore[arg-type]
    return Question(parse_tokens("tokens", given["tokens"]), options), rest


def space(arguments: Sequence[str]) -> Swept:
    """Return what is searched: what the arguments give several values, else schedules, max LRs and replay.

    Raises `UserError` for a mistake.
    """
    words = [_listed(argument) for argument in arguments if argument not in ("-m", "--multirun")]
    swept = Swept.of(parse([*words, "-m"]))
    if not swept.several:
        config = from_hydra(parse([*words]).compose("run_dir=unused"))
        given = {word.partition("=")[0] for word in words}
        lrs = ",".join(f"{config.model.peak_lr * factor:.3g}" for factor in LRS)
        usual = [word for word in (*USUAL, f"max_lr={lrs}") if word.partition("=")[0] not in given]
        swept = Swept.of(parse([*words, *usual, "-m"]))
        if not swept.several:
            raise UserError("search: there is nothing to choose; leave out one of schedule, max_lr and replay")
    count = int(np.prod([len(list(o.sweep_string_iterator())) for o in swept.several]))
    if count > MOST_ARMS:
        raise UserError(f"search: {count} trainings to choose from, at most {MOST_ARMS}; give fewer values")
    return swept


def known(arms: Sequence[Arm]) -> Sequence[Arm]:
    """Return the arms. Raises `UserError` where they differ in what no law knows."""
    keys = {key for arm in arms for key in differing_keys(arms[0].config, arm.config)} - {"replay"}
    if keys:
        raise UserError(
            f"{min(keys)}: has several values, and a search knows only the schedule's keys, max_lr, min_lr_ratio, "
            f"warmup, budget, stop and replay; give it one value"
        )
    return arms


def _listed(word: str) -> str:
    """Return an override with some values in place of an interval."""
    if "interval(" not in word:
        return word
    [override] = parse_overrides([word])
    value = override.value()
    assert isinstance(value, IntervalSweep)
    assert value.start is not None
    assert value.end is not None
    low, high = float(value.start), float(value.end)
    if not low < high:
        raise UserError(f"{word}: the interval ends before it begins")
    spaced = np.geomspace if low > 0 and high > 3 * low else np.linspace
    return f"{override.get_key_element()}={','.join(f'{v:.3g}' for v in spaced(low, high, OF_AN_INTERVAL))}"


class Searching(Leaving):
    """Trainings, each chosen by what all before it have shown."""

    def __init__(self, pool: Sequence[Arm], tokens: int, goal: Options, folder: Path) -> None:
        """Take the pool in the order in which its trainings tell the most."""
        options = SweepConfig(stop="forecast")
        self._space, self._tokens, self._file = list(pool), tokens, folder / RECORD
        self._costs = {arm.name: planned(arm.config).tokens for arm in pool}
        self._made = [arm for arm in pool if finished(arm)]
        begun = [arm for arm in pool if arm not in self._made and is_run(arm.folder)]
        self._given = [arm for arm in begun if open_run(arm.folder).stopped]
        self._interrupted = [arm for arm in begun if arm not in self._given]
        self._running: list[Arm] = []
        self._failed: list[Arm] = []
        self._hottest = np.inf
        """Max LR of the coolest training that diverged."""
        self._asked_for: tuple[int, ...] | None = None
        self.proposals: dict[str, Proposal] = _read(self._file)
        self.over = ""
        super().__init__([], pool, options)
        self._options = goal

    @property
    def finished(self) -> list[Arm]:
        """Return the trainings that have come to their end."""
        return self._made

    def all(self) -> Sequence[Job]:
        """Return what is running."""
        return self._running

    def next(self) -> Job | None:
        """Return the next training to run; None where none is worth it, or others must end first."""
        arm = None if self.over else self._interrupted.pop() if self._interrupted else self._choose()
        if arm is not None:
            self._running.append(arm)
            self._arms = [*self._made, *self._running]
        return arm

    def done(self, ended: Job, code: int) -> None:
        """Take note that a training has ended, and say how all stands."""
        arm = next(arm for arm in self._running if arm.name == ended.name)
        self._running.remove(arm)
        super().done(ended, code)
        (self._made if code == 0 else self._given if ended.name in self._given_up else self._failed).append(arm)
        if code == DivergedError.exit_code:
            self._hottest = min(self._hottest, arm.config.max_lr)
            log.info("%s: diverged; nothing as hot is tried any more", arm.name)
        if code >= 128 and arm not in self._given:  # a signal to the search itself
            self.over = "stopped by a signal; the same command goes on"
        best = self.best()
        said = f"best so far: {best[0].name}, {_losses(best[1])}" if best else "no training so far keeps to the limit"
        log.info("%s of %s tokens; %s", tokens_text(self.spent), tokens_text(self._tokens), said)

    def _asked_about(self) -> Sequence[Arm]:
        return list(self._running)

    @property
    def spent(self) -> float:
        """Return the tokens that have been trained on."""
        return sum(_trained(arm) for arm in (*self._made, *self._given, *self._failed, *self._running))

    @property
    def _free(self) -> float:
        """Return the tokens that are left when what is running has ended."""
        return self._tokens - self.spent - sum(self._costs[arm.name] - _trained(arm) for arm in self._running)

    def _choose(self) -> Arm | None:
        begun = [*self._made, *self._given, *self._running]
        gone = {arm.name for arm in (*begun, *self._failed)}
        free = self._free
        tried = (arm for arm in self._space if arm.config.max_lr < self._hottest)
        left = [arm for arm in tried if arm.name not in gone and self._costs[arm.name] <= free]
        if len(self._failed) >= MOST_FAILED and not self._made:
            self.over = f"the first {len(self._failed)} trainings failed"
            return None
        if not left:
            least = min((self._costs[arm.name] for arm in self._space if arm.name not in gone), default=np.inf)
            self.over = "the tokens are spent" if free < least < np.inf else "the whole space has been tried"
            return None
        if len(begun) < FEWEST:
            log.info("next: %s, one of the first %d, which lie far apart", left[0].name, FEWEST)
            return left[0]
        state = tuple(len(group) for group in (self._made, self._given, self._failed, self._running))
        if len(self._made) < FEWEST or state == self._asked_for:
            return None if self._running else left[0]
        self._asked_for = state
        found = self._proposal(left)
        if found is None or found.gain < WORTH:
            if not self._running:
                self.over = f"nothing else in the space is expected to gain {WORTH:g} nats"
            return None
        self.proposals[found.name] = found
        write_json(self._file, {name: asdict(proposal) for name, proposal in self.proposals.items()})
        ends = ", ".join(f"{side} {loss:.3f} (± {found.errors[side]:.3f})" for side, loss in found.predicted.items())
        log.info("next: %s, expected to gain %.4f nats: %s predicted", found.name, found.gain, ends)
        return next(arm for arm in left if arm.name == found.name)

    def _proposal(self, left: Sequence[Arm]) -> Proposal | None:
        curves = curves_of([*self._made, *self._given, *self._running])
        first = next(curve for curve in curves.values() if curve.finished)
        pool = {a.name: Asked(like(first, a.config), curves.get(a.name)) for a in (*left, *self._running)}
        return propose(list(curves.values()), pool, [arm.name for arm in self._running], self._options)

    def best(self) -> tuple[Arm, dict[str, float]] | None:
        """Return the best finished training and its final losses; None where none keeps to the limit."""
        ends = {arm.name: (arm, found) for arm in self._made if (found := ends_of(arm))}
        if not ends:
            return None
        before = start_of(self._made)
        goal = Goal.of(self._options, before["upstream"])
        kept = [e for e in ends.values() if e[1]["upstream"] <= before["upstream"] + goal.limit]
        return min(kept, key=lambda e: goal.value(e[1]), default=None)

    def table(self) -> str:
        """Return what was run: tokens, both losses as predicted and as they came."""
        rows = []
        for arm in (*self._made, *self._given, *self._failed):
            said, came = self.proposals.get(arm.name), ends_of(arm) if arm in self._made else None
            cells = [f"{said.predicted[s]:.3f} ± {said.errors[s]:.3f}" if said else "" for s in SIDES]
            cells += [f"{came[side]:.4f}" if came else "" for side in SIDES]
            how = "" if arm in self._made else "left early" if arm in self._given else "failed"
            rows.append((arm.name, tokens_text(_trained(arm)), *cells, how))
        head = ("run", "tokens", "upstream predicted", "downstream predicted", "upstream", "downstream", " ")
        return text_table(head, rows)


def _read(file: Path) -> dict[str, Proposal]:
    if not file.exists():
        return {}
    try:
        return {name: Proposal(**values) for name, values in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is damaged ({error}); remove it, only what was predicted is lost") from error


def _trained(arm: Arm) -> float:
    run = open_run(arm.folder) if is_run(arm.folder) else None
    return max(run.trained, 0) * run.plan.tokens_per_step if run else 0.0


def ends_of(arm: Arm) -> dict[str, float]:
    """Return the final losses of a finished run, empty where one of them is not finite."""
    summary = open_run(arm.folder).summary or {}
    ends = {side: summary[side]["final"] for side in SIDES if side in summary}
    return ends if len(ends) == len(SIDES) and all(v is not None and np.isfinite(v) for v in ends.values()) else {}


def start_of(arms: Sequence[Arm]) -> dict[str, float]:
    """Return the losses before any update, as finished runs have measured them."""
    starts = [open_run(arm.folder).summary or {} for arm in arms]
    return {side: float(np.mean([s[side]["start"] for s in starts])) for side in SIDES}


def _losses(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{side} {loss:.4f}" for side, loss in losses.items())


def answer(source: Searching, swept: Swept, goal: Options) -> str:
    """Return the recipe that the search came to, or why there is none."""
    lines = [source.table(), f"{tokens_text(source.spent)} tokens in all; {source.over}"]
    made = source.finished
    if not made:
        return "\n".join([*lines, "no training has been finished"]) + "\n"
    before, found = start_of(made), source.best()
    wanted = Goal.of(goal, before["upstream"])
    if found is None:
        least = min((arm for arm in made if ends_of(arm)), key=lambda a: ends_of(a)["upstream"], default=made[0])
        lost = ends_of(least).get("upstream", np.nan) - before["upstream"]
        lines.append(
            f"no training keeps to the limit of {wanted.limit:.4g} nats; the least was lost by {least.name}: "
            f"{lost:.4g} nats; more replay or a lower max_lr lowers it"
        )
        return "\n".join(lines) + "\n"
    arm, ends = found
    lines.append(f"Recipe ({wanted}): {arm.name}: {_losses(ends)}; before any training {_losses(before)}")
    if said := source.proposals.get(arm.name):
        within = all(abs(said.predicted[s] - ends[s]) <= 1.645 * said.errors[s] for s in SIDES)
        band = "inside" if within else "outside"
        lines.append(f"it was predicted to come to {_losses(said.predicted)}: {band} its band")
    if wanted.value(ends) >= wanted.value(before):
        lines.append("it is no better than the model as it was")
    words = [word for word in arm.arguments if not word.startswith(("run_dir=", "sweep."))]
    lines.append(f"  rewarm train {shlex.join(words)}")
    if open_run(arm.folder).checkpoints:
        lines.append("an average of its start and its end may forget less and learn as much, untrained:")
        lines.append(f"  {shlex.join(['rewarm', 'merge', arm.config.init, str(arm.folder)])}")
    lines.append(f"next: rewarm report {shlex.quote(str(swept.folder))}")
    return "\n".join(lines) + "\n"


def search(arguments: Sequence[str]) -> None:
    """Run what the arguments ask for, and say what it came to. Raises `UserError` for a mistake in them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    wanted, rest = question(arguments)
    swept = space(rest)
    options = swept.first().config.sweep
    if options.launcher != "local":
        raise UserError(f"sweep.launcher={options.launcher}: a search runs on this machine alone; leave it out")
    pool = in_telling_order(known(swept.arms()))
    costs = sorted(planned(arm.config).tokens for arm in pool)
    least = sum(planned(arm.config).tokens for arm in pool[:FEWEST])
    if wanted.tokens < least + costs[0]:
        raise UserError(
            f"tokens={tokens_text(wanted.tokens)}: does not pay for the first {FEWEST} trainings and one more; "
            f"give at least {tokens_text(least + costs[0])}, or a smaller budget="
        )
    if pool[0].config.dry_run:
        names = "".join(f"  {arm.name}\n" for arm in pool[:FEWEST])
        each = " to ".join(dict.fromkeys(tokens_text(cost) for cost in (costs[0], costs[-1])))
        sys.stdout.write(f"{len(pool)} trainings to choose from, {each} tokens each; first\n{names}")
        return
    swept.folder.mkdir(parents=True, exist_ok=True)
    source = Searching(pool, wanted.tokens, wanted.goal, swept.folder)
    ended = here(source, options)
    sys.stdout.write(answer(source, swept, wanted.goal))
    if ended.error is not None and (ended.error.exit_code >= 128 or not source.finished):
        raise ended.error
