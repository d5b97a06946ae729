"""From a source's config to the source."""

from __future__ import annotations

from rewarm.config import SourceConfig
from rewarm.data.builtin import BuiltinSource
from rewarm.data.documents import Source
from rewarm.errors import UserError


def make_source(config: SourceConfig, side: str, split: str) -> Source:
    """Return the documents of `side` (upstream or downstream) for `split` (train or validation)."""
    if config.kind == "builtin":
        return BuiltinSource(side, split, config.weights)
    raise UserError(f"data.{side}.kind={config.kind}: cannot be read yet")
