"""The paper's ablations on Wardrobe: every arm trained alike, scored on the same sets, one table.

    python -m train.ablation table4 --config mini_ablation --data data/latents_ablation --seeds 0 1 --out runs/ablation
    python -m train.ablation table3 --config mini_ablation --data data/latents_ablation --seeds 0 1 --out runs/ablation
    python -m train.ablation blank --config mini_ablation --data data/latents_ablation --seeds 0 1 --out runs/ablation

Table 4 compares variants of binding, Table 3 encoders of the assets, blank whether the denoiser sees blank canvas; all
may share OUT, as the reference UNet of one is the model without binding of the other. First each seed trains a base
model without assets, from text and pose, which stands for Stable Diffusion; every arm begins with copies of its
denoiser, as the paper's does, and has the same data, batches and steps. OUT holds a folder for each arm and seed, and
the table as Markdown, JSON and a sheet of pictures. A run that was stopped goes on where it was, within an arm too.

--arms trains some arms alone, and --no-score leaves their figures to a later run, on another machine perhaps, which
needs their model/ and trained.json. ARM_SEED/heldout.json, alike.json and pictures/ are all that a table needs of an
arm: copied into another machine's OUT they stand for the arm there. Of arms that are not there yet the table says so.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from configs import load_config
from fcjax import folder
from fcjax.cli import run
from fcjax.config import OWN_SAMPLING
from fcjax.data import read_index
from fcjax.wardrobe import EDITION
from train.ablation_table import Result, Rows, summary, table
from train.arms import ARMS, TABLES
from train.config import TrainConfig
from train.documents import FREE_FIELDS, check_continues, differing, document_of
from train.tasks import check_sizes

SPLITS = ("alike", "heldout")
SHEET_ROWS = 8
STEPS = 20
"""Of sampling the pictures that are scored."""


@dataclass(frozen=True)
class Request:
    """Which table, of what, and where."""

    table: Annotated[Literal["table3", "table4", "blank"], tyro.conf.Positional]
    out: Path
    config: str = "mini_ablation"
    """The configuration of the arm with a reference UNet and binding in all blocks; others follow from it."""
    data: Path | None = None
    """The prepared set, if not the configuration's."""
    vae: Path | None = None
    """The folder of the VAE that encoded it, if not the configuration's."""
    arms: tuple[str, ...] = ()
    """Arms of the table to train and score now; by default all."""
    seeds: tuple[int, ...] = (0, 1)
    steps: int | None = None
    """Of every arm, if not the configuration's."""
    base_steps: int | None = None
    """Of the models without assets; by default as many."""
    count: int = 100
    """Sets of each kind to score."""
    swap_count: int | None = None
    """Held-out sets of the swap test; by default as many."""
    score: bool = True
    """Whether to score what is trained, and write the table; drawing and measuring want CPUs more than accelerators."""
    guidance: float = 1.5

    @property
    def changes(self) -> dict[str, Any]:
        """What it says of training otherwise than the configuration."""
        said = {name: getattr(self, name) for name in ("data", "vae", "steps")}
        return {name: value for name, value in said.items() if value is not None}

    def place(self, arm: str, seed: int) -> Path:
        """The folder of an arm."""
        return self.out / f"{arm}_{seed}"

    def asked(self, split: str) -> dict[str, Any]:
        """What decides the figures of a model."""
        swaps = {} if split == "alike" else {"swap_count": self.count if self.swap_count is None else self.swap_count}
        return {"split": split, "count": self.count, "guidance": self.guidance, **swaps}

    def check(self) -> None:
        """ValueError for what cannot be asked."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers, one at least, got {list(self.seeds)}")
        unknown = [arm for arm in self.arms if arm not in TABLES[self.table]]
        if unknown:
            raise ValueError(f"{self.table} has no arm {', '.join(unknown)}; it has {', '.join(TABLES[self.table])}")
        for name in ("count", "steps", "base_steps", "swap_count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def base_config(request: Request, seed: int) -> TrainConfig:
    """The model without assets: that without binding, whose denoiser never sees them."""
    given = load_config(request.config)
    if given.task != "compose" or given.model.reference_unet is None:
        raise ValueError(f"{request.config} trains no composing model with a reference UNet, of which arms are made")
    if given.start is not None or any(not trained for _, trained in given.optimizer.trainable):
        raise ValueError(
            f"{request.config} goes on from {given.start} or trains a part of its parameters; arms are compared that "
            "train all of them from one base model, which is trained here: take a configuration such as mini_ablation"
        )
    loss = dataclasses.replace(given.loss, drop_both=0.1, drop_text=0.0, drop_reference=0.9, matching=0.0, reading=0.0)
    changes = {**request.changes, **({"steps": request.base_steps} if request.base_steps else {})}
    model = ARMS["none"](given.model)
    return dataclasses.replace(
        given, name=f"{given.name}_base", model=model, loss=loss, seed=seed, start=None, **changes
    )


def arm_config(request: Request, arm: str, seed: int) -> TrainConfig:
    """An arm's training, which differs from the others' in the model alone. ValueError where it could not be equal."""
    given = load_config(request.config)
    if given.loss.matching or given.loss.reading:
        raise ValueError(
            f"{request.config} teaches reference features by losses of their own (loss.matching, loss.reading), which "
            "arms without a reference UNet would lack: set them to 0"
        )
    name, model, place = f"{given.name}_{arm}", ARMS[arm](given.model), request.place(arm, seed)
    start = place.with_name(f"{place.name}_start")
    return dataclasses.replace(given, name=name, model=model, seed=seed, start=start, **request.changes)


def made_from(request: Request) -> dict[str, Any]:
    """All that results of one table must have in common: Wardrobe's edition, which scores them, as well; the data
    set's own description, not where it lies (None where it is not here).
    """
    configs = {"base": base_config(request, 0), "arms": arm_config(request, "all", 0)}
    free = {"name", "seed", *FREE_FIELDS} - {"steps"}
    found: dict[str, Any] = {
        name: {field: value for field, value in document_of(config).items() if field not in free}
        for name, config in configs.items()
    }
    data = configs["arms"].data
    found["data"] = read_index(data)["settings"] if data is not None and data.is_dir() else None
    found["edition"] = EDITION
    return json.loads(json.dumps(found))


def check_same(there: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """ValueError, naming every field with both values, for what was made otherwise."""
    both = [{**one, "data": one["data"] if there["data"] and now["data"] else None} for one in (there, now)]
    # Figures are by the request's guidance and by STEPS, whatever the models' own are.
    free = tuple(f"{who}.model.{name}" for who in ("arms", "base") for name in OWN_SAMPLING)
    differ = differing(*both, free)
    if differ:
        raise ValueError(
            f"{where} was made otherwise; these differ: {', '.join(differ)}. Choose another --out or restore them"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Training


def write_start(base: Path, config: TrainConfig, out: Path) -> None:
    """An arm's first model folder, made of the base model's."""
    import jax
    import jax.numpy as jnp

    from fcjax.appearance import begun

    trained, params = folder.load(base, dtype=jnp.float32)
    model = dataclasses.replace(config.model, vae=trained.vae)
    aside = out.with_name(f"{out.name}.part")
    folder.save(aside, begun(params, model, jax.random.key(config.seed)), model)
    folder.copy_tokenizer(base, aside)
    aside.rename(out)


def is_trained(config: TrainConfig, out: Path) -> bool:
    """Whether a run is done. ValueError where the folder holds one of another configuration."""
    check_continues(out, config)
    return (out / "trained.json").is_file()


def train_apart(config: TrainConfig, out: Path, base: Path | None = None) -> None:
    """Begins a run or goes on with it, in a process of its own, which gives the memory of its devices back.

    base: of an arm, the folder of the model that it starts with. ValueError where training ends early.
    """
    print(f"training {out}", flush=True)
    worker = multiprocessing.get_context("spawn").Process(target=_train, args=(config, out, base))
    worker.start()
    with _terminating(worker.terminate):
        worker.join()
    if worker.exitcode:
        raise ValueError(
            f"training {out} ended with {worker.exitcode}; what it said stands above. Run this again to go on"
        )


def _train(config: TrainConfig, out: Path, base: Path | None) -> None:
    import jax

    from fcjax import trees
    from fcjax.cli import exit_codes
    from fcjax.models.parameters import abstract_parameters
    from train.run import train

    with exit_codes():
        if base is not None and config.start is not None and not config.start.is_dir():
            write_start(base, config, config.start)
        if not train(config, out):
            sys.exit("stopped by SIGTERM")
        counted = {name: leaves for name, leaves in abstract_parameters(config.model).items() if name != "vae"}
        said = {
            "steps": config.steps,
            "parameters": trees.count(counted),
            "seconds": training_seconds(out, config.batch_size),
            "device": jax.devices()[0].device_kind,
            "base": None if base is None else folder.weights_digest(base),
        }
        (out / "trained.json").write_text(json.dumps(said, indent=1) + "\n")


def training_seconds(out: Path, batch_size: int) -> float:
    """What a run's steps took by its log, without compiling, saving and drawing."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    timed = [(line["step"], batch_size / line["samples_per_second"]) for line in lines if "samples_per_second" in line]
    steps = [0, *(step for step, _ in timed)]
    return sum((step - before) * each for before, (step, each) in zip(steps, timed, strict=False))


@contextlib.contextmanager
def _terminating(stop: Callable[[], object]) -> Iterator[None]:
    """SIGTERM, which ends this program alone, ends what it started instead; that saves its state and says so."""
    previous = signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# ---------------------------------------------------------------------------------------------------------------------
# Scoring


def evaluate(*flags: str) -> None:
    """Runs `python -m infer.evaluate`; ValueError where it fails."""
    worker = subprocess.Popen([sys.executable, "-m", "infer.evaluate", *flags])
    with _terminating(worker.terminate):
        status = worker.wait()
    if status:
        raise ValueError(f"infer.evaluate ended with {status}; what it said stands above")


def kept(request: Request, made: dict[str, Any], arm: str, seed: int, split: str) -> Result | None:
    """The figures that an arm's folder holds; None where there are none of these sets, or of other weights.

    ValueError where they are of an arm that was trained otherwise.
    """
    path = request.place(arm, seed) / f"{split}.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    check_same(found["made_from"], made, path)
    model = request.place(arm, seed) / "model"
    changed = model.is_dir() and folder.weights_digest(model) != found["weights"]
    return None if changed or found["asked"] != request.asked(split) else found


def score(request: Request, made: dict[str, Any], arm: str, seed: int, split: str) -> None:
    """Keeps what `infer.evaluate` says of an arm on one kind of sets, and its first pictures, in the arm's folder."""
    place = request.place(arm, seed)
    said, model, pictures = place / f"{split}.said.json", place / "model", place / "pictures" / split
    asked = request.asked(split)
    given = {**asked, "steps": STEPS, "pictures": pictures, "rows": SHEET_ROWS}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    evaluate("--model", str(model), *flags, "--no-without-binding", "--json", str(said), "--overwrite")
    found = json.loads(said.read_text())
    # By the name that it was scored under, which may be another's way to say the same path.
    name = found["settings"]["model"]
    result = {
        "asked": asked,
        "weights": found["weights"][name],
        "training": json.loads((place / "trained.json").read_text()),
        "figures": found["arms"][name]["figures"],
        "sets": [one["figures"][name] for one in found["sets"]],
        "swaps": [one[name] for one in found["swaps"]],
        "versions": found["versions"],
        "made_from": made,
    }
    (place / f"{split}.json").write_text(json.dumps(result, indent=1) + "\n")
    said.unlink()


# ---------------------------------------------------------------------------------------------------------------------
# The program


def main(request: Request) -> None:
    """Train what is not trained, score what is not scored, write the table."""
    request.check()
    made = made_from(request)
    for arm in request.arms or TABLES[request.table]:
        for seed in request.seeds:
            complete(request, made, arm, seed)
    if not request.score:
        return
    rows: Rows = {
        arm: {
            seed: {split: one for split in SPLITS if (one := kept(request, made, arm, seed, split)) is not None}
            for seed in request.seeds
        }
        for arm in TABLES[request.table]
    }
    check_bases(request, rows)
    text = table(TABLES[request.table], rows, SPLITS, request.count)
    (request.out / f"{request.table}.md").write_text(text)
    content = {"table": request.table, **dataclasses.asdict(request), "rows": summary(rows, SPLITS)}
    (request.out / f"{request.table}.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
    write_sheet(request)
    print(text)


def complete(request: Request, made: dict[str, Any], arm: str, seed: int) -> None:
    """Trains and scores an arm as far as its figures are not there."""
    left = [split for split in SPLITS if kept(request, made, arm, seed, split) is None]
    if not left:
        return
    place = request.place(arm, seed)
    scored = [split for split in SPLITS if (place / f"{split}.json").is_file()]
    if scored and not (place / "model").is_dir():
        raise ValueError(
            f"{place} holds figures of other sets ({' and '.join(scored)}) or not of all, and not the model: copy "
            "its model folder and trained.json there too, ask for the same --count and --guidance, or remove it"
        )
    config, base = arm_config(request, arm, seed), request.place("base", seed)
    claimed = request.out / "made-from.json"
    if claimed.is_file():
        check_same(json.loads(claimed.read_text()), made, request.out)
    elif made["data"] is not None and config.data is not None:
        # Before OUT is claimed for what could never be trained.
        check_sizes(read_index(config.data), config.data, config.model, request.config)
        request.out.mkdir(parents=True, exist_ok=True)
        claimed.write_text(json.dumps(made, indent=1) + "\n")
    if not is_trained(config, place):
        first = base_config(request, seed)
        if not is_trained(first, base):
            train_apart(first, base)
        train_apart(config, place, base / "model")
    for split in left if request.score else ():
        score(request, made, arm, seed, split)


def check_bases(request: Request, rows: Rows) -> None:
    """ValueError where arms of one seed began with different models."""
    for seed in request.seeds:
        here = request.place("base", seed) / "model"
        bases = {here.parent.name: folder.weights_digest(here)} if here.is_dir() else {}
        for arm, seeds in rows.items():
            bases |= {f"{arm}_{seed}/{split}": one["training"]["base"] for split, one in seeds[seed].items()}
        if len(set(bases.values())) > 1:
            said = ", ".join(f"{name} {digest[:8]}" for name, digest in bases.items())
            raise ValueError(f"arms of one seed begin with one base model; these are of different ones: {said}")


def write_sheet(request: Request) -> None:
    """The arms' first pictures of the same sets side by side, as far as they are there."""
    shown: dict[str, Path] = {}
    for arm, words in TABLES[request.table].items():
        folders = [request.place(arm, seed) / "pictures" / SPLITS[0] for seed in request.seeds]
        found = next((one for one in folders if one.is_dir()), None)
        if found is not None:
            shown[words] = found
    if not shown:
        return
    first, *others = map(str, shown.values())
    also: Sequence[str] = [flag for other in others for flag in ("--also", other)]
    count = str(min(SHEET_ROWS, request.count))
    sets = ("--split", SPLITS[0], "--count", count, "--rows", count, "--labels", *shown)
    evaluate("--predictions", first, *also, *sets, "--sheet", str(request.out / f"{request.table}.png"))


if __name__ == "__main__":
    run(main)
