"""What tests of data share. Without fixtures or the loopback hub: processes that are to be killed import it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewarm.config.schema import DataConfig
from rewarm.config.values import build
from rewarm.data.documents import Source
from rewarm.data.sources import Indexed, make_source, origin


def source_of(values: Mapping[str, Any], side: str, split: str) -> Source:
    """Return the documents that the values of the group `data` name for training or validation of a side."""
    data = build(DataConfig, values, saved=True)
    config = data.source(side)
    place = origin(config, side, split)
    assert not isinstance(place, Indexed)
    return make_source(place, config, data)
