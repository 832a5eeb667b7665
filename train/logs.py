"""Where a run's numbers go: files of one JSON object a line, the console, and TensorBoard's event files if asked for.

`log.jsonl` is training's, with `step` and `loss` in every line, `heldout.jsonl` that of the held-out samples, with
`step` and `heldout_loss`. `notes.jsonl` says what happened, with `step` and `note`. Of several processes the first
writes and speaks.
"""

import contextlib
import json
import math
import os
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

Numbers = Literal["log", "heldout"]
_DIGITS = 9  # as many as tell any two float32 apart


class Log:
    """A context; `step` is where the run begins or goes on, and lines of later steps, which will come again, are cut.

    ValueError, naming what to install, where TensorBoard's files are asked for without their writer.
    """

    def __init__(self, out: Path, step: int = 0, tensorboard: bool = False):
        self._leads, self._out = jax.process_index() == 0, out
        self._board: Any = None
        if not self._leads:
            return
        if tensorboard:
            self._board = _board(out / "tensorboard", step)
        for name in typing.get_args(Numbers):
            _cut(out / f"{name}.jsonl", step)
        _cut(out / "notes.jsonl", math.inf)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        # What ended the run is told first.
        with self._written() if kind is None else contextlib.suppress(OSError):
            if self._board is not None:
                self._board.close()

    def line(self, step: int, values: Mapping[str, float], file: Numbers = "log") -> None:
        """Numbers after `step` steps. ValueError where the disk does not take them."""
        if not self._leads:
            return
        exact = {name: float(f"{value:.{_DIGITS}g}") for name, value in values.items()}
        print(f"step {step} " + " ".join(f"{name} {value:.5g}" for name, value in values.items()), flush=True)
        with self._written():
            self._append(file, {"step": step, **exact})
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)

    def picture(self, step: int, page: np.ndarray) -> None:
        """A page of samples uint8 (H, W, 3), for TensorBoard alone."""
        if self._board is not None:
            with self._written():
                self._board.add_image("samples", page, step, dataformats="HWC")

    def say(self, text: str) -> None:
        """On the console alone: what goes as it should."""
        if self._leads:
            print(text, flush=True)

    def note(self, step: int, text: str) -> None:
        """In the notes alone, if the disk takes it: it is told elsewhere, too."""
        if self._leads:
            with contextlib.suppress(OSError):
                self._append("notes", {"step": step, "note": text})

    def warn(self, step: int, text: str) -> None:
        """On stderr and in the notes."""
        if self._leads:
            print(f"warning: {text}", file=sys.stderr, flush=True)
        self.note(step, text)

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        with (self._out / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(f"the log in {self._out} cannot be written: {error.strerror or error}") from error


def _cut(path: Path, step: float) -> None:
    """Takes the numbers after `step`, and what a killed run left of its last line, out of a log, if there is one."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["step"] <= step:
            kept.append(text + "\n")
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept))
    os.replace(partial, path)


def _board(folder: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError("--tensorboard needs tensorboardX: pip install 'fcjax[tensorboard]'") from error
    # The run writes what comes after `step` again.
    purge = step + 1 if step else None
    # Files are named by the second, which two starts may share.
    return SummaryWriter(str(folder), purge_step=purge, filename_suffix=f".{step}")
