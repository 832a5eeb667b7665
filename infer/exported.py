"""Runs a sampling function that `python -m infer.export` wrote. Needs jax, flatbuffers, numpy, safetensors and pillow.

    python run.py --out picture.png --seed 3

`load` gives the function: `sample = load(folder)`, then `sample(inputs, table, guidance, seeds)` is uint8 pictures
(n, H, W, 3). `example(folder)` are arguments of a request; `fcjax.preparation.prepare` makes those of others,
`fcjax.samplers.sampler_table` other samplers and numbers of steps, `fcjax.sampling.make_guidance` other scales.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from safetensors.numpy import load_file

ARGUMENTS = ("inputs", "table", "guidance", "seeds")


def load(folder: Path) -> Callable[..., jax.Array]:
    """The exported function with its weights."""
    exported = jax.export.deserialize(bytearray((folder / "sampling.jaxexport").read_bytes()))
    weights = jax.device_put(_nested(load_file(folder / "weights.safetensors")))
    call = jax.jit(exported.call)
    return lambda *arguments: call(weights, *arguments)


def example(folder: Path) -> dict[str, Any]:
    """Arguments of one picture: inputs, table, guidance, seeds."""
    return _nested(dict(np.load(folder / "example.npz")))


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
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("picture.png"))
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    here = Path(__file__).parent
    arguments = example(here)
    arguments["seeds"] = arguments["seeds"] + np.uint32(flags.seed)
    [picture, *_] = load(here)(*(arguments[name] for name in ARGUMENTS))
    Image.fromarray(np.asarray(picture)).save(flags.out)
    print(flags.out)
