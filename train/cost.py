"""What a program costs: FLOPs counted in its jaxpr, collectives and bytes read from its compiled text."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Of an element of XLA's primitive types that do not say their bits.
_BITS = {"pred": 8, "token": 0, "opaque": 0}


def flops_of(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of the products and convolutions that `function` traces to; the bodies of loops as often as they run.

    A gradient that nobody asked for is none of a program's work. Of the branches that the platform or a value chooses,
    the dearest. ValueError for a loop of unknown length.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _flops(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _flops(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
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
    """All collectives of one kind over one layout of groups: how many a step, and the bytes each device receives.

    members: one of the groups, as places in the mesh's flat order; of pairs, the two that are farthest apart.
    """

    kind: str
    members: tuple[int, ...]
    count: int
    bytes: float

    @property
    def group(self) -> int:
        """Devices that one of them joins."""
        return len(self.members)


def collectives_of(text: str, devices: int = 0) -> list[Collective]:
    """The collectives in a compiled program's text (`Compiled.as_text()`), as often as they run.

    devices: of the program, for groups that XLA writes as none, which are all of them.
    """
    program = _Program(text)
    found: dict[tuple[str, tuple[int, ...]], tuple[int, float]] = {}
    for line in program.lines:
        if line.operation.removesuffix("-start") not in KINDS:
            continue
        kind, members = line.operation.removesuffix("-start"), _members(line.text, devices)
        group, runs = len(members), program.times(line.computation)
        if group == 1 or not runs:
            continue
        sizes = _sizes(line.result)
        # A -start's result names its operands before its results.
        operands = len(line.operands) if line.operation.endswith("-start") else 0
        whole = sum(sizes[operands:] if operands < len(sizes) else sizes)
        if kind == "all-reduce" and line.computation.startswith("all-reduce-scatter"):
            # A TPU's reduce-scatter: a fusion of the sum and of each device's slice of it.
            kind, whole = "reduce-scatter", whole / group
        share = (group - 1) / group
        moved = {
            "all-gather": share * whole,
            "all-reduce": 2 * share * whole,
            "reduce-scatter": (group - 1) * whole,
            "all-to-all": share * whole,
            "collective-permute": whole,
        }[kind]
        count, before = found.get((kind, members), (0, 0.0))
        found[kind, members] = (count + runs, before + runs * moved)
    return [Collective(kind, members, count, size) for (kind, members), (count, size) in sorted(found.items())]


def traffic_of(text: str) -> float:
    """Bytes that a compiled program's kernels read and write, but for products, convolutions and collectives.

    Every operand whole, as often as the kernel runs: a kernel that reads a slice of an operand counts for too much.
    """
    program = _Program(text)
    total = 0.0
    for line in program.lines:
        free = line.operation in _FREE or line.operation in KINDS or line.operation.endswith(("-start", "-done"))
        if not free and not program.fused(line.computation) and not program.is_product(line):
            moved = sum(_sizes(line.result)) + sum(program.bytes(name) for name in line.operands)
            total += program.times(line.computation) * moved
    return total


def cycles_of(text: str) -> tuple[float, float]:
    """Cycles of a TPU program's kernels by its compiler's estimates: loops' bodies once, and as often as they run.

    Of attention kernels and collectives it estimates none.
    """
    program, once, whole = _Program(text), 0.0, 0.0
    for line in program.lines:
        estimate = re.search(r'"estimated_cycles":"(\d+)"', line.text)
        if estimate and not program.fused(line.computation):
            once += int(estimate[1])
            whole += int(estimate[1]) * program.times(line.computation)
    return once, whole


def needed_memory(message: str) -> float | None:
    """The bytes that a program would need, by XLA's refusal to compile it; None for any other of its errors.

    A kernel that does not fit a core's own memory (VMEM) is such another: no other hardware or batch would mend it.
    """
    if "RESOURCE_EXHAUSTED" not in message or "vmem" in message.lower():
        return None
    size = re.search(r"([\d.]+) ?([KMGT])(?:i?B)?\b", message)
    return float(size[1]) * 1024 ** (1 + "KMGT".index(size[2])) if size else None


_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "add-dependency"}


@dataclass(frozen=True)
class _Line:
    """One instruction of a program's text."""

    computation: str
    name: str
    result: str
    operation: str
    operands: tuple[str, ...]
    text: str


class _Program:
    """A compiled program's text, read once."""

    def __init__(self, text: str):
        self.lines = list(_lines(text))
        self._sizes = {line.name: sum(_sizes(line.result)) for line in self.lines}
        self._callers: dict[str, list[tuple[_Line, str]]] = {}
        self._inside: dict[str, list[_Line]] = {}
        self._times: dict[str, int] = {}
        for line in self.lines:
            self._inside.setdefault(line.computation, []).append(line)
            # What an asynchronous computation calls is named at its start, and maybe at its end again.
            if line.operation.endswith(("-done", "-update")):
                continue
            for key, several, one in re.findall(_CALLS, line.text):
                for called in re.findall(r"[\w.-]+", several or one):
                    self._callers.setdefault(called, []).append((line, key))

    def times(self, computation: str) -> int:
        """How often a computation runs, loops in loops multiplied; of a branch, once.

        ValueError for one in a loop of unknown length.
        """
        if computation not in self._times:
            callers = self._callers.get(computation)
            self._times[computation] = (
                sum((self._trips(line) if key == "body" else 1) * self.times(line.computation) for line, key in callers)
                if callers
                else 1
            )
        return self._times[computation]

    def _trips(self, loop: _Line) -> int:
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text)
        if known:
            return int(known[1])
        # XLA:TPU leaves the count in the condition: a counter, from 0 in steps of 1, is compared with it.
        condition = re.search(r"condition=%?([\w.-]+)", loop.text)
        inside = self._inside.get(condition[1], []) if condition else []
        ends = {line.name: line.text for line in inside if line.operation == "constant"}
        bounds = [
            bound[1]
            for line in inside
            if line.operation == "compare" and "direction=LT" in line.text
            for name in line.operands[1:]
            if (bound := re.search(r"constant\((\d+)\)", ends.get(name, "")))
        ]
        if len(bounds) != 1:
            raise ValueError(f"the length of a loop cannot be read in the compiled program: {loop.text[:300]}")
        return int(bounds[0])

    def bytes(self, name: str) -> int:
        """Of an instruction's result."""
        return self._sizes.get(name, 0)

    def fused(self, computation: str) -> bool:
        """Whether it is a part of a kernel, which reads and writes for it."""
        callers = self._callers.get(computation, ())
        return any(line.operation not in ("while", "conditional", "call", "async-start") for line, _ in callers)

    def is_product(self, line: _Line) -> bool:
        """Whether it is a product or a convolution, by XLA or by a library."""
        inside = {line.operation}
        for called in re.findall(r"calls=%?([\w.-]+)", line.text):
            inside |= {part.operation for part in self._inside.get(called, ())}
        library = re.search(r'custom_call_target="__(cublas|cudnn|onednn)', line.text) is not None
        return library or not inside.isdisjoint({"dot", "convolution"})


_CALLS = r"(body|condition|calls|to_apply|branch_computations|\w+_computation)=(?:\{([^}]*)\}|%?([\w.-]+))"


def _lines(text: str) -> Iterator[_Line]:
    computation = ""
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            computation = head[1]
        found = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.+?) ([\w-]+)\((.*)", line)
        if found:
            name, result, operation, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.-]+)", rest.split(")")[0]))
            yield _Line(computation, name, result, operation, operands, line.strip())


def _sizes(result: str) -> list[int]:
    """Bytes of each array in an instruction's result, those of bounded dimensions in full."""
    shapes = re.findall(r"(\w+)\[([\d,<=]*)\](?:\{[^}]*?E\((\d+)\))?", result)
    return [
        math.ceil(_bits(dtype, packed) * math.prod(map(int, re.findall(r"\d+", shape))) / 8)
        for dtype, shape, packed in shapes
    ]


def _bits(dtype: str, packed: str) -> int:
    """Of an element of a primitive type of XLA's: s32, bf16, f8e4m3fn, c64 say theirs. packed: those of its layout.

    ValueError for a type that says none and that is not known.
    """
    named = re.fullmatch(r"(?:s|u|f|bf|c)(\d+)(?:e\d+m\d+\w*)?", dtype)
    if named is None and dtype not in _BITS:
        raise ValueError(
            f"XLA writes an array of {dtype!r}: expected {', '.join(_BITS)} or a type that says its bits, such as "
            "bf16; teach train/cost.py how many bytes it takes"
        )
    # What is not packed lies in bytes of its own.
    return int(packed or 0) or (8 * math.ceil(int(named[1]) / 8) if named else _BITS[dtype])


def _members(line: str, devices: int) -> tuple[int, ...]:
    """One of the groups that a collective joins, in any of the forms in which XLA writes them."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", line)
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    if iota:
        grid = np.arange(int(iota[1]) * int(iota[2])).reshape(_numbers(iota[3]))
        grid = grid.transpose(_numbers(iota[4])) if iota[4] else grid
        return tuple(grid.reshape(int(iota[1]), int(iota[2]))[0].tolist())
    if listed:
        return tuple(_numbers(listed[1]))
    if named:
        return _members_of_axes(named[1], named[2], named[3])
    if pairs:
        found = [tuple(_numbers(pair)) for pair in re.findall(r"\d+,\d+", pairs[1])]
        return max(found, key=lambda pair: abs(pair[0] - pair[1]))
    if "replica_groups={}" in line and devices:
        return tuple(range(devices))
    raise ValueError(f"XLA writes the groups of a collective in a form that is not known here: {line[:300]}")


def _members_of_axes(axes: str, order: str | None, joined: str) -> tuple[int, ...]:
    """The group of device 0 over the named axes of a mesh, or parts of them, as in 'data':(2)4: of 8, the last 4."""
    sizes = {axis: int(size) for axis, size in re.findall(r"('\w+')=(\d+)", axes)}
    grid = _in_order(order) if order else np.arange(math.prod(sizes.values()))
    grid = grid.reshape(list(sizes.values()))
    chosen = [[0]] * grid.ndim
    for axis, before, part in re.findall(r"('\w+')(?::\((\d+)\)(\d+))?", joined):
        place, size = list(sizes).index(axis), sizes[axis]
        step = size // (int(before) * int(part)) if part else 1
        chosen[place] = [step * index for index in range(int(part) if part else size)]
    return tuple(grid[np.ix_(*chosen)].reshape(-1).tolist())


def _in_order(order: str) -> np.ndarray:
    """Device numbers as XLA writes them: a list, or the dimensions of a count and how they are turned."""
    turned = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order)
    if not turned:
        return np.asarray(_numbers(order))
    grid = np.arange(math.prod(_numbers(turned[1]))).reshape(_numbers(turned[1]))
    return (grid.transpose(_numbers(turned[2])) if turned[2] else grid).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
