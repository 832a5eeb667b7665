"""Reading the pickles in which body models and poses are published, without running what they hold.

A pickle is a program: it may import any function and call it. Here a global can only become one of the inert stand-ins
of `fcjax.body.stand_ins` (arrays, sparse matrices, chumpy's wrappers, sets); any other is refused by name before
anything is called. The reconstruction code of NumPy, SciPy and joblib does not run either, so neither chumpy, SciPy nor
joblib is needed.
"""

import io
import pickle
import zlib
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from fcjax.body.stand_ins import STAND_INS, JoblibArray, kind_of, resolve

_DISPATCH: dict[int, Any] = {**pickle._Unpickler.dispatch}
_JOBLIB_ARRAY = "joblib.numpy_pickle.NumpyArrayWrapper"
MOST_BYTES = 2**30
"""What a compressed file may grow to."""
_INFLATED = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b")  # zlib at its levels, gzip
_OTHERS = {b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x5d\0": "lzma", b"\x04\x22\x4d\x18": "lz4"}


class RefusedGlobalError(ValueError):
    """The pickle wants to import something that reading numbers does not need."""


class _JoblibFileError(Exception):
    """The file is no pickle alone: arrays' bytes stand between its opcodes."""


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> type:
        if f"{module}.{name}" == _JOBLIB_ARRAY:
            raise _JoblibFileError
        return _stand_in(module, name)


class _JoblibUnpickler(pickle._Unpickler):
    """The same for a file that joblib wrote: in Python, as the other cannot be stopped where an array's bytes are."""

    stack: list[Any]

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self.file = file
        self.end = file.seek(0, io.SEEK_END)
        file.seek(0)

    def find_class(self, module: str, name: str, /) -> type:
        return JoblibArray if f"{module}.{name}" == _JOBLIB_ARRAY else _stand_in(module, name)

    def load_build(self) -> None:
        _DISPATCH[pickle.BUILD[0]](self)
        if isinstance(self.stack[-1], JoblibArray):
            self.stack[-1].read(self.file, self.end)

    dispatch: ClassVar[dict[int, Any]] = {**_DISPATCH, pickle.BUILD[0]: load_build}


def _stand_in(module: str, name: str) -> type:
    try:
        return STAND_INS[f"{module}.{name}"]
    except KeyError:
        raise RefusedGlobalError(
            f"the pickle asks for {module}.{name}, which is refused because it could run code; only arrays, sparse "
            "matrices and chumpy values are read. Use the publisher's own file, or save the arrays as .npz"
        ) from None


def _unpickled(file: BinaryIO) -> Any:
    """What the file says, in stand-ins."""
    start = file.read(8)
    file.seek(0)
    other = next((name for magic, name in _OTHERS.items() if start.startswith(magic)), None)
    if other is not None:
        raise ValueError(
            f"it is compressed by {other}, and only zlib and gzip are read: where it was made, save it without "
            "compression (joblib.dump(results, path)) or as .npz"
        )
    if start.startswith(_INFLATED):
        file = io.BytesIO(_inflated(file.read()))
    try:
        return _RestrictedUnpickler(file, encoding="latin1").load()
    except _JoblibFileError:
        return _JoblibUnpickler(file).load()


def _inflated(content: bytes) -> bytes:
    inflating = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either header
    plain = inflating.decompress(content, MOST_BYTES)
    if not inflating.eof:
        raise ValueError(f"its compressed content breaks off, or is more than {MOST_BYTES / 2**20:.0f} MiB")
    return plain


def load_pickle(path: str | Path) -> dict[str, Any]:
    """Read a pickled dict of arrays, numbers and strings (Python 2 or 3, chumpy and SciPy objects become dense arrays).

    So is what `joblib.dump` wrote, as it is or compressed by zlib or gzip. No code in the file runs: a global beyond
    arrays, sparse matrices, chumpy's `Ch` and `Select`, `set` and the dictionaries of `collections` is refused.

    Raises:
        ValueError: the file is not such a pickle; for a refused global the message names it.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            content = _unpickled(file)
            if not isinstance(content, dict):
                raise ValueError(f"expected a pickled dict of arrays, got {kind_of(content)}")
            return {str(key): resolve(value) for key, value in content.items()}
        except RefusedGlobalError as error:
            raise RefusedGlobalError(f"{path}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path} is not a readable pickle of arrays: {error}") from error
        except Exception as error:  # a broken pickle can raise nearly anything
            raise ValueError(
                f"{path} is not a readable pickle of arrays ({type(error).__name__}: {error}); is the file complete?"
            ) from error
