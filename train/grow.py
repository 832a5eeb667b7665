"""A deeper model that computes what a trained one does: `python -m train.grow SRC OUT --layers 2 2 1 1 --attend 0`.

New layers of both UNets' blocks begin as nothing added: the last products of a resnet and of an attention are zero, and
where a skip is joined its part of the shortcut is zero (Net2DeeperNet, arXiv 1511.05641). Attentions otherwise begin
with their neighbour's weights, or at random where the block had none. A run goes on from OUT with `--start OUT`.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

from fcjax import folder, trees
from fcjax.cli import run
from fcjax.config import ComposerConfig
from fcjax.models.parameters import init_parameters
from fcjax.network_config import CROSS_ATTENTION_UP, UNetConfig

Tree = dict[str, Any]
_LAYER = re.compile(r"(down|up)_blocks_(\d+)/(resnets|attentions)_(\d+)/(.*)")


@dataclass(frozen=True)
class Flags:
    """What grows, and how deep."""

    src: Annotated[Path, tyro.conf.Positional]
    """A model folder of ours."""
    out: Annotated[Path, tyro.conf.Positional]
    layers: tuple[int, ...] = ()
    """Per level of both UNets, the finest first: how many layers a down block has; an up block has one more."""
    attend: tuple[int, ...] = ()
    """Levels whose up blocks get attention, 0 the finest."""
    seed: int = 0


def grown(
    params: Tree, config: ComposerConfig, layers: tuple[int, ...] = (), attend: tuple[int, ...] = (), seed: int = 0
) -> tuple[ComposerConfig, Tree]:
    """The configuration with so many layers per level, and parameters with which it computes what it did.

    layers: () keeps their number. attend: the levels whose up blocks get attention. ValueError where a level would
    lose layers or is none.
    """
    if config.reference_unet is None:
        raise ValueError(f"only models with a reference UNet can grow; this one has a {config.appearance}")
    changed, parts = {}, {}
    for part in ("unet", "reference_unet"):
        unet: UNetConfig = getattr(config, part)
        if layers and (
            len(layers) != unet.levels or any(layers[level] < unet.layers(level) for level in range(unet.levels))
        ):
            had = " ".join(str(unet.layers(level)) for level in range(unet.levels))
            raise ValueError(
                f"layers can only be added: {part} has {had} of them (the finest level first), got {layers}"
            )
        if not set(attend) <= set(range(unet.levels)):
            raise ValueError(f"{part} has levels 0 to {unet.levels - 1}; attention was asked for at {attend}")
        kinds = [
            CROSS_ATTENTION_UP if unet.levels - 1 - block in attend else kind
            for block, kind in enumerate(unet.up_block_types)
        ]
        changed[part] = dataclasses.replace(
            unet, layers_per_block=layers or unet.layers_per_block, up_block_types=tuple(kinds)
        )
    config, before = dataclasses.replace(config, **changed), config
    fresh = init_parameters(config, jax.random.key(seed))
    for part in changed:
        parts[part] = _grown_unet(params[part], fresh[part], getattr(before, part), getattr(config, part))
    # The phrases' part in a new block is fresh: it begins at nothing.
    binder = {**fresh.get("binder", {}), **params.get("binder", {})}
    return config, {**params, **parts, "binder": binder}


def _grown_unet(params: Tree, fresh: Tree, before: UNetConfig, after: UNetConfig) -> Tree:
    """`params` at their new places, and `fresh` layers between them that add nothing."""
    old = trees.flatten(params)
    placed = {_moved(path, before, after): leaf for path, leaf in old.items()}

    def begin(path: str, leaf: jax.Array) -> jax.Array:
        if path in placed:
            return placed[path]
        place = _LAYER.fullmatch(path)
        # Only layers are new.
        assert place is not None, path
        side, block, kind, _, name = place.groups()
        if name.startswith(("conv2/", "proj_out/")):
            return jnp.zeros_like(leaf)
        if name.startswith("conv_shortcut/"):
            # Keep the grid, leave the skip behind it out.
            return jnp.eye(*leaf.shape[-2:], dtype=leaf.dtype)[None, None] if leaf.ndim == 4 else jnp.zeros_like(leaf)
        neighbour = f"{side}_blocks_{block}/{kind}_{_neighbour(side, int(block), before)}/{name}"
        return old.get(neighbour, leaf) if kind == "attentions" else leaf

    return trees.map_paths(begin, fresh)


def _added(side: str, block: int, before: UNetConfig, after: UNetConfig) -> int:
    level = block if side == "down" else before.levels - 1 - block
    return after.layers(level) - before.layers(level)


def _moved(path: str, before: UNetConfig, after: UNetConfig) -> str:
    """Where a layer goes: new ones stand at a down block's end, whose skips an up block's take behind its first."""
    place = _LAYER.fullmatch(path)
    if place is None or place[1] == "down" or place[4] == "0":
        return path
    index = int(place[4]) + _added("up", int(place[2]), before, after)
    return f"up_blocks_{place[2]}/{place[3]}_{index}/{place[5]}"


def _neighbour(side: str, block: int, before: UNetConfig) -> int:
    return before.layers(block) - 1 if side == "down" else 0


def main(flags: Flags) -> None:
    config, params = folder.load(flags.src, dtype=jnp.float32)
    count = trees.count(params)
    config, params = grown(params, config, flags.layers, flags.attend, flags.seed)
    folder.save(flags.out, params, config, dtype=jnp.float32)
    folder.copy_tokenizer(flags.src, flags.out)
    print(f"{flags.out}: {trees.count(params):,} parameters, of {count:,}")


if __name__ == "__main__":
    run(main)
