"""Tensors in safetensors files under torch's names: shapes at once, contents one by one.

Files are mapped and each tensor is checked, turned and cast before the next is touched, so that reading holds the part
and, of one tensor at a time, what is stored and what becomes of it (`benchmarks/loading.py` measures it).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from fcjax import convert, trees

VARIANTS = ("", ".fp16", ".bf16", ".non_ema")
"""What stands before `.safetensors` in the files of a part, in the order in which they are looked for."""


class Tensors:
    """The tensors of one or several files. `source` names them in errors."""

    def __init__(self, files: Iterable[Path], source: Path) -> None:
        self.source = str(source)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._stored: dict[str, tuple[Any, str]] = {}
        for file in files:
            try:
                opened = safe_open(file, "np")
                keys = list(opened.keys())
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is no readable safetensors file (cut short?): {error}") from error
            for key in keys:
                self._stored[key] = (opened, key)
                self.shapes[key] = tuple(opened.get_slice(key).get_shape())

    @classmethod
    def of_part(cls, folder: Path, stem: str) -> "Tensors":
        """Those of `folder/stem.safetensors`, its shards, or the first of `VARIANTS` that is there."""
        for variant in VARIANTS:
            file = folder / f"{stem}{variant}.safetensors"
            # diffusers writes "model.fp16.safetensors" but "model.safetensors.index.fp16.json".
            if file.is_file():
                return cls([file], file)
            for index in (Path(f"{file}.index.json"), folder / f"{stem}.safetensors.index{variant}.json"):
                if index.is_file():
                    shards = read_json(index).get("weight_map", {}).values()
                    return cls(sorted({folder / shard for shard in shards}), index)
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickles[0]} is a pickle, which can run code: save it as safetensors first" if pickles else ""
        raise ValueError(f"{folder.parent} has no weights of its {folder.name}: {stem}.safetensors is not there{hint}")

    def select(self, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> "Tensors":
        """Some of them under other names, {new: old}, and where `shapes` names one, in another shape of equal size."""
        chosen = Tensors((), Path(self.source))
        chosen._stored = {new: self._stored[old] for new, old in names.items()}
        chosen.shapes = {new: shapes.get(new, self.shapes[old]) for new, old in names.items()}
        return chosen

    def read(self, key: str) -> np.ndarray:
        """One tensor; ValueError where it holds values that are not finite."""
        opened, stored = self._stored[key]
        array = opened.get_tensor(stored)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.source}: {stored} holds values that are not finite")
        return array.reshape(self.shapes[key])


def load_parts(parts: Mapping[str, tuple[Tensors, Mapping[str, Any]]], dtype: Any = None) -> dict[str, dict[str, Any]]:
    """The parameters of several parts ("unet", "vae", ...), each given as its tensors and its abstract tree, as `dtype`
    or as they are stored. ValueError lists the missing, unused and mis-shaped keys of all parts at once.
    """
    dtype = None if dtype is None else stored_dtype(dtype)
    matched, problems = {}, []
    for name, (tensors, abstract) in parts.items():
        module = name.removeprefix("reference_")
        try:
            matched[name] = convert.match_keys(module, tensors.shapes, abstract, tensors.source)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))

    def read(tensors: Tensors, keys: Mapping[str, str]) -> dict[str, Any]:
        return trees.unflatten(
            {path: jnp.asarray(convert.from_torch(path, tensors.read(key)), dtype) for path, key in keys.items()}
        )

    return {name: read(parts[name][0], keys) for name, keys in matched.items()}


def stored_dtype(dtype: Any) -> np.dtype:
    """A dtype that model folders store; ValueError for another."""
    names = ("float32", "bfloat16", "float16")
    try:
        resolved = jnp.dtype(dtype)
    except TypeError:
        resolved = None
    if resolved is None or resolved.name not in names:
        raise ValueError(f"tensors are stored as {', '.join(names)}, got {dtype!r}")
    return resolved


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; ValueError for a file that holds none."""
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return content
