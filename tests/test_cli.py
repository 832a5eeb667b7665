"""Exit codes and messages that every program shares."""

import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

from fcjax.cli import run


@dataclass(frozen=True)
class Request:
    name: str = "nobody"
    count: int = 1


def test_a_dataclass_becomes_flags(capsys):
    def program(request: Request) -> None:
        print(request)

    run(program, ["--name", "somebody", "--count", "3"])
    assert capsys.readouterr().out == "Request(name='somebody', count=3)\n"


def test_keyword_arguments_become_flags(capsys):
    def program(name: str, count: int = 2) -> None:
        """Print."""
        print(name, count)

    run(program, ["--name", "somebody"])
    assert capsys.readouterr().out == "somebody 2\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "error: two lines"),
        (FileNotFoundError(2, "No such file or directory", "shirt.png"), "error: shirt.png: No such file or directory"),
        (OSError("cannot identify image"), "error: cannot identify image"),
        (ValueError(), "error: ValueError"),
    ],
)
def test_bad_input_is_one_line_and_code_2(error, line, capsys):
    def program(request: Request) -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run(program, [])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == line + "\n"


def test_too_little_device_memory_is_one_line_that_says_what_helps(capsys):
    """JAX's other errors, and those of others that say the same, are mistakes of the program's."""

    def program(request: Request) -> None:
        raise errors[request.name]

    said = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 40000000000000 bytes."
    errors = {
        "memory": jax.errors.JaxRuntimeError(f"{said}\nBuffer assignment:\n  many lines"),
        "other": jax.errors.JaxRuntimeError("INTERNAL: no kernel"),
        "another's": RuntimeError(said),
    }
    with pytest.raises(SystemExit) as exit_:
        run(program, ["--name", "memory"])
    assert exit_.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the device's memory does not suffice ({said}): a smaller --size, --dtype bfloat16")
    assert line.endswith("in training --remat layers, a greater --accumulate or a smaller --batch-size")
    for name in ("other", "another's"):
        with pytest.raises(RuntimeError, match=r"INTERNAL|RESOURCE"):
            run(program, ["--name", name])
    assert not capsys.readouterr().err


def test_interrupt_is_130(capsys):
    def program(request: Request) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        run(program, [])
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_mistakes_of_the_program_keep_their_traceback():
    def program(request: Request) -> None:
        raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        run(program, [])


def test_warnings_are_one_line(capsys):
    def program(request: Request) -> None:
        warnings.warn("a word\nthat nobody knows", stacklevel=1)

    run(program, [])
    assert capsys.readouterr().err == "warning: a word that nobody knows\n"


def test_wrong_flags_are_code_2(capsys):
    def program(request: Request) -> None:
        raise AssertionError

    with pytest.raises(SystemExit) as exit_:
        run(program, ["--count", "many"])
    assert exit_.value.code == 2
    assert "count" in capsys.readouterr().err


def test_the_module_docstring_is_the_help():
    result = subprocess.run(
        [sys.executable, "-m", "infer.densepose", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert result.returncode == 0 and "--pose" in result.stdout and "iuv.png" in result.stdout
    assert result.stdout.startswith("usage: python -m infer.densepose ")


COMPILING = """
import sys
{first}
from fcjax.cli import run
def program() -> None:
    import jax
    print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
run(program, [])
"""


HITS = """
from fcjax.cli import run
def program() -> None:
    import jax
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    jax.jit(lambda x: jax.numpy.sin(x) + 1)(2.0)
    print("hits", sum("cache_hits" in event for event in hits))
run(program, [])
"""


def test_a_second_process_takes_what_the_first_compiled(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"FCJAX_COMPILATION_CACHE": str(tmp_path / "cache")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def started(**more: str) -> str:
        command = [sys.executable, "-c", HITS]
        done = subprocess.run(command, env={**environment, **more}, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()[-1]

    assert started() == "hits 0" and any((tmp_path / "cache").iterdir())
    assert started() != "hits 0"
    assert started(FCJAX_COMPILATION_CACHE="off") == "hits 0"


@pytest.mark.parametrize("first", ["", "import jax"], ids=["before jax", "after jax"])
def test_programs_keep_what_they_compile(first: str, tmp_path: Path) -> None:
    def used(**environment: str) -> list[str]:
        kept = {key: value for key, value in os.environ.items() if "COMPILATION_CACHE" not in key}
        code = COMPILING.format(first=first)
        command = [sys.executable, "-c", code]
        given = {**kept, "XDG_CACHE_HOME": str(tmp_path), **environment}
        return subprocess.run(command, env=given, check=True, capture_output=True, text=True).stdout.split()

    folder, least = used()
    assert Path(folder).parent == tmp_path / "fcjax" and least == "0.1"
    mine = str(tmp_path / "mine")
    assert used(FCJAX_COMPILATION_CACHE=mine, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="3") == [mine, "3.0"]
    assert used(FCJAX_COMPILATION_CACHE="off") == ["None", "1.0"]
    assert used(JAX_COMPILATION_CACHE_DIR=mine) == [mine, "1.0"]


def test_a_user_without_a_home_has_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Unless a folder is named, for which no home is looked for."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    # What programs leave in the environment is undone.
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for chosen in ("", str(tmp_path)):
        monkeypatch.setenv("FCJAX_COMPILATION_CACHE", chosen)
        run(lambda: print(os.environ.get("JAX_COMPILATION_CACHE_DIR")), [])
    assert capsys.readouterr().out.split() == ["None", str(tmp_path)]
