"""What the pickles of body models and poses may name, as inert stand-ins that only keep what is said of them.

`fcjax.body.pickles` lets a pickle call nothing else. No code of NumPy, SciPy, joblib or chumpy runs, nor is any of
theirs needed but NumPy's arrays: `resolve` makes those of what was kept.
"""

import math
import re
from typing import Any, BinaryIO

import numpy as np
from numpy import ndarray

# SMPL's largest array (pose blend shapes) has 4.3 M numbers, SMPL-X's 15 M; more than this is no body model.
MOST_NUMBERS = 200_000_000


class _Record:
    """What a pickle says about one object: kept, never interpreted while unpickling.

    `__setstate__` lives on the class so that a pickle that tries to change the class itself only raises TypeError.
    """

    __slots__ = ("arguments", "state")

    def __new__(cls, *arguments: Any) -> "_Record":
        record = super().__new__(cls)
        record.arguments = arguments
        record.state = None
        return record

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self) -> Any:
        """What it stands for. ValueError for what is none: a class, or a function that was not called."""
        raise ValueError(f"{kind_of(self)} is no value")


class _DType(_Record):
    __slots__ = ()

    def value(self) -> np.dtype:
        """`dtype("f8", False, True)` with state (version, byte order, ...)."""
        code = self.arguments[0] if self.arguments else None
        if not isinstance(code, str) or not re.fullmatch(r"[fiub][1248]|[SU]\d{1,6}|O8?", code):
            raise ValueError(f"an array of type {code!r}; expected numbers or text")
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "|"
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"unknown byte order {order!r}")
        return np.dtype(("" if order == "|" else order) + code)


class _Array(_Record):
    """`numpy.core.multiarray._reconstruct`; the state is (version, shape, dtype, Fortran order, bytes)."""

    __slots__ = ()

    def value(self) -> ndarray | list:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("an array without contents")
        _, shape, dtype, fortran, content = self.state
        if isinstance(content, list):  # an array of objects: its items, in order
            return resolve(content)
        return _array(content, dtype, shape, "F" if fortran else "C")


class _BufferArray(_Record):
    """`numpy._core.numeric._frombuffer`: how pickle protocol 5 writes an array."""

    __slots__ = ()

    def value(self) -> ndarray:
        content, dtype, shape, order = self.arguments
        return _array(content, dtype, shape, order)


class JoblibArray(_Record):
    """`joblib.numpy_pickle.NumpyArrayWrapper`: type, shape and order of an array whose bytes follow in the file."""

    __slots__ = ("array",)

    def read(self, file: BinaryIO, end: int) -> None:
        """Takes the array's bytes out of a file of `end` bytes."""
        dtype, shape, order, alignment = (
            self.state.get(key) for key in ("dtype", "shape", "order", "numpy_array_alignment_bytes")
        )
        kind, shape = _number_type(dtype), _shape(shape)
        if alignment is not None:  # joblib 1.2 and later: how many bytes fill up to the alignment, then those
            file.read(file.read(1)[0])
        size, left = math.prod(shape) * kind.itemsize, end - file.tell()
        if size > left:  # before memory is asked for
            raise ValueError(f"an array of {size} bytes, of which {left} are there; is the file complete?")
        self.array = _array(file.read(size), dtype, shape, order)

    def value(self) -> ndarray:
        return self.array


class _Scalar(_Record):
    """`numpy.core.multiarray.scalar`: a dtype and its bytes."""

    __slots__ = ()

    def value(self) -> Any:
        dtype, content = self.arguments
        return _array(content, dtype, (), "C")[()]


class _Chumpy(_Record):
    """`chumpy.ch.Ch`: its value is the state's `x`."""

    __slots__ = ()

    def value(self) -> Any:
        return resolve(self.state["x"])


class _ChumpySelect(_Record):
    """`chumpy.reordering.Select`: entries `idxs` of the flattened `a`."""

    __slots__ = ()

    def value(self) -> ndarray:
        state = self.state
        selected = np.asarray(resolve(state["a"])).ravel()[np.asarray(resolve(state["idxs"]), np.int64)]
        shape = resolve(state["preferred_shape"]) if "preferred_shape" in state else (-1,)
        return selected.reshape(tuple(int(size) for size in shape))


class _Sparse(_Record):
    """A scipy.sparse matrix; its value is the dense array."""

    __slots__ = ()

    def parts(self) -> tuple[tuple[int, int], ndarray]:
        shape = self.state.get("_shape", self.state.get("shape"))
        rows, columns = (int(size) for size in resolve(shape))
        if rows < 0 or columns < 0 or rows * columns > MOST_NUMBERS:
            raise ValueError(f"a sparse matrix of {rows} x {columns} is too large for a body model")
        return (rows, columns), np.asarray(resolve(self.state["data"]))

    def value(self) -> ndarray:
        shape, data = self.parts()
        if "coords" in self.state:
            row, column = (np.asarray(resolve(part), np.int64) for part in self.state["coords"])
        else:
            row, column = (np.asarray(resolve(self.state[part]), np.int64) for part in ("row", "col"))
        return _dense(shape, data, row, column)


class _SparseColumns(_Sparse):
    __slots__ = ()

    def value(self) -> ndarray:
        shape, data = self.parts()
        minor, major = self.indices(shape[1])
        return _dense(shape, data, minor, major)

    def indices(self, count: int) -> tuple[ndarray, ndarray]:
        starts = np.asarray(resolve(self.state["indptr"]), np.int64)
        if starts.shape != (count + 1,) or (np.diff(starts) < 0).any():
            raise ValueError("a sparse matrix whose index pointers do not fit its shape")
        return np.asarray(resolve(self.state["indices"]), np.int64), np.repeat(np.arange(count), np.diff(starts))


class _SparseRows(_SparseColumns):
    __slots__ = ()

    def value(self) -> ndarray:
        shape, data = self.parts()
        minor, major = self.indices(shape[0])
        return _dense(shape, data, major, minor)


class _Type(_Record):
    """A class that a pickle names only to pass it on (`numpy.ndarray`, `object`)."""

    __slots__ = ()


class _Reconstructor(_Record):
    """`copy_reg._reconstructor(class, object, None)`, the old protocols' way to make an empty instance."""

    __slots__ = ()

    def __new__(cls, kind: type, base: Any = None, state: Any = None) -> Any:
        if not (isinstance(kind, type) and issubclass(kind, _Record)) or kind is _Reconstructor:
            raise ValueError(f"copy_reg._reconstructor of {kind!r}")
        return kind()


class _Mapping(dict[Any, Any]):
    """`collections.OrderedDict`, made of pairs or of none, and `defaultdict`, whose factory is left out."""

    def __init__(self, content: Any = None) -> None:
        super().__init__(content if isinstance(content, list) else ())

    def __setstate__(self, state: Any) -> None:
        """Attributes are left out; on the class for the reason of `_Record`'s."""


class _Encoder(_Record):
    """`_codecs.encode(text, "latin1")`, Python 3's way to write bytes in the old protocols."""

    __slots__ = ()

    def __new__(cls, text: str, encoding: str = "latin1") -> Any:
        if encoding not in ("latin1", "latin-1", "iso-8859-1") or not isinstance(text, str):
            raise ValueError(f"_codecs.encode with encoding {encoding!r}")
        return text.encode("latin1")


class _EmptyBytes(_Record):
    """`bytes()`, Python 3's way to write empty bytes in the old protocols."""

    __slots__ = ()

    def __new__(cls) -> Any:
        return b""


STAND_INS: dict[str, type] = {
    "chumpy.ch.Ch": _Chumpy,
    "chumpy.reordering.Select": _ChumpySelect,
    "_codecs.encode": _Encoder,
    "collections.OrderedDict": _Mapping,
    "collections.defaultdict": _Mapping,
}
for _module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
    STAND_INS |= {f"{_module}.ndarray": _Type, f"{_module}.dtype": _DType}
    STAND_INS |= {f"{_module}._reconstruct": _Array, f"{_module}.scalar": _Scalar}
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    STAND_INS[f"{_module}._frombuffer"] = _BufferArray
for _format, _stand_in in (("csc", _SparseColumns), ("csr", _SparseRows), ("coo", _Sparse)):
    for _module in (f"scipy.sparse.{_format}", f"scipy.sparse._{_format}"):
        STAND_INS |= {f"{_module}.{_format}_matrix": _stand_in, f"{_module}.{_format}_array": _stand_in}
for _module in ("builtins", "__builtin__"):
    STAND_INS |= {f"{_module}.set": set, f"{_module}.object": _Type, f"{_module}.bytes": _EmptyBytes}
    # The factory of a defaultdict.
    STAND_INS |= {f"{_module}.{name}": _Type for name in ("dict", "list")}
for _module in ("copyreg", "copy_reg"):
    STAND_INS[f"{_module}._reconstructor"] = _Reconstructor


def kind_of(value: Any) -> str:
    return type(value).__name__.lstrip("_")


def resolve(value: Any) -> Any:
    """Turn stand-ins, also inside containers, into arrays."""
    if isinstance(value, type):
        raise ValueError(f"{kind_of(value)} is no value")
    if isinstance(value, _Record):
        return value.value()
    if isinstance(value, dict):
        return {key: resolve(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(resolve(item) for item in value)
    return value


def _number_type(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _DType):
        raise ValueError("an array without a type")
    kind = dtype.value()
    if kind.hasobject:
        raise ValueError("an array of objects")
    return kind


def _shape(sizes: Any) -> tuple[int, ...]:
    shape = tuple(int(size) for size in sizes)
    if min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape}")
    return shape


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> ndarray:
    kind = _number_type(dtype)
    if isinstance(content, str):  # Python 2 wrote the bytes as a string, read here as latin1
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise ValueError("an array whose contents are not bytes")
    numbers = np.frombuffer(content, kind)
    shape = _shape(shape)
    if math.prod(shape) != numbers.size:
        raise ValueError(f"an array of shape {shape} with {numbers.size} numbers")
    return numbers.reshape(shape, order=order).copy()  # writable, and free of the file's bytes


def _dense(shape: tuple[int, int], data: ndarray, row: ndarray, column: ndarray) -> ndarray:
    if not data.shape == row.shape == column.shape or data.ndim != 1:
        raise ValueError("a sparse matrix whose data and indices differ in length")
    if data.size and (min(row.min(), column.min()) < 0 or row.max() >= shape[0] or column.max() >= shape[1]):
        raise ValueError(f"a sparse matrix of shape {shape} with entries outside it")
    dense = np.zeros(shape, data.dtype)
    np.add.at(dense, (row, column), data)
    return dense
