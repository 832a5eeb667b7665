"""The flags of `infer.evaluate`, and which of them belong together."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from infer.flags import OptionalPath, flag
from infer.predictions import FolderFlags

SHARED = ("json", "worst", "rows", "seed", "overwrite", "work", "csv", "html", "blind")
"""Flags that every kind of evaluation knows."""
OF_SETS = ("also", "labels", "count", "sheet", "clip", "dino", "faces")
"""Flags of all sets, whoever draws them."""
MODELS = (*OF_SETS, "model", "without_binding", "steps", "sampler", "guidance", "size", "shard", "pictures")
"""Flags of all that lets models compose."""
OF_FOLDERS = ("protocol", "metrics", "ssim_border", "lpips_weights", "inception_weights", "workers", "batch")
"""Flags of the protocols that apply to a model's pictures too."""
Split = Literal["heldout", "train", "alike", "drawn"]


@dataclass(frozen=True)
class Request:
    """What to score, and where the figures go."""

    model: str = "mini"
    """A model folder, or mini, the model in the package."""
    also: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another model folder to score on the same sets (with --predictions: of pictures); may be repeated."""
    labels: tuple[str, ...] = ()
    """What to call the model and each of --also, instead of their folders."""
    without_binding: tyro.conf.FlagCreatePairsOff[bool] = False
    """Score the model with its binding switched off as well; on Wardrobe's sets this is done wherever there is any."""
    no_without_binding: tyro.conf.FlagCreatePairsOff[bool] = False
    """Not even there."""
    split: Annotated[Split | None, flag("heldout|train|alike|drawn", "heldout")] = None
    """Of Wardrobe's sets."""
    count: Annotated[int | None, flag("INT", "100; all of --data or --sets")] = None
    """Number of sets."""
    data: OptionalPath = None
    """A prepared data set whose people the model is to draw: what train.prepare wrote."""
    task: Annotated[Literal["compose", "tryon"] | None, flag("compose|tryon", "none")] = None
    """What the model is to do with --data: draw them anew, or dress them."""
    sets: OptionalPath = None
    """A list of sets to compose, which infer.table1 wrote. With --predictions, as with --split, DIR holds a picture of
    every set by its number (0.png, 000000.jpg), and these are scored."""
    shard: Annotated[tuple[int, int] | None, flag("I N", "none")] = None
    """Draw every Nth picture from the Ith (0 to N - 1) into --work and score nothing. Once all N are done, a run
    without scores them (and draws the swap test's)."""
    clip: Annotated[str | None, flag("NAME", "none")] = None
    """CLIP-I and CLIP-T by this model, a folder of transformers or a name on the Hub (openai/clip-vit-base-patch32)."""
    dino: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The same of DINO or DINOv2 (facebook/dino-vits16, facebook/dinov2-base); may be repeated."""
    faces: Annotated[str | None, flag("MODULE:FUNCTION", "none")] = None
    """The same of faces, by a function of yours: pictures uint8 (h, w, 3) to vectors, None without a face."""
    swap_count: Annotated[int | None, flag("INT", "as --count; 0 where there are no swatches")] = None
    """Number of sets for the swap test."""
    seed: int = 0
    """Of the sets; the picture of set i has the seed SEED + i."""
    steps: Annotated[int | None, flag("INT", "the model's")] = None
    sampler: str = "ddim"
    guidance: Annotated[float | None, flag("FLOAT", "the model's")] = None
    size: Annotated[tuple[int, int] | None, flag("HEIGHT WIDTH", "the model's")] = None
    """Of pictures, in pixels."""
    json: OptionalPath = None
    """All figures, and those of every set."""
    sheet: OptionalPath = None
    """A PNG of the first sets: assets, pose, results, truth."""
    worst: OptionalPath = None
    """The same of the sets that the model did worst."""
    swap_sheet: OptionalPath = None
    """A PNG of the first sets of the swap test, before and after the exchange."""
    pictures: OptionalPath = None
    """A folder for the model's pictures of the first sets, by number."""
    rows: int = 12
    """Sets on each sheet and page."""
    html: OptionalPath = None
    """A page with all figures, charts and the pictures of the first sets, in one file."""
    blind: bool = False
    """--html is a comparison page instead; whose pictures it shows stands beside it, in the file .key.json."""
    votes: tuple[Path, ...] = ()
    """What comparison pages saved, to be counted by --key."""
    key: OptionalPath = None
    """The key of the page that the votes are on."""
    overwrite: bool = False
    """Replace what is there of an earlier run: files of figures (--json, --csv), the key of a comparison page, numbered
    pictures in --pictures."""
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
        if self.blind and len(self.drawn_by) < 2 and self.binding_off is not None and not self.binding_off:
            own = "" if self.folders.predictions is not None else ", or take --without-binding"
            raise ValueError(
                f"--blind compares two at least, got {''.join(self.drawn_by)} alone: name another with --also{own}"
            )
        if bool(self.votes) != (self.key is not None):
            raise ValueError("--votes and --key belong together: what pages saved, and whose pictures they showed")
        if self.data is not None and self.task is None:
            raise ValueError("--data needs --task: compose draws its people anew, tryon dresses them")
        if self.shard is not None and not (0 <= self.shard[0] < self.shard[1] and self.folders.work is not None):
            raise ValueError("--shard I N takes I from 0 to N - 1, and --work, the folder that all shards share")
        if not self.swatches and self.swap_count:
            raise ValueError(f"{self.wardrobe} sets have no fabric swatches to exchange; leave --swap-count out")
        if self.without_binding and self.no_without_binding:
            raise ValueError("--without-binding and --no-without-binding: one of them at most is expected")
        if len(set(self.drawn_by)) < len(self.drawn_by):
            raise ValueError(f"each can be scored once, got {', '.join(self.drawn_by)}")
        if self.labels and not len(set(self.labels)) == len(self.labels) == len(self.drawn_by):
            said = ", ".join(self.labels)
            raise ValueError(
                f"--labels names each of {', '.join(self.drawn_by)} differently, in this order; got {said}"
            )

    @property
    def scores_folders(self) -> bool:
        """Whether pictures that are there are scored by a protocol, rather than a model's."""
        one, other, sets = self.folders.predictions, self.folders.truth, self.split or self.sets
        return other is not None or (one is not None and (sets is None or self.folders.protocol is not None))

    @property
    def scores_pictures(self) -> bool:
        """Whether the pictures of sets are there, and no model draws them."""
        return self.folders.predictions is not None and not self.scores_folders

    @property
    def drawn_by(self) -> tuple[str, ...]:
        """The models, or the folders of pictures."""
        made = self.folders.predictions
        return (self.model if made is None else str(made), *self.also)

    @property
    def names(self) -> tuple[str, ...]:
        """What a table calls them."""
        return self.labels or self.drawn_by

    @property
    def outputs(self) -> list[Path]:
        """What is to be written; what is done of a run lies beside the first."""
        written = (self.json, self.html, self.folders.csv, self.sheet, self.worst, self.swap_sheet, self.pictures)
        return [path for path in written if path is not None]

    @property
    def binding_off(self) -> bool | None:
        """Whether the model is scored once more without its binding; None: where it has any."""
        if self.without_binding or self.no_without_binding:
            return self.without_binding
        return None if self.wardrobe is not None and self.folders.predictions is None else False

    @property
    def wardrobe(self) -> Split | None:
        """The split of Wardrobe's sets, where they are these."""
        return None if self.data is not None or self.sets is not None else self.split or "heldout"

    @property
    def _kind(self) -> tuple[str, tuple[str, ...]]:
        """What the evaluation is known by, and its own flags."""
        if self.votes or self.key is not None:
            return "--votes", ("votes", "key")
        if self.scores_folders:
            return "--predictions", (*(own.name for own in fields(FolderFlags)), "also", "labels")
        if self.scores_pictures:
            return "--predictions with sets", (*OF_SETS, "predictions", "sets", "split")
        if self.data is not None:
            return "--data", (*MODELS, *OF_FOLDERS, "data", "task", "pairing")
        if self.sets is not None:
            return "--sets", (*MODELS, "sets")
        own = ("split", "swap_count", "swap_sheet", "no_without_binding")
        return "an evaluation on Wardrobe's sets", (*MODELS, *own)

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
        """The flags of a model's evaluation as plain data; of pictures that are there, without those of a model."""
        held = asdict(self) | {"split": self.wardrobe}
        del held["folders"]
        if self.scores_pictures:
            held = {name: value for name, value in held.items() if name not in set(MODELS) - {*OF_SETS, "model"}}
            held["model"] = str(self.folders.predictions)
        return {name: str(value) if isinstance(value, Path) else value for name, value in held.items()}

    @property
    def wanted(self) -> int:
        """How many sets an evaluation on Wardrobe's takes."""
        return 100 if self.count is None else self.count

    @property
    def swaps(self) -> int:
        """How many sets the swap test takes."""
        if self.swap_count is None:
            return self.wanted if self.swatches and not self.scores_pictures else 0
        return self.swap_count

    @property
    def swatches(self) -> bool:
        """Whether there are sets of swatches, which the swap test needs."""
        return self.wardrobe in ("heldout", "train")
