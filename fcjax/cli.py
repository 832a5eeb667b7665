"""What all programs share: flags from a dataclass, errors in one line, exit codes, a cache of compiled programs.

0 done, 2 a request that cannot be met, a device's memory being one reason (one line `error: ...` on stderr), 130
interrupted. Any other failure is a mistake of the program's and keeps its traceback.

JAX keeps what it compiles in the user's cache folder, so that a second start is quick. FCJAX_COMPILATION_CACHE names
another folder, or is "off"; JAX's own JAX_COMPILATION_CACHE_DIR goes before it.
"""

import contextlib
import dataclasses
import inspect
import os
import platform
import sys
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from fcjax import processor

LESS_MEMORY = (
    "a smaller --size, --dtype bfloat16 or fewer pictures at once need less; in training --remat layers, a greater "
    "--accumulate or a smaller --batch-size"
)


def run(function: Callable[..., object], arguments: Sequence[str] | None = None) -> None:
    """Call a program's function with flags from the command line.

    Args:
        function: takes one dataclass, whose fields become the flags, or plain keyword arguments. Its module's
            docstring is the help text.
        arguments: the command line; None takes the process's own.

    Raises SystemExit(2) after one line on stderr for ValueError and OSError, and where a device's memory does not
    suffice, SystemExit(130) when interrupted.
    """
    module = inspect.getmodule(function)
    description = (module.__doc__ if module else None) or function.__doc__
    # Run by its name, as `python -m infer.compose`, a module knows that name.
    spec = getattr(module, "__spec__", None)
    program = None if spec is None else f"python -m {spec.name}"
    kind = _request_type(function)
    with exit_codes():
        request = tyro.cli(kind or _keywords(function), args=arguments, description=description, prog=program)
        if kind is None:
            function(**request)
        else:
            function(request)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """ValueError, OSError and a lack of device memory inside become one line and SystemExit(2), an interruption
    SystemExit(130)."""
    _use_compilation_cache()
    try:
        with warnings.catch_warnings():
            # A program's own warnings are for whoever typed the command; those of libraries keep their default.
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            yield
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    except RuntimeError as error:
        if not _lacks_memory(error):
            raise
        # Further lines list what was to lie in it.
        said = str(error).splitlines()[0][:160]
        print(f"error: the device's memory does not suffice ({said}): {LESS_MEMORY}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _lacks_memory(error: RuntimeError) -> bool:
    """Whether this is what JAX raises where a device's memory does not suffice."""
    # A program that never imported it cannot have met its errors.
    return (
        "jax" in sys.modules
        and isinstance(error, sys.modules["jax"].errors.JaxRuntimeError)
        and "RESOURCE_EXHAUSTED" in str(error)
    )


def _use_compilation_cache() -> None:
    chosen = os.environ.get("FCJAX_COMPILATION_CACHE")
    if chosen == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = Path(chosen) if chosen else _own_cache()
    if folder is None:
        return
    # JAX by itself keeps what took it a second; most programs of a small model take less, and are many.
    least = float(os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0.1))
    for name, value in (
        ("jax_compilation_cache_dir", str(folder)),
        ("jax_persistent_cache_min_compile_time_secs", least),
    ):
        # For JAX where it is not imported yet, and for processes that this one starts.
        os.environ[name.upper()] = str(value)
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name, value)


def _own_cache() -> Path | None:
    """The folder in the user's cache; None for a user without a home, as containers have them."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    # What was compiled for one processor may not run on another that shares the home folder.
    return cache / "fcjax" / f"{platform.machine()}-{processor.number():08x}"


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; the file first where the system complains about one."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _request_type(function: Callable[..., object]) -> type | None:
    """The dataclass that the function takes, if that is all it takes."""
    names = list(inspect.signature(function).parameters)
    if len(names) != 1:
        return None
    kind = typing.get_type_hints(function).get(names[0])
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def _keywords(function: Callable[..., object]) -> Callable[..., dict[str, Any]]:
    """A function of the same flags that only returns them, so that parsing and running stay apart."""

    def collect(**flags: Any) -> dict[str, Any]:
        return flags

    collect.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    collect.__annotations__ = typing.get_type_hints(function)
    collect.__doc__ = function.__doc__
    return collect
