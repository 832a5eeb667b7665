"""Single files of Stable Diffusion 1.x (`v1-5-pruned-emaonly.safetensors`): their names, and what their shapes tell.

The original code keeps all networks in one file under its own names (here: LDM names, after arXiv 2112.10752). A table
of names to those of diffusers is worked out from the keys that are there, and the configs from the tensors' shapes.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from fcjax.config import DiffusionConfig
from fcjax.network_config import (
    CROSS_ATTENTION_DOWN,
    CROSS_ATTENTION_UP,
    PLAIN_DOWN,
    PLAIN_UP,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from fcjax.part_config import naming
from fcjax.weights import Tensors

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
Shapes = Mapping[str, tuple[int, ...]]


class SingleFile(NamedTuple):
    """The networks of a single file under diffusers' names, with the configs that their shapes tell."""

    unet: Tensors
    vae: Tensors
    text_encoder: Tensors
    unet_config: UNetConfig
    vae_config: VAEConfig
    text_config: TextConfig
    diffusion: DiffusionConfig
    left: tuple[str, ...]
    """Keys of the file that belong to none of the networks."""


def open_single_file(path: Path) -> SingleFile:
    """Opens a file of SD 1.x or of its inpainting model; ValueError for another model, or a network that lacks."""
    if path.suffix in PICKLES:
        raise ValueError(f"{path} is a pickle, which can run code: save it as safetensors first")
    tensors = Tensors([path], path)
    present = tensors.shapes
    if any(key.startswith("conditioner.") for key in present):
        raise ValueError(f"{path} is a file of SDXL; one of Stable Diffusion 1.x is expected")
    if any(key.startswith("cond_stage_model.model.") for key in present):
        raise ValueError(f"{path} is a file of Stable Diffusion 2.x: give the folder in diffusers' layout instead")
    missing = [prefix for prefix in (UNET, VAE, TEXT) if not any(key.startswith(prefix) for key in present)]
    if missing:
        raise ValueError(
            f"{path} is no single file of Stable Diffusion 1.x: it holds no tensors under {', '.join(missing)}"
        )
    tables = (unet_names(present), vae_names(present), text_names(present))
    # The VAE's attention is kept as convolutions of 1x1 pixels, which are Linear layers in diffusers.
    flat = {new: present[old][:2] for new, old in tables[1].items() if "attentions" in new and len(present[old]) == 4}
    unet, vae, text = (tensors.select(table, flat if table is tables[1] else {}) for table in tables)
    _require(path, {UNET: (unet, unet_keys), VAE: (vae, vae_keys), TEXT: (text, text_keys)})
    with naming(str(path)):
        configs = unet_config(unet.shapes), vae_config(vae.shapes), text_config(text.shapes)
    used = {old for table in tables for old in table.values()}
    return SingleFile(unet, vae, text, *configs, DiffusionConfig(), tuple(sorted(present.keys() - used)))


# ---------------------------------------------------------------------------------------------------------------------
# Names: {diffusers' key: key in the file}


def unet_names(present: Shapes) -> dict[str, str]:
    """Of the UNet; keys that fit no pattern keep their names, so that they are reported as unused."""
    keys = [key.removeprefix(UNET) for key in present if key.startswith(UNET)]
    modules = _block_modules(keys)
    return {_unet_key(key, modules): UNET + key for key in keys}


def _block_modules(keys: list[str]) -> dict[str, str]:
    """{"input_blocks.4.1": "down_blocks.1.attentions.0", ...} for all numbered modules of the UNet's blocks."""
    parts: dict[tuple[str, int], dict[int, set[str]]] = {}
    for key in keys:
        found = re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.(\w+)", key)
        if found:
            side, block, module, name = found.groups()
            parts.setdefault((side, int(block)), {}).setdefault(int(module), set()).add(name)
    names = {"middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0"}
    names["middle_block.2"] = "mid_block.resnets.1"
    for side, sampler, ours in (("input", "downsamplers", "down_blocks"), ("output", "upsamplers", "up_blocks")):
        level = layer = 0
        for block in sorted(number for found, number in parts if found == side):
            if (side, block) == ("input", 0):
                continue
            sampled = False
            for module, inside in sorted(parts[side, block].items()):
                place = f"{side}_blocks.{block}.{module}"
                if inside & {"op", "conv"}:
                    names[place], sampled = f"{ours}.{level}.{sampler}.0", True
                elif "transformer_blocks" in inside:
                    names[place] = f"{ours}.{level}.attentions.{layer}"
                else:
                    names[place] = f"{ours}.{level}.resnets.{layer}"
            level, layer = (level + 1, 0) if sampled else (level, layer + 1)
    return names


def _unet_key(key: str, modules: Mapping[str, str]) -> str:
    stem, _, leaf = key.rpartition(".")
    if stem in _UNET_ENDS:
        return f"{_UNET_ENDS[stem]}.{leaf}"
    found = re.match(r"((?:input_blocks\.\d+|output_blocks\.\d+|middle_block)\.\d+)\.(.+)", key)
    if found is None or found[1] not in modules:
        return key
    module, inside = modules[found[1]], found[2]
    if "resnets" in module:
        part, _, leaf = inside.rpartition(".")
        inside = f"{_RESNET.get(part, part)}.{leaf}"
    elif "downsamplers" in module:
        inside = inside.replace("op.", "conv.", 1)
    return f"{module}.{inside}"


def vae_names(present: Shapes) -> dict[str, str]:
    """Of the VAE, whose file counts the decoder's blocks from the finest level."""
    keys = [key.removeprefix(VAE) for key in present if key.startswith(VAE)]
    levels = 1 + max((int(found[1]) for key in keys if (found := re.match(r"decoder\.up\.(\d+)\.", key))), default=0)

    def renamed(key: str) -> str:
        key = re.sub(r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets.", key)
        key = re.sub(r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", key)
        found = re.match(r"decoder\.up\.(\d+)\.(block|upsample)\.(.+)", key)
        if found:
            part = "resnets" if found[2] == "block" else "upsamplers.0"
            key = f"decoder.up_blocks.{levels - 1 - int(found[1])}.{part}.{found[3]}"
        key = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", key)
        found = re.match(r"(.+)\.mid\.attn_1\.(\w+)\.(\w+)$", key)
        if found:
            key = f"{found[1]}.mid_block.attentions.0.{_VAE_ATTENTION.get(found[2], found[2])}.{found[3]}"
        key = re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", key)
        return key.replace(".nin_shortcut.", ".conv_shortcut.")

    return {renamed(key): VAE + key for key in keys}


def text_names(present: Shapes) -> dict[str, str]:
    """Of the text encoder, which is transformers' own."""
    return {key.removeprefix(TEXT): key for key in present if key.startswith(TEXT)}


# ---------------------------------------------------------------------------------------------------------------------
# Configs from shapes under diffusers' names


_MID = "mid_block.attentions.0."
_TEXT_WIDTH = f"{_MID}transformer_blocks.0.attn2.to_k.weight"
_FEED_FORWARD = f"{_MID}transformer_blocks.0.ff.net.0.proj.weight"
_TOKENS = "text_model.embeddings.token_embedding.weight"
_POSITIONS = "text_model.embeddings.position_embedding.weight"
_MLP = "text_model.encoder.layers.0.mlp.fc1.weight"


def _require(path: Path, networks: Mapping[str, tuple[Tensors, Callable[[Shapes], list[str]]]]) -> None:
    """ValueError for all tensors at once that the configs are told by and that are not there."""
    lines = []
    for prefix, (tensors, keys) in networks.items():
        missing = [key for key in keys(tensors.shapes) if key not in tensors.shapes]
        if missing:
            lines.append(f"under {prefix} there are {len(tensors.shapes)} tensors, but not (in diffusers' names)")
            lines += [f"  {key}" for key in missing]
    if lines:
        listed = "".join(f"\n  {line}" for line in lines)
        raise ValueError(f"{path} lacks tensors by which the networks' configs are told:{listed}")


def unet_keys(shapes: Shapes) -> list[str]:
    """What `unet_config` looks at, of a file with these blocks."""
    levels = range(_levels(shapes, "down_blocks"))
    widths = [f"down_blocks.{level}.resnets.0.conv1.weight" for level in levels]
    return ["conv_in.weight", "conv_out.weight", *widths, f"{_MID}proj_in.weight", _TEXT_WIDTH, _FEED_FORWARD]


def vae_keys(shapes: Shapes) -> list[str]:
    """What `vae_config` looks at."""
    levels = range(_levels(shapes, "encoder.down_blocks"))
    return ["quant_conv.weight", *(f"encoder.down_blocks.{level}.resnets.0.conv1.weight" for level in levels)]


def text_keys(_: Shapes) -> list[str]:
    """What `text_config` looks at."""
    return [_TOKENS, _POSITIONS, _MLP]


def _levels(shapes: Shapes, blocks: str) -> int:
    return max(_count(shapes, rf"{re.escape(blocks)}\.(\d+)\."), 1)


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers the group of `pattern` takes in the keys."""
    return len({found[1] for key in shapes if (found := re.match(pattern, key))})


def unet_config(shapes: Shapes) -> UNetConfig:
    """The UNet's config. Heads leave no trace in shapes: SD 1.x has 8 everywhere."""
    levels = _levels(shapes, "down_blocks")
    widths = tuple(shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels))
    down = tuple(
        CROSS_ATTENTION_DOWN if f"down_blocks.{level}.attentions.0.norm.weight" in shapes else PLAIN_DOWN
        for level in range(levels)
    )
    return UNetConfig(
        in_channels=shapes["conv_in.weight"][1],
        out_channels=shapes["conv_out.weight"][0],
        down_block_types=down,
        up_block_types=tuple(CROSS_ATTENTION_UP if kind == CROSS_ATTENTION_DOWN else PLAIN_UP for kind in down[::-1]),
        block_out_channels=widths,
        layers_per_block=_count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        cross_attention_dim=shapes[_TEXT_WIDTH][1],
        use_linear_projection=len(shapes[f"{_MID}proj_in.weight"]) == 2,
        ff_mult=shapes[_FEED_FORWARD][0] // (2 * shapes[_FEED_FORWARD][1]),
    )


def vae_config(shapes: Shapes) -> VAEConfig:
    """The VAE's config."""
    levels = _levels(shapes, "encoder.down_blocks")
    return VAEConfig(
        latent_channels=shapes["quant_conv.weight"][0] // 2,
        block_out_channels=tuple(
            shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)
        ),
        layers_per_block=_count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
    )


def text_config(shapes: Shapes) -> TextConfig:
    """The text encoder's config; CLIP's heads have 64 channels each."""
    vocabulary, width = shapes[_TOKENS]
    return TextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes[_MLP][0],
        num_hidden_layers=_count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        num_attention_heads=max(width // 64, 1),
        max_position_embeddings=shapes[_POSITIONS][0],
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
