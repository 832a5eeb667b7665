"""Where a run's numbers go: `log.jsonl`, the console, and TensorBoard's event files where they are asked for.

`log.jsonl` has one object a line, with `step` in each. Training's lines have `loss`, those of held-out samples
`heldout_loss`, and those with `note` say what happened. Of several processes the first writes and speaks.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

_DIGITS = 9  # as many as tell any two float32 apart


class Log:
    """A context; `step` is where the run begins or goes on, and lines of later steps, which will come again, are cut.

    ValueError, naming what to install, where TensorBoard's files are asked for without their writer.
    """

    def __init__(self, out: Path, step: int = 0, tensorboard: bool = False):
        self._leads = jax.process_index() == 0
        self._file: TextIO | None = None
        self._board: Any = None
        self._path = out / "log.jsonl"
        if not self._leads:
            return
        if tensorboard:
            self._board = _board(out / "tensorboard", step)
        if self._path.exists():
            _cut(self._path, step)
        self._file = self._path.open("a")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        for one in (self._file, self._board):
            # What ended the run is told first.
            with self._written() if kind is None else contextlib.suppress(OSError):
                if one is not None:
                    one.close()

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers after `step` steps. ValueError where the disk does not take them."""
        if self._file is None:
            return
        exact = {name: float(f"{value:.{_DIGITS}g}") for name, value in values.items()}
        print(f"step {step} " + " ".join(f"{name} {value:.5g}" for name, value in values.items()), flush=True)
        with self._written():
            print(json.dumps({"step": step, **exact}), file=self._file, flush=True)
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
        """In the log alone, if the disk takes it: it is told elsewhere, too."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                print(json.dumps({"step": step, "note": text}), file=self._file, flush=True)

    def warn(self, step: int, text: str) -> None:
        """On stderr and in the log."""
        if self._leads:
            print(f"warning: {text}", file=sys.stderr, flush=True)
        self.note(step, text)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(f"the log in {self._path.parent} cannot be written: {error.strerror or error}") from error


def _cut(path: Path, step: int) -> None:
    """Takes the numbers after `step`, and what a killed run left of its last line, out of a log."""
    kept = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["step"] <= step or "note" in line:
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
