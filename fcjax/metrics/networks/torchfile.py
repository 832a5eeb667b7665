"""Reading the files that torch.save writes, without torch and without running what they hold.

Such a file is a zip of a pickle and the tensors' bytes; before torch 1.6 they lay one behind the other. Globals of the
pickle become the stand-ins below or are refused by name; tensors are put together from the bytes.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from numpy import ndarray

# How files of before torch 1.6 begin: the pickle of a number.
_STREAM_START, _STREAM_VERSION = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", 1001
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


Storages = Callable[[np.dtype, str, int], ndarray]
"""What finds the numbers of a storage: of its type, its name, and how many it has."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], storages: Storages | None = None):
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise RefusedGlobalError(
                f"it asks for {module}.{name}, which is refused because it could run code; only dicts of tensors are "
                "read: save the model's state_dict() alone"
            ) from None

    def persistent_load(self, pid: Any, /) -> ndarray:
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or storage not in _STORAGES or self._storages is None:
            raise ValueError(f"unknown storage {storage!r}")
        found = self._storages(_STORAGES[storage], str(key), int(count))
        if found.size != count:
            raise ValueError(f"storage {key} has {found.size} numbers where {count} are said")
        if view and view[0] is not None:
            _, first, length = view[0]
            return found[int(first) : int(first) + int(length)]
        return found


def _of_archive(path: Path) -> Any:
    """A file of torch 1.6 or later."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = next((name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")), None)
        if root is None or f"{root}/constants.pkl" in names:
            raise ValueError("it holds a program (TorchScript), which is not run: a file of weights is expected")
        if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        read: dict[str, ndarray] = {}

        def storages(kind: np.dtype, key: str, count: int) -> ndarray:
            if key not in read:
                read[key] = np.frombuffer(archive.read(f"{root}/data/{key}"), kind)
            return read[key]

        return _Unpickler(archive.open(f"{root}/data.pkl"), storages).load()


def _of_stream(path: Path) -> Any:
    """A file of before: four pickles, of which the last is the content, then the storages' names and numbers.

    The content comes before the numbers: it is gone through once to learn their types, and once more to be read.
    """
    most = path.stat().st_size
    kinds: dict[str, np.dtype] = {}
    read: dict[str, ndarray] = {}

    def noted(kind: np.dtype, key: str, count: int) -> ndarray:
        if not 0 <= count * kind.itemsize <= most:
            raise ValueError(f"storage {key} has {count} numbers, more than the file")
        kinds[key] = kind
        return np.zeros(count, kind)

    with path.open("rb") as file:
        _, version, machine = (_Unpickler(file).load() for _ in range(3))
        if version != _STREAM_VERSION or not machine.get("little_endian", False):
            raise ValueError(f"it is of version {version}, or its numbers are big-endian")
        start = file.tell()
        _Unpickler(file, noted).load()
        for key in _Unpickler(file).load():
            [count] = np.frombuffer(file.read(8), "<i8")
            kind = kinds[str(key)]
            if not 0 <= count * kind.itemsize <= most:
                raise ValueError(f"storage {key} has {count} numbers, more than the file")
            read[str(key)] = np.frombuffer(file.read(int(count) * kind.itemsize), kind)
        file.seek(start)
        return _Unpickler(file, lambda kind, key, count: read[key]).load()


def load_torch_file(path: str | Path) -> dict[str, Any]:
    """The dict that a file of torch.save holds: arrays for tensors, dicts within it as they are.

    ValueError for files that are none (TorchScript, for instance), that are cut short, or that ask for anything but
    tensors; FileNotFoundError where there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        stream = file.read(len(_STREAM_START)) == _STREAM_START
    if not stream and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no file of torch.save, or it is cut short")
    try:
        content = _of_stream(path) if stream else _of_archive(path)
    except RefusedGlobalError as error:
        raise RefusedGlobalError(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no readable file of tensors: {error}") from error
    except Exception as error:  # a broken pickle can raise nearly anything
        raise ValueError(f"{path} is no readable file of tensors ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, a dict of tensors is expected")
    return dict(content)
