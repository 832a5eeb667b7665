"""The mean of models trained from one: `python -m train.average SRC SRC2 SRC3 --out OUT`.

Runs that went on from the same weights with other draws err each in its own way; the mean of their weights may err less
(model soups, arXiv 2203.05482), and costs no more to sample. The model that they went on from may be among them.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import tyro

from fcjax import folder, trees
from fcjax.cli import run
from train.documents import differing


@dataclass(frozen=True)
class Flags:
    """What is averaged, and where it goes."""

    src: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Model folders of ours, alike in all but guidance and steps, which are the first one's."""
    out: Path
    """A folder that is not there yet."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """What the mean is stored in."""


def average(sources: tuple[Path, ...], out: Path, dtype: str) -> int:
    """Writes the mean, summed in float32, beside the first one's tokenizer; the number of parameters.

    ValueError for fewer than two models, models that are not alike, and a folder that is there already.
    """
    if len(sources) < 2:
        raise ValueError(f"a mean needs two model folders or more, got {len(sources)}")
    if out.exists():
        raise ValueError(f"{out} is there already: remove it, or name another --out")
    config, total = folder.load(sources[0], dtype=jnp.float32)
    words = _vocabulary(sources[0])
    for source in sources[1:]:
        other, params = folder.load(source, dtype=jnp.float32)
        # How they are best sampled may differ; the first one's way stays.
        differ = differing(dataclasses.asdict(config), dataclasses.asdict(other), ("guidance", "steps"))
        if differ:
            raise ValueError(f"{source} is no model like {sources[0]}: {', '.join(differ)}")
        if _vocabulary(source) != words:
            raise ValueError(f"{source} has another tokenizer than {sources[0]}: its words have other numbers")
        total = jax.tree.map(jnp.add, total, params)
    mean = jax.tree.map(lambda leaf: leaf / len(sources), total)
    folder.save(out, mean, config, dtype=jnp.dtype(dtype))
    folder.copy_tokenizer(sources[0], out)
    return trees.count(mean)


def _vocabulary(source: Path) -> bytes:
    return (folder.part_folder(source, "tokenizer") / "vocab.json").read_bytes()


def main(flags: Flags) -> None:
    """Write the mean."""
    count = average(flags.src, flags.out, flags.dtype)
    print(f"{flags.out}: the mean of {len(flags.src)} models, {count:,} parameters")


if __name__ == "__main__":
    run(main)
