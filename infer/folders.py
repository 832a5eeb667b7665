"""Two folders of pictures, the predictions and the truth, matched by the stems of their names."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags, Image

from infer.figures import counted

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
UNREAD = (".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".npy", ".npz", ".pgm", ".ppm", ".raw", ".tga")
"""What else a picture may end in: such files are listed, not read."""
MASK_NAMES = ("{}", "{}_mask")
"""Masks have the person's stem, or as in VITON-HD that with _mask."""
TURNED = (5, 6, 7, 8)
"""EXIF's orientations that exchange height and width."""
SHOWN = 5
"""How many names of a kind an error lists."""


@dataclass(frozen=True)
class Pair:
    """A prediction and its truth. In an unpaired comparison of a subset, one of them may be missing."""

    name: str
    prediction: Path | None
    truth: Path | None
    mask: Path | None = None


@dataclass(frozen=True)
class Problems:
    """What stands in the way of scoring everything, by stem or file name."""

    missing: tuple[str, ...] = ()  # truth without a prediction
    extra: tuple[str, ...] = ()  # predictions without truth
    unreadable: tuple[str, ...] = ()
    mis_sized: tuple[str, ...] = ()  # predictions of another shape than their truth, with both sizes
    unread: tuple[str, ...] = ()  # files that look like pictures, of endings that are not read

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return any(self.counts.values())

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {name.replace("_", "-"): len(found) for name, found in vars(self).items()}

    def listed(self) -> str:
        """Counts and the first names of every kind that occurs."""
        parts = []
        for name, found in vars(self).items():
            if found:
                more = ", ..." if len(found) > SHOWN else ""
                parts.append(f"{len(found)} {name.replace('_', '-')} ({', '.join(found[:SHOWN])}{more})")
        return "; ".join(parts)


@dataclass(frozen=True)
class Matched:
    """The pairs to score, in the order of their names, and what was left out (nothing unless a subset was asked).

    sizes: of either side, how many pictures have which, height x width. folders: those in the two that nobody searched.
    origin: where the pictures come from, if that needs a word.
    """

    pairs: list[Pair]
    problems: Problems = field(default_factory=Problems)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    origin: str = ""

    @property
    def notes(self) -> list[str]:
        """Lines on what a reader of the figures should know."""
        found = [self.origin] if self.origin else []
        if len({size for side in self.sizes.values() for size in side}) > 1:
            sides = (
                f"{side} {', '.join(f'{size} ({count})' for size, count in own.items())}"
                for side, own in self.sizes.items()
            )
            found.append(f"sizes (height x width) differ: {'; '.join(sides)}")
        if self.folders:
            found.append(f"folders in folders are not searched: {', '.join(self.folders[:SHOWN])}")
        return found


def match(
    predictions: Path,
    truth: Path,
    *,
    paired: bool = True,
    names: Path | None = None,
    masks: Path | None = None,
    subset: bool = False,
    one_size: bool = False,
    progress: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> Matched:
    """Every prediction with its truth.

    paired: by stem; otherwise the two folders are two sets, and names need not fit where counts do. names: a list such
    as test_pairs_paired.txt, of whose lines the first words alone are the truth. subset: leave out what does not
    fit, and say so in the result, instead of ValueError. one_size: predictions must be of one size. All files are
    decoded once; `progress` sees them.
    """
    made, true = pictures(predictions), without_garments(pictures(truth))
    folders, unread = beside(predictions)
    if names is None:
        others, unread_truth = beside(truth)
        folders, unread = folders + others, unread + unread_truth
    else:
        true = chosen(true, names, truth)
    missing, extra = sorted(true.keys() - made.keys()), sorted(made.keys() - true.keys())
    if not paired and masks is None and len(missing) == len(extra):
        pairs = [Pair(stem, made[stem], true.get(stem)) for stem in sorted(made)]
        pairs = [pair if pair.truth else Pair(pair.name, pair.prediction, true[missing.pop(0)]) for pair in pairs]
        extra = []
    elif not paired and masks is None and not subset:
        raise ValueError(
            f"{predictions} holds {counted(len(made), 'picture')} and {truth} {len(true)}: two sets of one number are "
            "expected, or --subset, which takes all that are there"
        )
    elif not paired and masks is None:
        pairs = [Pair(stem, made.get(stem), true.get(stem)) for stem in sorted(made.keys() | true.keys())]
    else:
        pairs = [Pair(stem, made[stem], true[stem], _mask(masks, stem)) for stem in sorted(made.keys() & true.keys())]
    files = [path for pair in pairs for path in (pair.prediction, pair.truth, pair.mask) if path is not None]
    sizes = {path: size_of(path) for path in progress(files)}
    broken = [path for path in files if sizes[path] is None]
    usable = [pair for pair in pairs if not {pair.prediction, pair.truth, pair.mask} & set(broken)]
    odd = mis_sized(usable, sizes, one_size) if paired else {}
    problems = Problems(
        tuple(missing),
        tuple(extra),
        tuple(path.name for path in broken),
        tuple(f"{name} {said}" for name, said in odd.items()),
        tuple(str(path) for path in unread),
    )
    left = [pair for pair in usable if pair.name not in odd]
    shown = {"predictions": [pair.prediction for pair in left], "truth": [pair.truth for pair in left]}
    counts = {side: Counter(_said(sizes[path]) for path in paths if path is not None) for side, paths in shown.items()}
    matched = Matched(left, problems, {side: dict(own) for side, own in counts.items()}, tuple(map(str, folders)))
    if problems.any and not subset:
        said = "; ".join([problems.listed(), *(matched.notes[-1:] if folders else [])])
        raise ValueError(
            f"{predictions} and {truth} do not fit: {said}. Mend the folders (a prediction and its truth have one "
            f"stem, files end in {', '.join(ENDINGS)}), or score what fits alone with --subset"
        )
    if not left:
        raise ValueError(f"no picture of {predictions} fits one of {truth}: {problems.listed() or 'both are empty'}")
    return matched


def beside(folder: Path) -> tuple[list[Path], list[Path]]:
    """What lies in a folder beside the pictures that are read: folders, and files that look like pictures."""
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return [path for path in entries if path.is_dir()], [path for path in entries if path.suffix.lower() in UNREAD]


def pictures(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by stem. ValueError where there are none, or two of one stem."""
    if not folder.is_dir():
        raise ValueError(f"no such folder of pictures: {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in ENDINGS or path.name.startswith("."):
            continue
        if path.stem in found:
            raise ValueError(f"{folder} holds {found[path.stem].name} and {path.name}: one picture a name is expected")
        found[path.stem] = path
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(ENDINGS)}); pictures in its folders do not count")
    return found


def without_garments(found: dict[str, Path]) -> dict[str, Path]:
    """DressCode's images/ without the garments N_1 that lie among the people N_0."""
    return {
        stem: path for stem, path in found.items() if not (re.fullmatch(r"\d+_1", stem) and f"{stem[:-1]}0" in found)
    }


def chosen(found: dict[str, Path], names: Path, folder: Path) -> dict[str, Path]:
    """Those that a list of pairs names first in its lines. ValueError for names that the folder lacks."""
    if not names.is_file():
        raise ValueError(f"no such list of pairs: {names}")
    lines = [line.split() for line in names.read_text(encoding="utf-8").splitlines()]
    stems = list(dict.fromkeys(Path(words[0]).stem for words in lines if words))
    lacking = [stem for stem in stems if stem not in found]
    if lacking or not stems:
        first = ", ".join(lacking[:SHOWN]) or "it is empty"
        raise ValueError(f"{names} names {len(lacking)} of {len(stems)} pictures that {folder} lacks: {first}")
    return {stem: found[stem] for stem in stems}


def _mask(masks: Path | None, stem: str) -> Path | None:
    if masks is None:
        return None
    for name in MASK_NAMES:
        for ending in ENDINGS:
            path = masks / f"{name.format(stem)}{ending}"
            if path.is_file():
                return path
    raise ValueError(f"{masks} holds no mask of {stem}: {stem}.png or {stem}_mask.png is expected")


def size_of(path: Path) -> tuple[int, int] | None:
    """Height and width of a picture as its EXIF turns it; None of one that is broken or holds floats."""
    try:
        with Image.open(path) as image:
            height, width = image.height, image.width
            # A JPEG is read to its end at an eighth of its size, which is several times as fast.
            image.draft(None, (1, 1))
            image.load()
            if image.mode == "F":
                return None
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in TURNED
            return (width, height) if turned else (height, width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def mis_sized(pairs: Sequence[Pair], sizes: Mapping[Path, tuple[int, int] | None], one_size: bool) -> dict[str, str]:
    """Pairs whose prediction is not of the truth's shape to within a pixel (or of the first's size, if so asked), with
    both sizes in words."""
    odd = {}
    for pair in pairs:
        made, true = (sizes[path] for path in (pair.prediction, pair.truth) if path is not None)
        first = sizes[pairs[0].prediction] if pairs[0].prediction is not None else None
        assert made is not None and true is not None
        if abs(made[1] - true[1] * made[0] / true[0]) > 1:
            odd[pair.name] = f"{_said(made)} for {_said(true)}"
        elif one_size and made != first:
            odd[pair.name] = f"{_said(made)} among {_said(first)}"
    return odd


def _said(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size or ()))
