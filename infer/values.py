"""Values of requests as JSON and flags give them: their kinds, their keys, and what is not at its default."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any


def check(name: str, value: Any, kind: type, expected: str) -> None:
    """ValueError where the value is not of that kind, or is no finite number."""
    wrong_bool = isinstance(value, bool) and kind is not bool
    if not isinstance(value, kind) or wrong_bool or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def check_whole_numbers(name: str, values: Any, count: int, what: str) -> None:
    """ValueError where the values are not a tuple of that many whole numbers."""
    if not isinstance(values, tuple) or len(values) != count:
        raise ValueError(f"{name} is {values!r}; expected {count} whole numbers ({what})")
    for value in values:
        check(f"{name} {values}", value, numbers.Integral, f"whole numbers ({what})")


def tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def key_problems(kind: type, given: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Unknown keys, and missing ones, of plain data for a dataclass."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in given:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            yield f"unknown key {prefix}{key}" + (f" (did you mean {near[0]}?)" if near else "")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            yield f"{prefix}{name} is missing"


def changed(thing: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults."""
    fields = dataclasses.fields(thing)
    return {field.name: value for field in fields if (value := getattr(thing, field.name)) != field.default}
