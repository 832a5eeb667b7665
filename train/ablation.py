"""The paper's ablations on Wardrobe: every arm trained alike, scored on the same sets, one table.

    python -m train.ablation table4 --config mini_ablation --data data/latents_ablation --seeds 0 1 --out runs/ablation
    python -m train.ablation table3 --config mini_ablation --data data/latents_ablation --seeds 0 1 --out runs/ablation

Table 4 compares variants of binding, Table 3 encoders of the assets; both may share OUT, as the reference UNet of one
is the model without binding of the other. First one model is trained without assets, from text and pose, which stands
for Stable Diffusion; every arm begins with copies of its denoiser, as the paper's does, and has the same data, batches
and steps. OUT holds a folder for each arm and seed, and the table as Markdown, JSON and a sheet of pictures. A run that
was stopped goes on where it was, within an arm too.
"""

import dataclasses
import json
import multiprocessing
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro

from configs import load_config
from fcjax import folder
from fcjax.cli import run
from train.arms import ARMS, TABLES, arm_start
from train.config import TrainConfig

FIGURES = (
    "binding_accuracy",
    "told_binding_accuracy",
    "palette_distance",
    "texture_correlation",
    "silhouette_iou",
    "swap_test",
)
"""Of `fcjax.metrics.FIGURES` those that a table shows, by name."""
SPLITS = ("alike", "heldout")
SHEET_ROWS = 8


@dataclass(frozen=True)
class Request:
    """Which table, of what, and where."""

    table: Annotated[Literal["table3", "table4"], tyro.conf.Positional]
    out: Path
    config: str = "mini_ablation"
    """The configuration of the arm with a reference UNet and binding in all blocks; others follow from it."""
    data: Path | None = None
    """The prepared set, if not the configuration's."""
    vae: Path | None = None
    """The folder of the VAE that encoded it, if not the configuration's."""
    seeds: tuple[int, ...] = (0, 1)
    steps: int | None = None
    """Of every arm, if not the configuration's."""
    base_steps: int | None = None
    """Of the model without assets; by default as many."""
    count: int = 100
    """Sets of each kind to score."""
    guidance: float = 1.5

    @property
    def changes(self) -> dict[str, Any]:
        """What it says of training otherwise than the configuration."""
        said = {name: getattr(self, name) for name in ("data", "vae", "steps")}
        return {name: value for name, value in said.items() if value is not None}

    def check(self) -> None:
        """ValueError for what cannot be asked."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers, one at least, got {list(self.seeds)}")
        for name in ("count", "steps", "base_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


# ---------------------------------------------------------------------------------------------------------------------
# Training


def base_config(request: Request) -> TrainConfig:
    """The model without assets: that without binding, whose denoiser never sees them."""
    given = load_config(request.config)
    if given.task != "compose" or given.model.reference_unet is None:
        raise ValueError(f"{request.config} trains no composing model with a reference UNet, of which arms are made")
    loss = dataclasses.replace(given.loss, drop_both=0.1, drop_text=0.0, drop_reference=0.9, matching=0.0)
    changes = {**request.changes, **({"steps": request.base_steps} if request.base_steps else {})}
    model = ARMS["none"](given.model)
    return dataclasses.replace(given, name=f"{given.name}_base", model=model, loss=loss, start=None, **changes)


def arm_config(request: Request, arm: str, seed: int, start: Path) -> TrainConfig:
    """An arm's training, which differs from the others' in the model alone."""
    given = load_config(request.config)
    name, model = f"{given.name}_{arm}", ARMS[arm](given.model)
    return dataclasses.replace(given, name=name, model=model, seed=seed, start=start, **request.changes)


def write_start(base: Path, config: TrainConfig, out: Path) -> None:
    """An arm's first model folder, made of the base model's."""
    trained, params = folder.load(base, dtype=jnp.float32)
    model = dataclasses.replace(config.model, vae=trained.vae)
    aside = out.with_name(f"{out.name}.part")
    folder.save(aside, arm_start(params, model, config.seed), model)
    shutil.copytree(base / "tokenizer", aside / "tokenizer", dirs_exist_ok=True)
    aside.rename(out)


def _trained(config: TrainConfig, out: Path) -> Path:
    """The model folder of a run, which begins or goes on if it is not there; in a process of its own, which gives its
    memory back.
    """
    model = out / "model"
    if (out / "done").is_file():
        return model
    print(f"training {out}", flush=True)
    worker = multiprocessing.get_context("spawn").Process(target=_train, args=(config, out))
    worker.start()
    worker.join()
    if worker.exitcode:
        raise ValueError(f"training {out} ended with {worker.exitcode}; what it said stands above. Run this to go on")
    (out / "done").touch()
    return model


def _train(config: TrainConfig, out: Path) -> None:
    from fcjax.cli import exit_codes
    from train.run import train

    with exit_codes():
        if not train(config, out):
            sys.exit("stopped by SIGTERM")


# ---------------------------------------------------------------------------------------------------------------------
# Scoring


def score(model: Path, out: Path, request: Request, split: str) -> dict[str, Any]:
    """What `infer.evaluate` says of a model on one kind of sets: {figure: {"mean": ..., ...}}; kept in `out`."""
    settings = ("--split", split, "--count", str(request.count), "--guidance", str(request.guidance))
    if not out.is_file() or json.loads(out.read_text())["asked"] != list(settings):
        said = out.with_suffix(".part")
        evaluate("--model", str(model), *settings, "--json", str(said))
        out.write_text(json.dumps({"asked": settings, **json.loads(said.read_text())}, indent=1) + "\n")
        said.unlink()
    return json.loads(out.read_text())["arms"][str(model)]["figures"]


def evaluate(*flags: str) -> None:
    """Runs `python -m infer.evaluate`; ValueError where it fails."""
    done = subprocess.run([sys.executable, "-m", "infer.evaluate", *flags], check=False)
    if done.returncode:
        raise ValueError(f"infer.evaluate ended with {done.returncode}; what it said stands above")


def main(request: Request) -> None:
    """Train what is not trained, score what is not scored, write the table."""
    request.check()
    request.out.mkdir(parents=True, exist_ok=True)
    base = _trained(base_config(request), request.out / "base")
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for arm in TABLES[request.table]:
        rows[arm] = {split: [] for split in SPLITS}
        for seed in request.seeds:
            place = request.out / f"{arm}_{seed}"
            start = request.out / f"{arm}_{seed}_start"
            config = arm_config(request, arm, seed, start)
            if not start.is_dir():
                write_start(base, config, start)
            model = _trained(config, place)
            for split in SPLITS:
                rows[arm][split].append(score(model, place / f"{split}.json", request, split))
    text = table(request, rows)
    (request.out / f"{request.table}.md").write_text(text)
    content = {"table": request.table, "seeds": request.seeds, "count": request.count, "rows": rows}
    (request.out / f"{request.table}.json").write_text(json.dumps(content, indent=1) + "\n")
    models = [str(request.out / f"{arm}_{request.seeds[0]}" / "model") for arm in TABLES[request.table]]
    others = [flag for model in models[1:] for flag in ("--also", model)]
    sheet = str(request.out / f"{request.table}.png")
    count = str(min(SHEET_ROWS, request.count))
    evaluate("--model", models[0], *others, "--split", SPLITS[0], "--count", count, "--rows", count, "--sheet", sheet)
    print(text)


# ---------------------------------------------------------------------------------------------------------------------
# The table


def table(request: Request, rows: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Markdown: a line an arm, means over seeds with the lowest and the highest seed's, for each kind of sets."""
    from fcjax.metrics import FIGURES as WORDS

    parts = []
    for split in SPLITS:
        names = [name for name in FIGURES if any(name in one for arm in rows.values() for one in arm[split])]
        head = ["", *(WORDS[name] for name in names)]
        lines = [head, ["---"] * len(head)]
        for arm, words in TABLES[request.table].items():
            values = [[one[name]["mean"] for one in rows[arm][split] if name in one] for name in names]
            lines.append([words, *map(cell, values)])
        parts.append(f"Sets: {split}.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    note = f"Means over {len(request.seeds)} seeds (lowest to highest), {request.count} sets of each kind."
    return "\n\n".join([*parts, note]) + "\n"


def cell(values: list[float]) -> str:
    """ ".83 (.81 to .85)"."""
    if not values:
        return "-"
    digits = 1 if np.mean(values) >= 2 else 3
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    run(main)
