"""Writes a checkpoint of a run as a model folder.

    python -m train.export RUN OUT
    python -m train.export RUN OUT --step 20000 --raw

Takes the newest checkpoint and its moving average, if the run keeps one, as training itself does at its end. The run's
data, VAE and tokenizer are looked for where the run found them; --data, --vae and --tokenizer name other places.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import tyro

from fcjax import trees
from fcjax.cli import run
from train.checkpoints import best_step, read_parts, steps_of
from train.documents import read_config
from train.run import start_of
from train.tasks import make_task


@dataclasses.dataclass(frozen=True)
class Export:
    """Which checkpoint of which run, and where its model goes."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder that was training's --out."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder for the model; must be new or empty."""
    step: int | None = None
    """The checkpoint's; the newest if left out."""
    best: bool = False
    """The checkpoint with the lowest held-out loss instead, of a run with --keep-best."""
    raw: bool = False
    """The parameters as they were trained last, without averaging."""
    data: Path | None = None
    """Where the run's data lies now, if not where it was; so for the next two."""
    vae: Path | None = None
    tokenizer: Path | None = None


def export(request: Export) -> None:
    """Writes the model folder. ValueError: no such checkpoint, a damaged one, or a folder that holds something."""
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise ValueError(f"{request.out} exists and is no empty folder: name another for the model")
    folder = request.run / "checkpoints"
    config = read_config(request.run)
    step = _chosen(request, folder)
    places = {name: getattr(request, name) for name in ("data", "vae", "tokenizer")}
    config = dataclasses.replace(config, **{name: place for name, place in places.items() if place is not None})
    task = make_task(config)
    state = jax.eval_shape(start_of(config), task.parameters)
    # The optimiser's numbers, most of a checkpoint, are not read.
    kind = "average" if state.average and not request.raw else "trained"
    read = read_parts(folder / str(step), {kind: getattr(state, kind), "frozen": state.frozen})
    task.export(trees.merge(read[kind], read["frozen"]), request.out)
    print(f"wrote {request.out}: {'averaged' if kind == 'average' else 'the last'} parameters of step {step}")


def _chosen(request: Export, folder: Path) -> int:
    steps = steps_of(folder)
    if not steps:
        raise ValueError(f"{request.run} has no checkpoints: train it first")
    if request.best:
        best = best_step(folder)
        if request.step is not None or best is None:
            raise ValueError("--best needs a run that was trained with --keep-best, and no --step beside it")
        return best
    step = steps[-1] if request.step is None else request.step
    if step not in steps:
        raise ValueError(f"{request.run} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return step


if __name__ == "__main__":
    run(export)
