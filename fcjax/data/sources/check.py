"""What is missing or odd in a data set, found without writing anything."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from fcjax.data.sources.files import Shelf
from fcjax.data.sources.sample import SampleError
from fcjax.data.sources.source import Source, some


def check(
    source: Source, count: int = 0, progress: Callable[[Iterable[int]], Iterable[int]] = lambda numbers: numbers
) -> tuple[list[str], int]:
    """Reads the first `count` samples (0: all). Returns what was found, a line each, and how many can be read.

    progress: wraps the numbers of the samples (tqdm, for one).
    """
    count = min(count or len(source), len(source))
    missing: dict[str, list[str]] = defaultdict(list)
    sizes: dict[str, list[str]] = defaultdict(list)
    broken: list[str] = []
    shelves: dict[str, Shelf] = {}  # by their labels as seen from the set's root
    for index in progress(range(count)):
        name = source.name(index)
        for shelf, stem in source.shelves(index):
            label = _label(source, shelf)
            shelves[label] = shelf
            if shelf.find(stem) is None:
                missing[label].append(stem)
        try:
            source[index]
        except SampleError as error:
            broken.append(str(error))
        for label, sized in _other_sizes(source, index):
            sizes[label].append(f"{name}: {sized}")
    lines = [f"{source.root}: {len(source)} samples, {count} of them looked through"]
    for label, shelf in shelves.items():
        if shelf.folder.name != Path(shelf.folders[0]).name and shelf.folder.is_dir():
            lines.append(f"{shelf.folder.relative_to(source.root)}/ is read for {shelf.folders[0]}/")
        if label in missing:
            names = missing[label]
            lines.append(f"{label}: missing for {len(names)} of {count} ({some(names)}): {shelf.without}")
        if label in sizes:
            lines.append(f"{label}: not of the picture's size for {len(sizes[label])} ({some(sizes[label])})")
    lines += source.oddities()
    if broken:
        lines.append(f"{len(broken)} of {count} samples cannot be read: {'; '.join(broken[:3])}")
    return lines, count - len(broken)


def require_body_maps(source: Source, count: int = 0) -> None:
    """ValueError where none of the first `count` samples (0: all) has a body map. No file is opened."""
    count = min(count or len(source), len(source))
    needed = (source.body_files(index) for index in range(count))
    if any(all(shelf.find(stem) for shelf, stem in files) for files in needed):
        return
    files = " and ".join(dict.fromkeys(_label(source, shelf) for shelf, _ in source.body_files(0)))
    raise ValueError(
        f"none of the {count} samples of {source.root} has a body map, and all would be left out: put DensePose maps "
        f"(part, u and v) where {files} are read (pictures of the parts alone, as in VITON-HD's image-densepose/, show "
        "no u and v), or give --no-need-pose, which takes samples with an empty map: enough to train try-on as in the "
        "paper, not composing"
    )


def _other_sizes(source: Source, index: int) -> list[tuple[str, str]]:
    """The sample's maps that have another size than its picture; what cannot be opened is told elsewhere."""
    (first, stem), *others = source.shelves(index)
    picture = _size(first.find(stem))
    found = []
    for shelf, stem in others:
        size = _size(shelf.find(stem)) if shelf.sized else None
        if picture and size and size != picture:
            found.append((_label(source, shelf), f"{size[0]}x{size[1]} for {picture[0]}x{picture[1]}"))
    return found


def _label(source: Source, shelf: Shelf) -> str:
    """The shelf in words, as seen from the set's root: "dresses/dense/*_5.png"."""
    return (shelf.root / shelf.label).relative_to(source.root).as_posix()


def _size(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
