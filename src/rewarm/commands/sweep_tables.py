"""What is said of a sweep when its runs have ended: how they compare, and which of them did not finish."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rewarm.config.schema import SIDES
from rewarm.errors import RewarmError
from rewarm.points import pareto_front
from rewarm.runs.run import is_run, open_run, read_config, read_summary
from rewarm.runs.stopped import Stopped
from rewarm.text import marked

KEYS = ("start", "peak", "final")


def finished_runs(folder: Path, failed: Sequence[str] = ()) -> tuple[list[Path], list[str]]:
    """Return the runs of a sweep that have finished, and the names of those that did not, `failed` ones too.

    Runs that their sweep left early are among neither, and where they had not begun there is none.
    """
    found = sorted(path for path in folder.glob("*seed=*") if path.is_dir() and not path.name.startswith("."))
    done = [path for path in found if read_summary(path) is not None]
    names = {p.name for p in found if p not in done and is_run(p) and not _left(p)} | set(failed)
    return done, sorted(names)


def _left(path: Path) -> Stopped | None:
    return open_run(path).stopped if is_run(path) else None


def table(folder: Path, failed: Sequence[str] = ()) -> str:
    """Return the comparison of all runs of a sweep: loss before, at the peak and at the end, on both sides."""
    done, undone = finished_runs(folder, failed)
    width = max((len(name) for name in (*(path.name for path in done), *undone)), default=0) + 2
    head = "".join(f"{name:>9}" for name in ("start", "peak", "end"))
    lines = ["", f"{'nats a token':<{width}}{'upstream':>27}{'downstream':>29}", f"{'':<{width}}{head}  {head}"]
    for path in done:
        summary = read_summary(path)
        assert summary is not None
        cells = (
            "".join("        -" if (value := summary[side][key]) is None else f"{value:>9.4f}" for key in KEYS)
            for side in SIDES
        )
        lines.append(f"{path.name:<{width}}{'  '.join(cells)}")
    lines += [f"{name:<{width}}  did not finish" for name in undone]
    others = sorted(path for path in folder.glob("*seed=*") if path.is_dir() and path not in done)
    lines += [f"{path.name:<{width}}  {why}" for path in others if (why := _left(path))]
    lines.append(f"next: rewarm report {shlex.quote(str(folder))}")
    return marked("\n".join(lines) + "\n", proxy=_proxied(done))


def _proxied(paths: Sequence[Path]) -> bool:
    return any(is_run(path) and read_config(path).proxied for path in paths[:1])


def pareto(folder: Path) -> str:
    """Return the runs of a sweep that no other beats on both final losses, from the least forgetting on."""
    finals = {}
    for path in finished_runs(folder)[0]:
        summary = read_summary(path)
        assert summary is not None
        losses = tuple(summary[side]["final"] for side in SIDES)
        if None not in losses:
            finals[path.name] = losses
    names = list(finals)
    front = [names[i] for i in pareto_front(list(finals.values()))]
    width = max(map(len, front), default=0) + 2
    lines = ["", f"{f'Pareto front: {len(front)} of {len(finals)} runs':<{width}}  upstream  downstream"]
    for name in front:
        upstream, downstream = finals[name]
        lines.append(f"{name:<{width}}{upstream:>10.4f}{downstream:>12.4f}")
    return marked("\n".join(lines) + "\n", proxy=_proxied([folder / name for name in names]))


def failure(folder: Path, first: RewarmError, failed: Sequence[str]) -> RewarmError:
    """Return the error that ends a sweep of which `first` is what its first failed run said."""
    done, undone = finished_runs(folder, failed)
    return RewarmError(
        f"{len(undone)} of {len(done) + len(undone)} runs did not finish; the same command runs only those "
        f"(the first said: {first})",
        first.exit_code,
    )
