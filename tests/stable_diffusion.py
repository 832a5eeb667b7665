"""Stable Diffusion's folders and names, of small networks with random weights."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

from fcjax import folder
from fcjax.network_config import UNetConfig
from fcjax.presets import tiny
from fcjax.tokenizer import Tokenizer
from tests import oracles
from tests.conftest import TOKENIZER

LATENT = 4


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
