"""What all data sets are read as: a sequence of samples with names."""

import abc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from fcjax.data.sources.files import Shelf, read_parse
from fcjax.data.sources.sample import RawSample, SampleError


class Source(abc.ABC):
    """Samples in the order of a data set's own list.

    `source[index]` raises SampleError for a sample that cannot be read, and so leaves the others usable.
    """

    root: Path
    stems: Sequence[str]
    parser: Callable[[UInt8[ndarray, "h w 3"]], UInt8[ndarray, "h w"]] | None = None
    """What makes parse maps (`Part` numbers) of pictures in place of the set's own."""

    def __len__(self) -> int:
        return len(self.stems)

    def name(self, index: int) -> str:
        """What reports call the sample."""
        return self.stems[index]

    def __getitem__(self, index: int) -> RawSample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        try:
            return self.read(index)
        except SampleError:
            raise
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise SampleError(" ".join(str(error).split())) from error

    def parsed(
        self, image: UInt8[ndarray, "h w 3"], shelf: Shelf, stem: str, labels: str
    ) -> UInt8[ndarray, "h w"] | None:
        """The picture's parse map: the parser's, else that of the shelf; None where there is neither."""
        if self.parser is not None:
            return self.parser(image)
        path = shelf.find(stem)
        return None if path is None else read_parse(path, labels, image.shape[:2])

    @abc.abstractmethod
    def read(self, index: int) -> RawSample:
        """The sample; ValueError or OSError where it cannot be read."""

    @abc.abstractmethod
    def shelves(self, index: int) -> list[tuple[Shelf, str]]:
        """Where the sample's files are looked for, and by which stem; its picture first."""

    @abc.abstractmethod
    def body_files(self, index: int) -> list[tuple[Shelf, str]]:
        """Those of the sample's shelves that its body map (part, u and v) is read from, all of them needed."""

    def oddities(self) -> list[str]:
        """What is odd in the set's own lists, a line each."""
        return []


def checked_root(root: str | Path, what: str) -> Path:
    """The folder. ValueError where there is none."""
    path = Path(root)
    if not path.is_dir():
        raise ValueError(f"no such folder: {path} ({what} is expected there)")
    return path


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
