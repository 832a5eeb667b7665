"""Parameter paths and first-match rules over them.

A path is the keys of a nested dict joined by "/": "unet/down_blocks_0/attentions_0/proj_in/kernel". What is frozen,
averaged, decayed, sharded or initialised how is a table of (regular expression, value); the first expression that
matches the WHOLE path gives the value, and a path that none matches is an error.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

Tree = Any
Value = TypeVar("Value")
Rules = Sequence[tuple[str, Value]]


def flatten(tree: Mapping[str, Tree]) -> dict[str, Any]:
    """{path: leaf} of nested dicts, in the dicts' order. A leaf is anything that is no mapping."""
    flat: dict[str, Any] = {}

    def visit(node: Mapping[str, Tree], prefix: str) -> None:
        for key, child in node.items():
            if not isinstance(key, str) or "/" in key or not key:
                raise ValueError(f"keys of a parameter tree are strings without '/', got {key!r} under {prefix!r}")
            if isinstance(child, Mapping):
                visit(child, f"{prefix}{key}/")
            else:
                flat[prefix + key] = child

    visit(tree, "")
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Tree]:
    """The nested dicts of {path: leaf}."""
    tree: dict[str, Tree] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r} lies under a path that is itself a leaf")
        if name in node:
            raise ValueError(f"{path!r} is both a leaf and a branch, or given twice")
        node[name] = leaf
    return tree


def map_paths(function: Callable[..., Any], tree: Mapping[str, Tree], *others: Mapping[str, Tree]) -> dict[str, Tree]:
    """function(path, leaf, *leaves of the other trees) for every leaf; the trees must have the same paths."""
    flat, rest = flatten(tree), [flatten(other) for other in others]
    for other in rest:
        if other.keys() != flat.keys():
            raise ValueError(
                "the trees differ in their paths:\n" + _listing(sorted(other.keys() ^ flat.keys()), "in one alone")
            )
    return unflatten({path: function(path, leaf, *(other[path] for other in rest)) for path, leaf in flat.items()})


def match_rules(tree: Mapping[str, Tree], rules: Rules[Value]) -> dict[str, Tree]:
    """A tree of the same paths holding each path's value by first match.

    ValueError lists every path that no rule covers; end the table with (".*", value) to cover the rest.
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    flat: dict[str, Value] = {}
    uncovered = []
    for path in flatten(tree):
        for pattern, value in compiled:
            if pattern.fullmatch(path):
                flat[path] = value
                break
        else:
            uncovered.append(path)
    if uncovered:
        raise ValueError(
            f"{len(uncovered)} parameter paths are covered by none of {len(rules)} rules; add a rule for each or end "
            "the table with ('.*', value):\n" + _listing(uncovered)
        )
    return unflatten(flat)


def select(tree: Mapping[str, Tree], keep: Mapping[str, Tree]) -> dict[str, Tree]:
    """The leaves of `tree` where the tree of booleans `keep` is True."""
    kept = flatten(keep)
    return unflatten({path: leaf for path, leaf in flatten(tree).items() if kept[path]})


def merge(*trees: Mapping[str, Tree]) -> dict[str, Tree]:
    """One tree of the leaves of several whose paths are distinct (the reverse of `select`)."""
    flat: dict[str, Any] = {}
    for tree in trees:
        leaves = flatten(tree)
        twice = sorted(flat.keys() & leaves.keys())
        if twice:
            raise ValueError("paths given by more than one tree:\n" + _listing(twice))
        flat |= leaves
    return unflatten(flat)


def count(tree: Mapping[str, Tree]) -> int:
    """The number of parameters (array elements) in a tree."""
    return sum(leaf.size for leaf in flatten(tree).values())


def digest(tree: Mapping[str, Tree]) -> str:
    """A short hash of paths, dtypes and values: equal for equal parameters alone."""
    state = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        array = np.asarray(leaf)
        state.update(f"{path} {array.dtype} {array.shape}".encode())
        state.update(array.tobytes())
    return state.hexdigest()[:16]


def _listing(paths: Iterable[str], note: str = "") -> str:
    return "\n".join(f"  {path}{f' ({note})' if note else ''}" for path in paths)
