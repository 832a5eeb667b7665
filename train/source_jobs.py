"""Real data sets as jobs of `train.prepare`: a folder in its makers' layout in, shards or a report of its state out."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from fcjax.data.sources import DeepFashion, DressCode, Folder, Labels, Source, VitonHD, check, require_body_maps
from fcjax.data.sources.viton import Split
from train.raw_records import RawJob, RawOptions, parser_of
from train.shards import REPORT, write_set


@dataclasses.dataclass(frozen=True)
class SourceJob:
    """A data set in its own layout."""

    src: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """The data set's folder."""
    out: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="OUT")] = None
    """The folder for the shards; none is needed with --check."""
    options: tyro.conf.OmitArgPrefixes[RawOptions] = dataclasses.field(default_factory=RawOptions)
    check: bool = False
    """Read the folder, say what is missing or odd, write nothing."""
    retry: bool = False
    """Make shards that left samples out once more."""
    workers: int = 2
    ray: str = ""
    """The address of a Ray cluster that makes the shards instead."""

    def __post_init__(self):
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.out is None and not self.check:
            raise ValueError("name the folder for the shards behind the data set's, or give --check")

    @property
    def name(self) -> str:
        """What the index says that the shards were made of."""
        raise NotImplementedError

    @property
    def choices(self) -> dict[str, Any]:
        """How the data set is read: the flags that the jobs do not share."""
        shared = {field.name for field in dataclasses.fields(SourceJob)}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in shared}

    def open(self) -> Source:
        """The data set. ValueError where the folder is not laid out as it is."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _PairsJob(SourceJob):
    split: Split = "train"
    paired: bool = True
    """The garment that the person wears; --no-paired takes the unpaired lists, for evaluations."""
    worn: bool = True
    """What else the person wears, cut out by the parse map, and the face are assets too."""


@dataclasses.dataclass(frozen=True)
class VitonHDJob(_PairsJob):
    """VITON-HD: the folder with train_pairs.txt, train/ and test/."""

    name = "viton-hd"

    def open(self) -> Source:
        return VitonHD(self.src, self.split, self.paired, self.worn)


@dataclasses.dataclass(frozen=True)
class DressCodeJob(_PairsJob):
    """DressCode: the folder with upper_body/, lower_body/ and dresses/."""

    name = "dresscode"

    def open(self) -> Source:
        return DressCode(self.src, self.split, self.paired, self.worn)


@dataclasses.dataclass(frozen=True)
class DeepFashionJob(SourceJob):
    """DeepFashion-MultiModal: the folder with images/, segm/ and densepose/."""

    name = "deepfashion"

    def open(self) -> Source:
        return DeepFashion(self.src, parsed=not self.options.parse_by)


@dataclasses.dataclass(frozen=True)
class FolderJob(SourceJob):
    """Your own pictures: images/X.jpg, and as you have them assets/X/*.png, parse/, iuv/, keypoints/, images/X.json."""

    labels: Labels = "viton-hd"
    """The labels of the parse maps."""

    name = "folder"

    def open(self) -> Source:
        return Folder(self.src, self.labels)


def prepare_source(job: SourceJob) -> None:
    """Writes the job's shards and says how many samples they hold, or with `check` says how the data set is."""
    source = job.open()
    if job.check:
        if job.options.parse_by:
            source.parser = parser_of(job.options)
        lines, usable = check(source, job.options.count, lambda numbers: tqdm(numbers, unit="sample"))
        print("\n".join(lines))
        if not usable:
            raise ValueError(f"no sample of {job.src} can be read")
    if job.options.need_pose:
        # A reason that all samples share is told at once, not by the report of a run over all of them.
        require_body_maps(source, job.options.count)
    if job.check:
        return
    assert job.out is not None
    raw = RawJob(source, job.name, job.options, job.choices)
    index = write_set(raw, job.out, job.workers, job.ray, job.retry)
    why = f", {index['left_out']} left out ({job.out / REPORT} says why)" if index["left_out"] else ""
    print(f"{index['count']} samples{why}: {job.out}")
