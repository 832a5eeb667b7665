"""Stable Diffusion's folders and names, of small networks with random weights."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from fcjax import convert, folder, single_file
from fcjax.cli import run
from fcjax.network_config import TextConfig, UNetConfig, VAEConfig
from fcjax.presets import sd15, tiny
from fcjax.tokenizer import Tokenizer
from infer import convert as convert_program
from tests import oracles
from tests.conftest import TOKENIZER

LATENT = 4
# Of a single file.
UNET_CONFIG = UNetConfig(
    block_out_channels=(32, 64, 64),
    down_block_types=sd15().unet.down_block_types[1:],
    up_block_types=sd15().unet.up_block_types[:3],
    cross_attention_dim=64,
    layers_per_block=1,
)
VAE_CONFIG = VAEConfig(block_out_channels=(32, 64), layers_per_block=1)


def sd_parts(in_channels: int = LATENT) -> dict[str, Any]:
    """Configs of small networks that only say what Stable Diffusion's files say."""
    small = tiny()
    vocabulary = Tokenizer.load(TOKENIZER).vocab_size
    marks = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    return {
        "unet": dataclasses.replace(small.unet, ff_mult=4, in_channels=in_channels),
        "vae": small.vae,
        "text_encoder": dataclasses.replace(small.text_encoder, vocab_size=vocabulary, **marks),
    }


def save_stable_diffusion(path: Path, kind: str, in_channels: int) -> dict[str, Any]:
    """A folder as diffusers writes it, of random weights, which are returned."""
    parts = sd_parts(in_channels)
    params = {name: oracles.random_part(part) for name, part in parts.items()}
    for name, part in parts.items():
        folder.save_part(path, name, params[name], part)
    scheduler = {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    shutil.copytree(TOKENIZER, path / "tokenizer")
    index = {"_class_name": kind, "safety_checker": [None, None], **{name: folder.INDEX[name] for name in parts}}
    (path / "model_index.json").write_text(json.dumps(index))
    return params


def ldm_unet_key(key: str, config: UNetConfig) -> str:
    """A key of diffusers under the name that the original code's loops give it."""
    layers, parts = config.layers_per_block, key.split(".")
    ends = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    stem, leaf = key.rsplit(".", 1)
    if stem in ends:
        return f"{ends[stem]}.{leaf}"
    if parts[0] == "mid_block":
        place, inside = {"attentions.0": 1, "resnets.0": 0, "resnets.1": 2}[".".join(parts[1:3])], parts[3:]
        prefix, kind = f"middle_block.{place}", parts[1]
    else:
        level, kind, layer, inside = int(parts[1]), parts[2], int(parts[3]), parts[4:]
        side = "input" if parts[0] == "down_blocks" else "output"
        block = 1 + level * (layers + 1) + layer if side == "input" else level * (layers + 1) + layer
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{parts[-1]}"
        if kind == "upsamplers":
            attention = config.up_block_types[level].startswith("CrossAttn")
            return f"output_blocks.{level * (layers + 1) + layers}.{2 if attention else 1}.conv.{parts[-1]}"
        prefix = f"{side}_blocks.{block}.{int(kind == 'attentions')}"
    if kind == "resnets":
        ours = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
        ours |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
        inside = [ours[inside[0]], *inside[1:]]
    return ".".join([prefix, *inside])


def ldm_vae_key(key: str, levels: int) -> str:
    for ours, theirs in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("down_blocks", "down"),
        ("resnets", "block"),
    ):
        key = key.replace(ours, theirs)
    return re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", key)


def text_config() -> TextConfig:
    return dataclasses.replace(sd_parts()["text_encoder"], hidden_size=64, intermediate_size=96, num_attention_heads=1)


def save_single_file(path: Path) -> dict[str, Any]:
    """Writes a single file of small networks, with a tokenizer beside it; returns their parameters."""
    params = {
        "unet": oracles.random_part(UNET_CONFIG),
        "vae": oracles.random_part(VAE_CONFIG),
        "text_encoder": oracles.random_part(text_config()),
    }
    stored = {"model_ema.decay": np.ones((), np.float32), "alphas_cumprod": np.ones(1000, np.float32)}
    for key, tensor in convert.state_dict(params["unet"]).items():
        stored[single_file.UNET + ldm_unet_key(key, UNET_CONFIG)] = tensor
    for key, tensor in convert.state_dict(params["vae"]).items():
        name = ldm_vae_key(key, len(VAE_CONFIG.block_out_channels))
        stored[single_file.VAE + name] = tensor[..., None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
    for key, tensor in convert.state_dict(params["text_encoder"]).items():
        stored[single_file.TEXT + "text_model." + key] = tensor
    stored[single_file.TEXT + "text_model.embeddings.position_ids"] = np.arange(77)[None]
    save_file({key: np.ascontiguousarray(tensor) for key, tensor in stored.items()}, path)
    shutil.copytree(TOKENIZER, path.parent / "tokenizer")
    return params


def mixed(path: Path, source: Path) -> Path:
    """A copy of a folder whose UNet is of half precision and whose VAE has a bfloat16 tensor."""
    shutil.copytree(source, path)
    unet, vae = (path / name / "diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))
    save_file({key: tensor.astype(np.float16) for key, tensor in load_file(unet).items()}, unet)
    tensors = load_file(vae)
    save_file({**tensors, "decoder.conv_out.bias": tensors["decoder.conv_out.bias"].astype(jnp.bfloat16)}, vae)
    return path


def dtypes_of(tree: Any) -> set[str]:
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


def convert_model(*words: object) -> None:
    """Runs `python -m infer.convert`."""
    run(convert_program.main, [str(word) for word in words])
