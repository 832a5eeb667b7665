"""Tensors in safetensors files under torch's names: shapes at once, contents one by one.

Files are mapped and each tensor is checked, turned and cast before the next is touched, so that reading holds the
parameters and one tensor as it is stored (`benchmarks/loading.py` measures it).
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fcjax import convert, trees
from fcjax.whole_files import written_whole

VARIANTS = ("", ".fp16", ".bf16", ".non_ema")
"""What stands before `.safetensors` in the files of a part, in the order in which they are looked for."""
DTYPES = ("float32", "bfloat16", "float16")
"""What parameters are stored and computed in."""
_STORED = ("F32", "BF16", "F16")  # the same in safetensors' words
_EXPONENTS = {"float32": (np.uint32, 0x7F800000), "bfloat16": (np.uint16, 0x7F80), "float16": (np.uint16, 0x7C00)}
"""Of each dtype the bits that are all set in what is infinite or no number, and what they are read as."""
_CHECKED_AT_ONCE = 2**16  # fits a core's cache
_TILE = 128
_ALIGNMENT = 64


class Tensors:
    """The tensors of one or several files. `source` names them in errors; `places` says which file's tensor is meant
    where several hold it."""

    def __init__(self, files: Iterable[Path], source: Path, places: Mapping[str, str] | None = None) -> None:
        self.source = str(source)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._stored: dict[str, tuple[Any, str]] = {}
        for file in files:
            if not file.is_file():
                raise ValueError(f"{source} names {file.name}, which is not there: download it, too")
            try:
                opened = safe_open(file, "np")
                keys = list(opened.keys())
            except (SafetensorError, OSError) as error:
                with file.open("rb") as begun:
                    pointer = begun.read(64).startswith(b"version https://git-lfs")
                raise ValueError(
                    f"{file} is a pointer of Git LFS, not the weights: run git lfs pull in its repository"
                    if pointer
                    else f"{file} is no readable safetensors file (cut short?): {error}"
                ) from error
            for key in keys:
                if (places or {}).get(key, file.name) != file.name:
                    continue
                if key in self._stored:
                    raise ValueError(
                        f"{source}: {key} lies in several files, and the index does not say which is meant"
                    )
                described = opened.get_slice(key)
                self._stored[key] = (opened, key)
                self.shapes[key], self.dtypes[key] = tuple(described.get_shape()), described.get_dtype()

    @classmethod
    def of_part(cls, folder: Path, stem: str) -> "Tensors":
        """Those of `folder/stem.safetensors`, its shards, or the first of `VARIANTS` that is there."""
        found = _first_file(folder, stem)
        if found is not None:
            places = _places(found)
            return cls(_named(found, places), found, places)
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickles[0]} is a pickle, which can run code: save it as safetensors first" if pickles else ""
        raise ValueError(f"{folder.parent} has no weights of its {folder.name}: {stem}.safetensors is not there{hint}")

    def select(self, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> "Tensors":
        """Some of them under other names, {new: old}, and where `shapes` names one, in another shape of equal size."""
        chosen = Tensors((), Path(self.source))
        chosen._stored = {new: self._stored[old] for new, old in names.items()}
        chosen.shapes = {new: shapes.get(new, self.shapes[old]) for new, old in names.items()}
        chosen.dtypes = {new: self.dtypes[old] for new, old in names.items()}
        return chosen

    def read(self, key: str) -> np.ndarray:
        """One tensor; ValueError where it holds values that are not finite."""
        opened, stored = self._stored[key]
        array = opened.get_tensor(stored)
        if not _is_finite(array):
            raise ValueError(f"{self.source}: {stored} holds values that are not finite")
        return array.reshape(self.shapes[key])


def part_files(folder: Path, stem: str) -> list[Path]:
    """The files that `Tensors.of_part` reads; none where there are no weights."""
    found = _first_file(folder, stem)
    return [] if found is None else _named(found, _places(found))


def _first_file(folder: Path, stem: str) -> Path | None:
    """What is read of a part: its weights in one file, or the index of its shards."""
    for variant in VARIANTS:
        file = folder / f"{stem}{variant}.safetensors"
        # diffusers writes "model.fp16.safetensors" but "model.safetensors.index.fp16.json".
        for path in (file, Path(f"{file}.index.json"), folder / f"{stem}.safetensors.index{variant}.json"):
            if path.is_file():
                return path
    return None


def _named(found: Path, places: Mapping[str, str]) -> list[Path]:
    return sorted({found.parent / name for name in places.values()}) or [found]


def _places(index: Path) -> dict[str, str]:
    """{tensor: file's name} of an index; of a file of weights, nothing."""
    if index.suffix != ".json":
        return {}
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f'{index} must map every tensor to its file under "weight_map"')
    return names


def load_parts(
    parts: Mapping[str, tuple[Tensors, Mapping[str, Any]]], dtype: Any = None, host: bool = False
) -> dict[str, dict[str, Any]]:
    """The parameters of several parts ("unet", "vae", ...), each given as its tensors and its abstract tree, as `dtype`
    or as they are stored. ValueError lists the missing, unused and mis-shaped keys of all parts at once, and those of
    other dtypes than `DTYPES`.

    host: NumPy arrays, for whoever lays them on several devices, none of which may have room for all of them.
    """
    dtype = None if dtype is None else checked_dtype(dtype)
    matched, problems = {}, []
    for name, (tensors, abstract) in parts.items():
        module = name.removeprefix("reference_")
        try:
            matched[name] = convert.match_keys(module, tensors.shapes, abstract, tensors.source)
            _check_dtypes(tensors, matched[name].values())
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))

    def read(tensors: Tensors, keys: Mapping[str, str]) -> dict[str, Any]:
        return trees.unflatten({path: placed(tensors, path, key) for path, key in keys.items()})

    def placed(tensors: Tensors, path: str, key: str) -> np.ndarray | jax.Array:
        array = convert.from_torch(path, tensors.read(key))
        values = _empty(array.shape, dtype or array.dtype)
        with np.errstate(over="ignore"):
            _copy(array, values)
        check_range(f"{tensors.source}: {key}", array, values)
        # On a CPU the parameter is this very memory.
        return values if host else jax.device_put(values, may_alias=True)

    return {name: read(parts[name][0], keys) for name, keys in matched.items()}


def write_tensors(file: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all, with any new file's mode (the library keeps it to its owner)."""
    with written_whole(file) as aside:
        aside.touch()
        mode = aside.stat().st_mode & 0o777
        save_file(tensors, aside, metadata)
        aside.chmod(mode)


def _check_dtypes(tensors: Tensors, keys: Iterable[str]) -> None:
    others = {key: tensors.dtypes[key] for key in keys if tensors.dtypes[key] not in _STORED}
    if others:
        listed = "".join(f"\n  {key}: {dtype}" for key, dtype in sorted(others.items()))
        raise ValueError(
            f"{tensors.source} is quantised, or of another precision; tensors of {', '.join(DTYPES)} are expected, "
            f"got{listed}"
        )


def _is_finite(array: np.ndarray) -> bool:
    """Whether all values are: NumPy's isfinite is several times slower for the 16-bit dtypes."""
    unsigned, exponent = _EXPONENTS[array.dtype.name]
    values = array.reshape(-1).view(unsigned)
    pieces = (values[start : start + _CHECKED_AT_ONCE] for start in range(0, values.size, _CHECKED_AT_ONCE))
    return not any(((piece & unsigned(exponent)) == exponent).any() for piece in pieces)


def check_range(name: str, array: np.ndarray, cast: np.ndarray) -> None:
    """ValueError where finite values became infinite in float16, the one dtype of a smaller range."""
    if cast.dtype == np.float16 != array.dtype and not _is_finite(cast):
        raise ValueError(f"{name} holds values beyond float16's 65504: take bfloat16 or float32")


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """target[...] = source, where kernels are turned in tiles of the last two axes, which fit the cache."""
    if source.ndim < 2 or source.flags.c_contiguous:
        target[...] = source
        return
    for row in range(0, source.shape[-2], _TILE):
        for column in range(0, source.shape[-1], _TILE):
            tile = np.s_[..., row : row + _TILE, column : column + _TILE]
            target[tile] = source[tile]


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that starts where XLA's buffers may start, so that no copy of it is needed."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def checked_dtype(dtype: Any) -> np.dtype:
    """A dtype by its name or as it is; ValueError where it is none of `DTYPES`."""
    try:
        resolved = jnp.dtype(dtype)
    except (TypeError, ValueError):
        resolved = None
    if resolved is None or resolved.name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
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
