"""Files that are there whole or not at all: written aside, then renamed."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""How the names of files end that are being written, or were when a program was killed."""


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write a file that takes the place of `path` at the end, if nothing is raised.

    No other process on any machine writes there. Whoever has the file before it open keeps what it held.
    """
    aside = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, document: Any, indent: int = 1) -> None:
    """Writes a JSON file whole or not at all."""
    with written_whole(path) as aside:
        aside.write_text(json.dumps(document, indent=indent) + "\n")
