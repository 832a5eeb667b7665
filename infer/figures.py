"""What every evaluation prints and writes: tables of figures with intervals, the versions that made them."""

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

import fcjax
from fcjax.metrics import Figure

PACKAGES = ("jax", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Of fcjax, Python, and the packages that figures depend on."""
    return {
        "fcjax": fcjax.__version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def cell(figure: Figure | None, digits: int | None = None) -> str:
    """A mean with its interval, by default with three digits up to 1 and one above; one group alone has no interval."""
    if figure is None:
        return "-"
    if digits is None:
        digits = 3 if round(abs(figure.high), 3) <= 1 else 1
    alone = figure.groups == 1 and figure.low == figure.high
    return f"{figure.mean:.{digits}f}" + ("" if alone else f" [{figure.low:.{digits}f}, {figure.high:.{digits}f}]")


def counted(count: int, what: str) -> str:
    """So many things, in words."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def prepare_file(path: Path, overwrite: bool = True) -> None:
    """Makes the folder of a file to be written. ValueError where the path is a folder itself, or there already."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there, of an earlier run: name another file, or say --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)


def prepare_pictures(folder: Path, overwrite: bool) -> None:
    """Makes a folder for pictures to come. ValueError where it holds anything that may not be replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} is not empty: name another folder for the pictures, or say --overwrite")
