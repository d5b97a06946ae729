"""Text for a terminal: columns of figures, and numbers as people write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

OLD = re.compile(r"( {12,})?(?<![\w./=@'\"-])([Uu]pstream|old data)(?![\w./=:-]| \(proxy\))( {12,})?")
"""Where a text for people speaks of the old data, with the room of a table's column about it; not in a command."""
PROXY = " (proxy)"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return lines of columns two spaces apart: the first flush left, the others flush right. Ends in a line feed.

    All rows have as many cells as the header. A column, but the first, whose cells are all empty is left out.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    shown = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    lines = []
    for row in [header, *rows]:
        cells = [row[i].rjust(widths[i]) if i else row[i].ljust(widths[i]) for i in shown]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def tokens_text(tokens: float) -> str:
    """Return a number of tokens with three digits and its unit: 512, 2.05M, 297B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.3g}"


def marked(text: str, *, proxy: bool) -> str:
    """Return a text for people, which says `upstream (proxy)` of old data where a `proxy` stands in for them.

    A column of a table keeps its place where it has the room.
    """

    def mark(found: re.Match[str]) -> str:
        before, after = found[1] or "", found[3] or ""
        room = len(PROXY)
        return (before[room:] if before else "") + found[2] + PROXY + (after if before else after[room:])

    return OLD.sub(mark, text) if proxy else text
