"""`rewarm search`: from a question and a number of tokens to a recipe.

A few trainings that lie far apart come first. From then on the next one is that which is expected to gain the most
for its tokens, by the surrogate that is fitted to all that has been measured; runs that cannot win are left early. It
ends when nothing is expected to gain anything worth while, or when the tokens are spent. Each is an ordinary run in
the search's folder, so that the same command goes on where it was, with more tokens too.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hydra.core.override_parser.types import IntervalSweep

from rewarm.commands.arms import Arm, Swept, parse_overrides
from rewarm.commands.launch import here
from rewarm.commands.leaving import TOLD_APART, in_telling_order, planned
from rewarm.commands.searching import Searching, ends_of, losses_text, start_of
from rewarm.config.command_line import parse
from rewarm.config.compose import from_hydra
from rewarm.config.differences import differing
from rewarm.config.schema import SIDES
from rewarm.config.sharing import differing_keys
from rewarm.config.values import parse_tokens
from rewarm.errors import UserError
from rewarm.forecast import options as asked
from rewarm.forecast.options import Options
from rewarm.forecast.recommend import Goal
from rewarm.forecast.search import FEWEST
from rewarm.runs.run import find_runs, open_run
from rewarm.runs.words import own_command
from rewarm.text import tokens_text

log = logging.getLogger(__name__)

LRS = 2.0 ** np.arange(-3, 2.5, 0.75)
"""Max LRs that are looked at where nothing is said, as multiples of the model's own peak."""
USUAL = ("schedule=cosine,wsd", "replay=0,0.01,0.05,0.25")
OF_AN_INTERVAL = 9
"""Values that stand for an interval, evenly spaced, in their logs where it spans more than a factor of three."""
MOST_ARMS = 256
OWN = ("tokens", "max_forgetting", "weights", "from")
"""Keys of a search's own."""


@dataclass(frozen=True)
class Question:
    """What is asked: the tokens that may be spent, and the goal."""

    tokens: int
    goal: Options
    earlier: tuple[Path, ...] = ()
    """Folders whose finished runs are taken in where they fit."""


def question(arguments: Sequence[str]) -> tuple[Question, list[str]]:
    """Return what is asked, and the arguments of training. Raises `UserError` for a mistake."""
    given, rest = {}, []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and key in OWN:
            given[key] = text
        else:
            rest.append(argument)
    if "tokens" not in given:
        raise UserError("search: say how many tokens may be trained on in all; for example tokens=60M")
    goal = {key: asked.PARSERS[key](key, text) for key, text in given.items() if key in asked.PARSERS}
    if not goal:
        raise UserError("search: say what is to be found: max_forgetting=0.05 (nats, or 2%), or weights=1,1")
    share = given.get("max_forgetting", "").endswith("%")
    options = Options(paths=(), forgetting_is_share=share, **goal)  # type: ignore[arg-type]
    places = tuple(Path(text).expanduser() for text in filter(None, given.get("from", "").split(",")))
    return Question(parse_tokens("tokens", given["tokens"]), options, places), rest


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


def taken_in(places: Sequence[Path], pool: Sequence[Arm]) -> list[Arm]:
    """Return the finished runs in some folders that differ from the pool in nothing but what is searched.

    One that is the same as a training of the pool has its name. Raises `UserError` where none fits.
    """
    if not places:
        return []
    found, unlike = [], set[str]()
    for run in map(open_run, find_runs(places)):
        keys = set(differing_keys(pool[0].config, run.config)) - TOLD_APART
        unlike |= keys
        if run.finished and not keys and not run.manifest.extensions and run.other_lr is None:
            same = (arm.name for arm in pool if not differing(arm.config, run.config))
            found.append(Arm(next(same, str(run.path)), (), run.path, config=run.config))
    if not found:
        why = f"they differ in {', '.join(sorted(unlike))}" if unlike else "none is finished"
        raise UserError(f"from={','.join(map(str, places))}: no run there fits the search ({why}); leave it out")
    log.info("from: %d finished runs are taken in", len(found))
    return found


def _listed(word: str) -> str:
    """Return an override with some values in place of an interval."""
    if "interval(" not in word:
        return word
    [override] = parse_overrides([word])
    value = override.value()
    if not isinstance(value, IntervalSweep):
        return word
    assert value.start is not None
    assert value.end is not None
    low, high = float(value.start), float(value.end)
    if not low < high:
        raise UserError(f"{word}: the interval ends before it begins")
    spaced = np.geomspace if low > 0 and high > 3 * low else np.linspace
    return f"{override.get_key_element()}={','.join(f'{v:.3g}' for v in spaced(low, high, OF_AN_INTERVAL))}"


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
    lines.append(f"Recipe ({wanted}): {arm.name}: {losses_text(ends)}; before any training {losses_text(before)}")
    if said := source.proposals.get(arm.name):
        within = all(abs(said.predicted[s] - ends[s]) <= 1.645 * said.errors[s] for s in SIDES)
        band = "inside" if within else "outside"
        lines.append(f"it was predicted to come to {losses_text(said.predicted)}: {band} its band")
    if wanted.value(ends) >= wanted.value(before):
        lines.append("it is no better than the model as it was")
    words = [word for word in arm.arguments if not word.startswith(("run_dir=", "sweep."))]
    command = f"rewarm train {shlex.join(words)}" if words else own_command(open_run(arm.folder))
    lines.append(f"  {command}")
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
    earlier = taken_in(wanted.earlier, pool)
    costs = sorted(planned(arm.config).tokens for arm in pool)
    least = sum(planned(arm.config).tokens for arm in pool[:FEWEST])
    if wanted.tokens < least + costs[0] and len(earlier) < FEWEST:
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
    source = Searching(pool, wanted.tokens, wanted.goal, swept.folder, earlier)
    ended = here(source, options)
    sys.stdout.write(answer(source, swept, wanted.goal))
    if ended.error is not None and (ended.error.exit_code >= 128 or not source.finished):
        raise ended.error
