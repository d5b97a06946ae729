"""What comes with the package: the folder of configs, and the default of every key."""

from __future__ import annotations

from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rewarm.config.schema import Config


def conf_dir() -> Path:
    """Return the folder of the shipped configs: inside the package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed, checkout = package / "conf", package.parents[1] / "conf"
    return installed if installed.is_dir() else checkout


def defaults(kind: type = Config) -> dict[str, Any]:
    """Return the keys of a group and their defaults as plain values: `???` where one must be given."""
    found: dict[str, Any] = {}
    for f in fields(kind):
        make: Any = f.default_factory
        if isinstance(make, type) and is_dataclass(make):
            found[f.name] = defaults(make)
        else:
            found[f.name] = f.default if make is NO_DEFAULT else make()
    return found
