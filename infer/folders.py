"""Two folders of pictures, the predictions and the truth, matched by the stems of their names."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags, Image

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
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
    mis_sized: tuple[str, ...] = ()  # predictions of another shape than their truth

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
    """The pairs to score, in the order of their names, and what was left out (nothing unless a subset was asked)."""

    pairs: list[Pair]
    problems: Problems = field(default_factory=Problems)


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
    if names is not None:
        true = chosen(true, names, truth)
    missing, extra = sorted(true.keys() - made.keys()), sorted(made.keys() - true.keys())
    if not paired and masks is None and len(missing) == len(extra):
        pairs = [Pair(stem, made[stem], true.get(stem)) for stem in sorted(made)]
        pairs = [pair if pair.truth else Pair(pair.name, pair.prediction, true[missing.pop(0)]) for pair in pairs]
        extra = []
    elif not paired and masks is None and subset:
        pairs = [Pair(stem, made.get(stem), true.get(stem)) for stem in sorted(made.keys() | true.keys())]
    else:
        pairs = [Pair(stem, made[stem], true[stem], _mask(masks, stem)) for stem in sorted(made.keys() & true.keys())]
    files = [path for pair in pairs for path in (pair.prediction, pair.truth, pair.mask) if path is not None]
    sizes = {path: size_of(path) for path in progress(files)}
    broken = [path for path in files if sizes[path] is None]
    usable = [pair for pair in pairs if not {pair.prediction, pair.truth, pair.mask} & set(broken)]
    odd = mis_sized(usable, sizes, one_size) if paired else []
    problems = Problems(
        tuple(missing), tuple(extra), tuple(path.name for path in broken), tuple(pair.name for pair in odd)
    )
    if problems.any and not subset:
        raise ValueError(
            f"{predictions} and {truth} do not fit: {problems.listed()}. Mend the folders, or score what fits alone "
            "with --subset"
        )
    left = [pair for pair in usable if pair not in odd]
    if not left:
        raise ValueError(f"no picture of {predictions} fits one of {truth}: {problems.listed() or 'both are empty'}")
    return Matched(left, problems)


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
            size = image.height, image.width
            # A JPEG is read to its end at an eighth of its size, which is several times as fast.
            image.draft(None, (1, 1))
            image.load()
            if image.mode == "F":
                return None
            return size[::-1] if image.getexif().get(ExifTags.Base.Orientation, 1) in TURNED else size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def mis_sized(pairs: Sequence[Pair], sizes: dict[Path, tuple[int, int] | None], one_size: bool) -> list[Pair]:
    """Pairs whose prediction is not of the truth's shape to within a pixel (or of the first's size, if so asked)."""
    odd = []
    for pair in pairs:
        made, true = (sizes[path] for path in (pair.prediction, pair.truth) if path is not None)
        first = sizes[pairs[0].prediction] if pairs[0].prediction is not None else None
        assert made is not None and true is not None
        if abs(made[1] - true[1] * made[0] / true[0]) > 1 or (one_size and made != first):
            odd.append(pair)
    return odd
