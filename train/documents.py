"""A run's configuration as the `config.json` in its folder: written, read back, and compared with another."""

import dataclasses
import json
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fcjax.config import OWN_SAMPLING
from fcjax.whole_files import write_json
from train.config import TrainConfig

# What may change when a run is continued: its length, where its files lie, how it is watched and sampled, and on what
# it runs.
FREE_FIELDS = ("steps", "log_every", "watch_every", "checkpoint_every", "keep", "keep_best", "workers")
FREE_FIELDS += ("explode", "tensorboard", "profile_at", "profile_steps")
FREE_FIELDS += ("strategy", "axes", "devices", "remat")
FREE_FIELDS += ("data", "heldout", "start", "tokenizer", "vae", "export_dtype", "augment.symmetry")
FREE_FIELDS += tuple(f"model.{name}" for name in OWN_SAMPLING)


def document_of(config: Any) -> dict[str, Any]:
    """A configuration in JSON's types."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def config_of(document: dict[str, Any], kind: Any = TrainConfig) -> Any:
    """The dataclass `kind` that `document_of` gave; fields that were not there yet have their defaults.

    ValueError names fields that `kind` does not have.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(document.keys() - hints.keys())
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}: another version of this program wrote them")
    return kind(**{name: _value(hints[name], value) for name, value in document.items()})


def _value(kind: Any, value: Any) -> Any:
    """A field's value, of the type that its annotation names."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        fitting = [one for one in inner if (typing.get_origin(one) is tuple) == isinstance(value, list)]
        return _value(fitting[0], value)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_value(one, part) for one, part in zip(kinds, value, strict=True))
    if dataclasses.is_dataclass(kind):
        return config_of(value, kind)
    return Path(value) if kind is Path else value


def read_config(out: Path) -> TrainConfig:
    """The configuration of the run in `out`; ValueError where there is none or none that can be read."""
    path = out / "config.json"
    if not path.exists():
        raise ValueError(f"{out} holds no run: there is no config.json in it")
    try:
        return config_of(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} describes no run of this version: {error}") from error


def write_config(out: Path, config: TrainConfig) -> None:
    """Writes `out`/config.json, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", document_of(config))


def check_continues(out: Path, config: TrainConfig) -> TrainConfig | None:
    """The configuration that the run in `out` had last; None in a folder without a run, which suits any.

    ValueError, naming every field with both values, where it is another one; FREE_FIELDS may differ.
    """
    if not (out / "config.json").exists():
        return None
    before = read_config(out)
    differ = differing(document_of(before), document_of(config), FREE_FIELDS)
    if differ:
        raise ValueError(
            f"{out} holds a run with another configuration; these fields differ: {', '.join(differ)}. "
            "Choose another --out or restore the fields"
        )
    return before


def differing(there: dict[str, Any], now: dict[str, Any], free: Collection[str] = ()) -> list[str]:
    """The fields of two documents that differ, with both values, but for those that are free to."""
    before, after = _leaves(there), _leaves(now)
    return [
        f"{name} ({before.get(name)} there, {after.get(name)} now)"
        for name in sorted(before.keys() | after.keys())
        if name not in free and name.split(".")[0] not in free and before.get(name) != after.get(name)
    ]


def _leaves(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every field by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
