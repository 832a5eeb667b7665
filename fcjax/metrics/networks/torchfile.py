"""Reading the files that torch.save writes, without torch and without running what they hold.

Such a file is a zip of a pickle and the tensors' bytes. Globals of the pickle become the stand-ins below or are refused
by name; tensors are put together from the bytes.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

_STORAGES: Mapping[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class RefusedGlobalError(ValueError):
    """The file wants to import something that tensors do not need."""


def _tensor(storage: ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> ndarray:
    """`torch._utils._rebuild_tensor_v2`."""
    shape, steps = tuple(map(int, size)), tuple(map(int, stride))
    last = int(offset) + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
    if min((*shape, *steps, int(offset)), default=0) < 0 or (math.prod(shape) and last >= storage.size):
        raise ValueError(f"a tensor of {shape} reaches beyond its {storage.size} stored numbers")
    if not math.prod(shape):
        return np.zeros(shape, storage.dtype)
    taken = np.lib.stride_tricks.as_strided(
        storage[int(offset) :], shape, [step * storage.itemsize for step in steps], writeable=False
    )
    return taken.copy()


def _parameter(data: ndarray, *_: Any) -> ndarray:
    """`torch._utils._rebuild_parameter`."""
    return data


_STAND_INS: Mapping[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    **{f"torch.{name}": name for name in _STORAGES},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root = archive, root
        self._read: dict[str, ndarray] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise RefusedGlobalError(
                f"it asks for {module}.{name}, which is refused because it could run code; only dicts of tensors are "
                "read: save the model's state_dict() alone"
            ) from None

    def persistent_load(self, pid: Any, /) -> ndarray:
        kind, storage, key, _, count = pid
        if kind != "storage" or storage not in _STORAGES:
            raise ValueError(f"unknown storage {storage!r}")
        if key not in self._read:
            held = self._archive.read(f"{self._root}/data/{key}")
            self._read[key] = np.frombuffer(held, _STORAGES[storage])
        if self._read[key].size != count:
            raise ValueError(f"storage {key} has {self._read[key].size} numbers where {count} are said")
        return self._read[key]


def load_torch_file(path: str | Path) -> dict[str, Any]:
    """The dict that a file of torch.save holds: arrays for tensors, dicts within it as they are.

    ValueError for files that are no such zip (torch's old format, TorchScript), that are cut short, or that ask for
    anything but tensors; FileNotFoundError where there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is no file of torch.save since version 1.6 (or it is cut short); save an older one anew: "
            "torch.save(torch.load(path), path)"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = next((name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")), None)
            if root is None or f"{root}/constants.pkl" in names:
                raise ValueError("it holds a program (TorchScript), which is not run: a file of weights is expected")
            if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
            content = _Unpickler(archive, root).load()
    except RefusedGlobalError as error:
        raise RefusedGlobalError(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no readable file of tensors: {error}") from error
    except Exception as error:  # a broken pickle can raise nearly anything
        raise ValueError(f"{path} is no readable file of tensors ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, a dict of tensors is expected")
    return dict(content)
