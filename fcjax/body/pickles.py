"""Reading the pickles in which body models and poses are published, without running what they hold.

A pickle is a program: it may import any function and call it. Here a global can only become one of the inert stand-ins
of `fcjax.body.stand_ins` (arrays, sparse matrices, chumpy's wrappers, sets); any other is refused by name before
anything is called. The reconstruction code of NumPy and SciPy does not run either, so neither chumpy nor SciPy is
needed.
"""

import pickle
from pathlib import Path
from typing import Any

from fcjax.body.stand_ins import STAND_INS, kind_of, resolve


class RefusedGlobalError(ValueError):
    """The pickle wants to import something that reading numbers does not need."""


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> type:
        try:
            return STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise RefusedGlobalError(
                f"the pickle asks for {module}.{name}, which is refused because it could run code; only arrays, sparse "
                "matrices and chumpy values are read. Use the publisher's own file, or save the arrays as .npz"
            ) from None


def load_pickle(path: str | Path) -> dict[str, Any]:
    """Read a pickled dict of arrays, numbers and strings (Python 2 or 3, chumpy and SciPy objects become dense arrays).

    No code in the file runs: a global beyond arrays, sparse matrices, chumpy's `Ch` and `Select`, `set` and the
    dictionaries of `collections` is refused.

    Raises:
        ValueError: the file is not such a pickle; for a refused global the message names it.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            content = _RestrictedUnpickler(file, encoding="latin1").load()
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
