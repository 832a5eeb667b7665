"""Flags that may be left out, whose help shows what holds then."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro


def flag(metavar: str | None, default: Any) -> Any:
    """A flag that is None where it is not given, so that it leaves a request as it is; the help shows the default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


OptionalPath = Annotated[Path | None, flag("PATH", "none")]
"""A file or folder that may be left out."""
Switch = Annotated[tyro.conf.DisallowNone[bool | None], flag(None, False)]
"""--flag or --no-flag; None where neither is given, so that either changes what a request says."""


def flag_of(kind: type, metavar: str, name: str) -> Any:
    """`flag` for a field of a dataclass, whose default the help shows."""
    return flag(metavar, next(field.default for field in dataclasses.fields(kind) if field.name == name))
