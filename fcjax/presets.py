"""Whole configurations: the paper's, that of the model in the package, and a tiny one for tests."""

import dataclasses

from fcjax.config import APPEARANCES, ComposerConfig, Condition, DiffusionConfig, condition_channels, wave_channels
from fcjax.network_config import (
    CROSS_ATTENTION_DOWN,
    CROSS_ATTENTION_UP,
    PLAIN_DOWN,
    BinderConfig,
    BindingVariant,
    ControlNetConfig,
    ImageEncoderConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)

STABLE_DIFFUSION_SAMPLING = {"guidance": 7.5, "steps": 20}
"""diffusers' own guidance for Stable Diffusion, without which its pictures are pale and vague, and enough steps."""


def _composer(
    unet: UNetConfig,
    vae: VAEConfig,
    *,
    condition: Condition,
    pose_patch: int = 1,
    pose_octaves: int = 0,
    reference_octaves: int = 0,
    **others,
) -> ComposerConfig:
    """Give both UNets the input channels that the conditions ask for."""
    latent = vae.latent_channels
    joined = latent + condition_channels(condition, latent, pose_patch, pose_octaves)
    reference = latent + wave_channels(2, reference_octaves)
    return ComposerConfig(
        unet=dataclasses.replace(unet, in_channels=joined, out_channels=latent),
        reference_unet=dataclasses.replace(unet, in_channels=reference, out_channels=latent),
        vae=vae,
        condition=condition,
        pose_patch=pose_patch,
        pose_octaves=pose_octaves,
        reference_octaves=reference_octaves,
        **others,
    )


def sd15(binding: BindingVariant = "all", condition: Condition = "pose") -> ComposerConfig:
    """The paper's model: two SD v1.5 UNets at 512x384; a 2-channel pose map, 5 try-on channels or both."""
    return _composer(
        UNetConfig(),
        VAEConfig(),
        condition=condition,
        text_encoder=TextConfig(),
        binder=BinderConfig(variant=binding),
        diffusion=DiffusionConfig(),
        **STABLE_DIFFUSION_SAMPLING,
    )


def encoding_assets(
    config: ComposerConfig, appearance: str, encoder: ImageEncoderConfig | None = None
) -> ComposerConfig:
    """A model with a reference UNet as the like one whose assets another network encodes (the paper's Table 3).

    A ControlNet is that of the denoiser; an image encoder (by default DINOv2's base, which reads pixels) makes the
    denoiser's cross-attention as wide as its tokens. ValueError for a name that is none of APPEARANCES.
    """
    if appearance == "reference_unet":
        return config
    assert config.reference_unet is not None
    others = {"reference_unet": None, "binder": dataclasses.replace(config.binder, variant="none")}
    channels = config.reference_unet.in_channels
    if appearance == "controlnet":
        return dataclasses.replace(config, controlnet=ControlNetConfig.of(config.unet, channels), **others)
    if appearance != "image_encoder":
        raise ValueError(f"assets are encoded by one of {', '.join(APPEARANCES)}, got {appearance!r}")
    encoder = encoder or ImageEncoderConfig()
    unet = dataclasses.replace(config.unet, cross_attention_dim=encoder.hidden_size)
    octaves = 0 if encoder.num_channels == 3 else config.reference_octaves
    return dataclasses.replace(config, unet=unet, image_encoder=encoder, reference_octaves=octaves, **others)


def mini_encoder(config: ComposerConfig) -> ImageEncoderConfig:
    """An image encoder of about the size of a small reference UNet, which reads what that one reads."""
    assert config.reference_unet is not None
    patch, width = max(config.latent_height // 16, 1), 2 * config.unet.block_out_channels[-1]
    return ImageEncoderConfig(
        hidden_size=width,
        num_hidden_layers=6,
        num_attention_heads=max(width // 64, 1),
        image_size=16 * patch,
        patch_size=patch,
        num_channels=config.reference_unet.in_channels,
    )


def mini(
    binding: BindingVariant = "all", condition: Condition = "pose", vocab_size: int = 1536, max_assets: int = 6
) -> ComposerConfig:
    """The model that the package is to hold: 256x192, at most 13 M parameters (26 MB in bfloat16).

    Attention at every level, at the finest of 4x4 pixels a token on the way up alone; 2x2 UV points per token,
    because arms and legs are a token wide; places on a resting body and on each asset as sines and cosines, because so
    small a UNet does not learn within hours which place of a garment covers which of the body.
    """
    return _composer(
        UNetConfig(
            sample_size=64,
            down_block_types=(PLAIN_DOWN,) + (CROSS_ATTENTION_DOWN,) * 3,
            up_block_types=(CROSS_ATTENTION_UP,) * 4,
            block_out_channels=(32, 64, 96, 128),
            layers_per_block=1,
            cross_attention_dim=128,
            attention_head_dim=(1, 2, 3, 4),
            use_linear_projection=True,
            norm_num_groups=16,
            ff_mult=2,
        ),
        # Choice: principal components of 4x4 pixels as latents (28.6 dB by themselves) and a decoder network on top, to
        # be trained before or after the UNets. 16 components of 8x8 pixels compress as much, but neighbours among them
        # have little in common, and a small UNet learnt their noise rather than their pictures.
        # 2x2 pixels leave the decoder as channels; the full resolution's own level would take most of its time.
        VAEConfig(
            in_channels=12,
            out_channels=12,
            patch_size=2,
            latent_channels=6,
            block_out_channels=(48, 96),
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=256,
            scaling_factor=1.0,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            linear_encoder=True,
        ),
        condition=condition,
        pose_patch=2,
        pose_octaves=6,
        reference_octaves=5,
        text_encoder=TextConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
        ),
        binder=BinderConfig(variant=binding, hidden_size=128),
        # Choice: a model trained from nothing predicts the clean latents (arXiv 2511.13720). Narrow layers suffice for
        # them; noise, and v, which is noise where there is little of it, has to pass through them whole. No signal is
        # left at the last timestep, so that plain backgrounds come out in their colour. Sampling stays where there is
        # much noise: what is decided below that is little, and wants training with rollouts.
        diffusion=DiffusionConfig(
            prediction_type="sample",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
            timestep_shift=8.0,
        ),
        height=256,
        width=192,
        max_assets=max_assets,
        guidance=1.25,
        steps=4,
    )


def tiny(binding: BindingVariant = "all", condition: Condition = "pose") -> ComposerConfig:
    """A composer of a few ten thousand parameters for tests: 32x32 pixels, VAE factor 4, two levels."""
    return _composer(
        UNetConfig(
            sample_size=8,
            down_block_types=(CROSS_ATTENTION_DOWN,) * 2,
            up_block_types=(CROSS_ATTENTION_UP,) * 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
            ff_mult=2,
        ),
        VAEConfig(
            latent_channels=4,
            block_out_channels=(4, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=32,
            scaling_factor=1.0,
        ),
        condition=condition,
        pose_patch=2,
        pose_octaves=2,
        reference_octaves=2,
        text_encoder=TextConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=62,
            eos_token_id=63,
            pad_token_id=63,
        ),
        binder=BinderConfig(variant=binding, hidden_size=16),
        diffusion=DiffusionConfig(prediction_type="v_prediction", set_alpha_to_one=True),
        height=32,
        width=32,
        max_assets=3,
        guidance=1.5,
    )
