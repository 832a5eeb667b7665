"""Runs a sampling function that `python -m infer.export` wrote. Needs jax, flatbuffers, numpy, safetensors and pillow.

    python run.py --out picture.png --seed 3

`load` gives the function: `sample = load(folder)`, then `sample(inputs, table, guidance, seeds)` is uint8 pictures
(n, H, W, 3), or a ValueError where the model draws none. `example(folder)` are arguments of a request;
`fcjax.preparation.prepare` makes those of others, `fcjax.samplers.sampler_table` other samplers and numbers of steps,
`fcjax.sampling.make_guidance` other scales.
"""

import argparse
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

ARGUMENTS = ("inputs", "table", "guidance", "seeds")
NO_NUMBERS = (
    "the model drew NaN or infinite numbers, no pictures: its weights hold some, or the type that it computes "
    "in is too small for them (float32 instead of bfloat16 or float16 may help)"
)


def load(folder: Path) -> Callable[..., jax.Array]:
    """The exported function with its weights. ValueError for files that are not whole; of the function where it draws
    no numbers.
    """
    exported = _read(folder / "sampling.jaxexport", lambda file: jax.export.deserialize(bytearray(file.read_bytes())))
    weights = jax.device_put(_nested(_read(folder / "weights.safetensors", load_file)))
    call = jax.jit(exported.call)

    def sample(*arguments: Any) -> jax.Array:
        pictures, finite = call(weights, *arguments)
        if not np.all(finite):
            raise ValueError(NO_NUMBERS)
        return pictures

    return sample


def example(folder: Path) -> dict[str, Any]:
    """Arguments of one picture: inputs, table, guidance, seeds."""
    return _nested(_read(folder / "example.npz", lambda file: dict(np.load(io.BytesIO(file.read_bytes())))))


def check(out: Path, seed: int, pictures: int = 1) -> None:
    """ValueError before any sampling for a seed that is none, or a picture that cannot be written."""
    if not 0 <= seed <= 2**32 - pictures:
        raise ValueError(f"the seed must lie between 0 and {2**32 - pictures}, got {seed}")
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{out} must end in a picture's suffix, such as .png")
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"{out} cannot be written: name a file in a folder that is there")


def _read(file: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(file)
    except Exception as error:  # each of the formats has its own
        raise ValueError(f"cannot read {file} (cut short, or not there?): {error}") from error


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[name] = leaf
    return tree


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("picture.png"), help="several become picture_0.png ...")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    here = Path(__file__).parent
    try:
        check(flags.out, flags.seed)
        arguments, sample = example(here), load(here)
        check(flags.out, flags.seed, len(arguments["seeds"]))
        arguments["seeds"] = arguments["seeds"] + np.uint32(flags.seed)
        pictures = np.asarray(sample(*(arguments[name] for name in ARGUMENTS)))
    except ValueError as error:
        parser.error(str(error))
    for number, picture in enumerate(pictures):
        file = flags.out if len(pictures) == 1 else flags.out.with_stem(f"{flags.out.stem}_{number}")
        Image.fromarray(picture).save(file)
        print(file)
