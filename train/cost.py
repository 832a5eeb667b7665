"""What a program costs: FLOPs counted in its jaxpr, collectives read from its compiled text."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8} | {
    f"{sign}{bits}": bits // 8 for sign in "su" for bits in (8, 16, 32, 64)
}


def flops_of(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of the products and convolutions that `function` traces to; the bodies of loops as often as they run.

    Of the branches that the platform or a value chooses, the dearest. ValueError for a loop of unknown length.
    """
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flops(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in _needed(jaxpr):
        name, given = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = given["dimension_numbers"]
            shape: tuple[int, ...] = equation.invars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
            total += 2.0 * _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            numbers = given["dimension_numbers"]
            kernel: tuple[int, ...] = equation.invars[1].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
            # The output's features are those of the kernel; every other of its numbers is read for each output.
            read = math.prod(kernel) / kernel[numbers.rhs_spec[0]] / math.prod(given["lhs_dilation"])
            total += 2.0 * _size(equation.outvars[0]) * read
        elif name == "scan":
            total += given["length"] * _flops(given["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(_flops(branch.jaxpr) for branch in given["branches"])
        elif name == "while":
            if _flops(given["body_jaxpr"].jaxpr):
                raise ValueError("a loop whose length is not known has products in it: their FLOPs cannot be counted")
        else:
            total += sum(_flops(inner) for value in given.values() for inner in _inner(value))
    return total


def _needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """The equations whose results are read: a gradient that nobody asked for is none of a program's work."""
    read = {variable for variable in jaxpr.outvars if isinstance(variable, core.Var)}
    needed = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(variable in read for variable in equation.outvars):
            needed.append(equation)
            read.update(variable for variable in equation.invars if isinstance(variable, core.Var))
    return needed


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _inner(value: Any) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return [jaxpr for one in value for jaxpr in _inner(one)] if isinstance(value, (tuple, list)) else []


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind over groups of one size: how many a step, and the bytes each device receives."""

    kind: str
    group: int
    count: int
    bytes: float


def collectives_of(text: str) -> list[Collective]:
    """The collectives in a compiled program's text (`Compiled.as_text()`), those in loops as often as they run."""
    times = _times(text)
    found: dict[tuple[str, int], tuple[int, float]] = {}
    for computation, line in _lines(text):
        match = re.match(r"(?:ROOT )?%?\S+ = (.+?) ([\w-]+?)(?:-start)?\(", line)
        if not match or match[2] not in KINDS:
            continue
        kind, group = match[2], _group(line)
        if group == 1:
            continue
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
        sizes = [_BYTES.get(dtype, 0) * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in shapes]
        # A -start's result names its operands before its results.
        operands = _operands(line) if "-start(" in line else 0
        whole = sum(sizes[operands:] if operands < len(sizes) else sizes)
        share = (group - 1) / group
        moved = {
            "all-gather": share * whole,
            "all-reduce": 2 * share * whole,
            "reduce-scatter": (group - 1) * whole,
            "all-to-all": share * whole,
            "collective-permute": whole,
        }[kind]
        count, before = found.get((kind, group), (0, 0.0))
        runs = times.get(computation, 1)
        found[kind, group] = (count + runs, before + runs * moved)
    return [Collective(kind, group, count, size) for (kind, group), (count, size) in sorted(found.items())]


def _lines(text: str) -> list[tuple[str, str]]:
    """(computation, instruction) of every instruction."""
    lines, computation = [], ""
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            computation = head[1]
        elif " = " in line:
            lines.append((computation, line.strip()))
    return lines


def _times(text: str) -> dict[str, int]:
    """How often each computation that a loop calls runs, loops in loops multiplied."""
    inside: dict[str, tuple[str, int]] = {}
    for computation, line in _lines(text):
        if " while(" in line:
            known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            body = re.search(r"body=%?([\w.-]+)", line)
            if body:
                inside[body[1]] = (computation, int(known[1]) if known else 1)

    def runs(name: str) -> int:
        if name not in inside:
            return 1
        outer, count = inside[name]
        return count * runs(outer)

    return {name: runs(name) for name in inside}


def _group(line: str) -> int:
    """Devices that one collective joins, in any of the forms in which XLA writes groups."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(.*?\))? \{(.*?)\}", line)
    if iota:
        return int(iota[2])
    if listed:
        return len(listed[1].split(","))
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"('\w+')=(\d+)", named[1])}
        # An axis, or the part of it that stands behind a parenthesis.
        axes = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    if "source_target_pairs" in line:
        return 2
    raise ValueError(f"XLA writes the groups of a collective in a form that is not known here: {line[:300]}")


def _operands(line: str) -> int:
    inside = re.search(r"-start\(([^)]*)\)", line)
    return inside[1].count("%") if inside else 0
