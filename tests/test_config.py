"""Configs: the presets, and that what does not fit together says so."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from fcjax.config import ComposerConfig, DiffusionConfig
from fcjax.network_config import BinderConfig, TextConfig, UNetConfig, VAEConfig
from fcjax.presets import mini, sd15, tiny


@pytest.mark.parametrize("preset", [sd15, mini, tiny])
def test_presets_are_consistent_in_every_variant(preset: Callable[..., ComposerConfig]) -> None:
    for binding in ("none", "conv_in", "smallest", "all"):
        assert preset(binding).binder.variant == binding
    plain, tryon, posed = preset(), preset(condition="tryon"), preset(condition="posed_tryon")
    latent = plain.vae.latent_channels
    assert tryon.unet.in_channels == 2 * latent + 1
    assert posed.unet.in_channels == plain.unet.in_channels + tryon.unet.in_channels - latent
    told = [(config.takes_pose, config.tries_on) for config in (plain, tryon, posed)]
    assert told == [(True, False), (False, True), (True, True)]


def test_sd15_is_the_papers_setting() -> None:
    config = sd15()
    assert (config.height, config.width) == (512, 384)
    assert (config.latent_height, config.latent_width) == (64, 48)
    assert (config.unet.in_channels, config.reference_unet.in_channels) == (6, 4)
    assert sd15(condition="tryon").unet.in_channels == 9
    assert config.diffusion == DiffusionConfig(
        1000, 0.00085, 0.012, "scaled_linear", "epsilon", "leading", 1, False, False
    )


def test_the_mini_is_of_the_size_the_issue_asks() -> None:
    config = mini()
    assert (config.height, config.width) == (256, 192)
    assert config.unet.in_channels == config.vae.latent_channels + 2 * 2 * 2 + 6 * 6
    assert mini(vocab_size=900, max_assets=4).text_encoder.vocab_size == 900


def test_each_model_is_sampled_its_own_way() -> None:
    for config in (sd15(), sd15(condition="tryon"), sd15().sized((64, 64))):
        assert config.own_sampling == {"guidance": 7.5, "steps": 20}
    assert tiny().own_sampling == {"guidance": 1.5, "steps": 20}
    assert mini().own_sampling == mini().conditioned("tryon").own_sampling == {"guidance": 1.25, "steps": 4}


def test_bound_blocks_are_those_of_the_paper() -> None:
    unet = sd15().unet
    assert [name for name, _ in BinderConfig("smallest").blocks(unet)] == ["down_blocks_2", "up_blocks_1"]
    assert [name for name, _ in BinderConfig("all").blocks(unet)] == [
        *(f"down_blocks_{level}" for level in range(3)),
        "mid_block",
        *(f"up_blocks_{index}" for index in (1, 2, 3)),
    ]
    assert BinderConfig("conv_in").blocks(unet) == BinderConfig("none").blocks(unet) == ()


def test_attention_layers_are_counted_in_forward_order() -> None:
    assert sd15().unet.attention_levels == (0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0)
    assert mini().unet.attention_levels == (1, 2, 3, 3, 3, 3, 2, 2, 1, 1, 0, 0)


WRONG_PARTS: list[tuple[type, dict[str, Any], str]] = [
    (UNetConfig, {"block_out_channels": (320, 640)}, "down_block_types names 4 blocks but block_out_channels 2"),
    (UNetConfig, {"block_out_channels": (320, 640, 1280, 1270)}, "norm_num_groups=32"),
    (UNetConfig, {"attention_head_dim": (5, 10)}, "one number or 4"),
    (UNetConfig, {"attention_head_dim": 7}, "do not split into 7 heads"),
    (UNetConfig, {"down_block_types": ("DownBlock2D",) * 3 + ("AttnDownBlock2D",)}, "got 'AttnDownBlock2D'"),
    (UNetConfig, {"layers_per_block": 0}, "layers_per_block must be positive"),
    (VAEConfig, {"block_out_channels": ()}, "block_out_channels must be positive"),
    (VAEConfig, {"scaling_factor": 0.0}, "scaling_factor must be positive"),
    (VAEConfig, {"patch_size": 2}, "RGB with patch_size=2 makes 12"),
    (TextConfig, {"hidden_act": "relu"}, "hidden_act must be one of 'quick_gelu', 'gelu', got 'relu'"),
    (TextConfig, {"vocab_size": 100}, "no row of a vocabulary of 100"),
    (TextConfig, {"num_attention_heads": 7}, "multiple of num_attention_heads=7"),
    (BinderConfig, {"variant": "some"}, "variant must be one of"),
    (DiffusionConfig, {"prediction_type": "noise"}, "prediction_type must be one of"),
    (DiffusionConfig, {"beta_start": 0.02}, "beta_start <= beta_end"),
    (DiffusionConfig, {"rescale_betas_zero_snr": True}, "no signal at the last timestep"),
]


@pytest.mark.parametrize(("config_class", "values", "message"), WRONG_PARTS)
def test_a_wrong_part_is_refused(config_class: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class(**values)


def _wrong_wholes() -> list[tuple[dict[str, Any], str]]:
    config = tiny()
    return [
        ({"height": 36}, "height=36 and width=32 must be multiples of 8"),
        ({"pose_patch": 3}, "pose_patch=3 must divide the VAE's factor 4"),
        ({"pose_patch": 1}, "unet.in_channels=24, but 4 latent channels and 14 of condition 'pose'"),
        ({"condition": "depth"}, "condition must be one of"),
        ({"pose_octaves": 0}, r"unet.in_channels=24, but .* \(pose_patch=2, pose_octaves=0\) make 12"),
        ({"pose_octaves": -1}, "pose_octaves must not be negative, got -1"),
        ({"reference_octaves": 0}, "reference_octaves=0 make 4"),
        ({"max_assets": 0}, "max_assets must be positive"),
        ({"guidance": float("nan")}, r"guidance must be a finite number \(1 switches it off\), got nan"),
        ({"guidance": "7.5"}, "guidance must be a finite number .*, got '7.5'"),
        ({"unet": dataclasses.replace(config.unet, out_channels=3)}, "unet.out_channels=3"),
        ({"unet": dataclasses.replace(config.unet, ff_mult=3)}, "differ in ff_mult"),
        ({"text_encoder": dataclasses.replace(config.text_encoder, hidden_size=8)}, "must equal text_encoder"),
    ]


@pytest.mark.parametrize(("values", "message"), _wrong_wholes())
def test_parts_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny(), **values)
