"""The flags of `infer.evaluate`, and which of them belong together."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from infer.predictions import FolderFlags

SHARED = ("json", "worst", "rows", "seed")
"""Flags that every kind of evaluation knows."""
MODELS = ("model", "also", "without_binding", "count", "steps", "sampler", "guidance", "size", "sheet", "html", "blind")
"""Flags of all that lets models compose."""


OF_SETS = ("shard", "work", "csv", "clip", "dino", "faces")
"""Flags of sets from files."""
OF_FOLDERS = ("protocol", "metrics", "lpips_weights", "inception_weights", "workers", "batch", "work", "csv")
"""Flags of the protocols that apply to a model's pictures too."""


@dataclass(frozen=True)
class Request:
    """What to score, and where the figures go."""

    model: str = "mini"
    """A model folder, or mini, the model in the package."""
    also: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another model folder to score on the same sets; may be repeated."""
    without_binding: bool = False
    """Score the model with its binding switched off as well."""
    split: Literal["heldout", "train", "alike", "drawn"] = "heldout"
    count: int | None = None
    """Number of sets (default: 100; all of --data or --sets)."""
    data: Path | None = None
    """A prepared data set whose people the model is to draw: what train.prepare wrote."""
    task: Literal["compose", "tryon"] | None = None
    """What the model is to do with --data: draw them anew, or dress them."""
    sets: Path | None = None
    """A list of sets to compose, which infer.table1 wrote."""
    shard: tuple[int, int] | None = None
    """I N: draw every Nth picture of --data or --sets from the Ith (0 to N - 1) into --work and score nothing. Once all
    N are done, a run without scores."""
    clip: str | None = None
    """With --data or --sets: CLIP-I and CLIP-T by this model, a folder of transformers or a name on the Hub
    (openai/clip-vit-base-patch32)."""
    dino: str | None = None
    """The same of DINO or DINOv2 (facebook/dino-vits16)."""
    faces: str | None = None
    """The same of faces, by MODULE:FUNCTION of yours: pictures uint8 (h, w, 3) to vectors."""
    swap_count: int | None = None
    """Number of sets for the swap test; by default as --count, for drawn garments 0."""
    seed: int = 0
    """Of the sets; the picture of set i has the seed SEED + i."""
    steps: int = 20
    sampler: str = "ddim"
    guidance: float = 1.5
    size: tuple[int, int] | None = None
    """Height and width in pixels, if not those of the model."""
    json: Path | None = None
    """All figures, and those of every set."""
    sheet: Path | None = None
    """A PNG of the first sets: assets, pose, results, truth."""
    worst: Path | None = None
    """The same of the sets that the model did worst."""
    swap_sheet: Path | None = None
    """A PNG of the first sets of the swap test, before and after the exchange."""
    rows: int = 12
    """Sets on each sheet and page."""
    html: Path | None = None
    """A page with all figures, charts and the pictures of the first sets, in one file."""
    blind: bool = False
    """--html is a comparison page instead; whose pictures it shows stands beside it, in the file .key.json."""
    votes: tuple[Path, ...] = ()
    """What comparison pages saved, to be counted by --key."""
    key: Path | None = None
    folders: tyro.conf.OmitArgPrefixes[FolderFlags] = field(default_factory=FolderFlags)

    def check(self) -> None:
        """ValueError for what cannot be asked. (Not on construction: the parser of flags would frame the message.)"""
        for name, least in (("count", 1), ("rows", 1), ("swap_count", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        flag, known = self._kind
        given = [name for name, value in self._changed.items() if name not in (*known, *SHARED)]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{flag} makes no use of {flags}: leave that out")
        if self.blind and self.html is None:
            raise ValueError("--blind needs --html, the file of the comparison page")
        if bool(self.votes) != (self.key is not None):
            raise ValueError("--votes and --key belong together: what pages saved, and whose pictures they showed")
        if self.data is not None and self.task is None:
            raise ValueError("--data needs --task: compose draws its people anew, tryon dresses them")
        if self.shard is not None and not (0 <= self.shard[0] < self.shard[1] and self.folders.work is not None):
            raise ValueError("--shard I N takes I from 0 to N - 1, and --work, the folder that all shards share")
        if not self.swatches and self.swap_count:
            raise ValueError(f"{self.split} sets have no fabric swatches to exchange; leave --swap-count out")

    @property
    def scores_folders(self) -> bool:
        """Whether pictures that are there are scored, rather than a model's."""
        return any(value is not None for value in (self.folders.predictions, self.folders.truth))

    @property
    def _kind(self) -> tuple[str, tuple[str, ...]]:
        """What the evaluation is known by, and its own flags."""
        if self.votes or self.key is not None:
            return "--votes", ("votes", "key")
        if self.scores_folders:
            return "--predictions", tuple(own.name for own in fields(FolderFlags))
        if self.data is not None:
            return "--data", (*MODELS, *OF_FOLDERS, *OF_SETS, "data", "task", "pairing")
        if self.sets is not None:
            return "--sets", (*MODELS, *OF_SETS, "sets")
        return "an evaluation on Wardrobe's sets", (*MODELS, "split", "swap_count", "swap_sheet")

    @property
    def _changed(self) -> dict[str, Any]:
        """The flags that are not at their defaults."""
        default = Request()
        own = {one.name: (getattr(self, one.name), getattr(default, one.name)) for one in fields(Request)}
        del own["folders"]
        own |= {
            one.name: (getattr(self.folders, one.name), getattr(default.folders, one.name))
            for one in fields(FolderFlags)
        }
        return {name: value for name, (value, usual) in own.items() if value != usual}

    @property
    def settings(self) -> dict[str, Any]:
        """The flags of a model's evaluation as plain data."""
        held = asdict(self)
        del held["folders"]
        return {name: str(value) if isinstance(value, Path) else value for name, value in held.items()}

    @property
    def wanted(self) -> int:
        """How many sets an evaluation on Wardrobe's takes."""
        return 100 if self.count is None else self.count

    @property
    def swaps(self) -> int:
        """How many sets the swap test takes."""
        if self.swap_count is None:
            return self.wanted if self.swatches else 0
        return self.swap_count

    @property
    def swatches(self) -> bool:
        """Whether there are sets of swatches, which the swap test needs."""
        return self.split in ("heldout", "train")
