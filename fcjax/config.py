"""What a composer is made of: frozen dataclasses whose field names follow diffusers' and transformers' config keys.

`fcjax.presets` has the paper's setting and that of the model in the package. Derive others with
`dataclasses.replace`; every combination is checked where it is made.
"""

import dataclasses
from typing import Literal

BindingVariant = Literal["none", "conv_in", "smallest", "all"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
Condition = Literal["pose", "tryon"]

APPEARANCES = ("reference_unet", "controlnet", "image_encoder")
CROSS_ATTENTION_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_ATTENTION_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _require_choice(owner: str, field: str, value: object, choices: tuple[object, ...]) -> None:
    _require(value in choices, f"{owner}.{field} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _require_positive(config: object, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        values = value if isinstance(value, tuple) else (value,)
        _require(
            len(values) > 0 and all(isinstance(v, int) and v > 0 for v in values),
            f"{type(config).__name__}.{field} must be positive whole numbers, got {value!r}",
        )


def _require_groups(config: object, channels: tuple[int, ...], groups: int) -> None:
    for width in channels:
        _require(
            width % groups == 0,
            f"{type(config).__name__}: {width} channels cannot be split into norm_num_groups={groups} equal groups; "
            "choose block_out_channels that are multiples of it",
        )


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Keys of diffusers' AutoencoderKL, and `patch_size`: patch x patch pixels stand side by side as channels.

    The VAE's factor is patch_size * 2 ** (len(block_out_channels) - 1); `in_channels` and `out_channels` count what the
    first convolution takes and the last one gives, 3 * patch_size ** 2.

    `linear_encoder`: a latent is a linear map of its own factor x factor pixels, without a distribution, and what the
    decoder's convolutions give is added to a linear map back; there is no encoder network and no quant convolution.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    sample_size: int = 512
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    patch_size: int = 1
    linear_encoder: bool = False

    def __post_init__(self) -> None:
        _require_positive(
            self, "in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block"
        )
        _require_positive(self, "norm_num_groups", "patch_size")
        for field in ("in_channels", "out_channels"):
            _require(
                getattr(self, field) == 3 * self.patch_size**2,
                f"VAEConfig.{field}={getattr(self, field)}, but RGB with patch_size={self.patch_size} makes "
                f"{3 * self.patch_size**2}",
            )
        _require_groups(self, self.block_out_channels, self.norm_num_groups)
        _require(
            not (self.linear_encoder and (self.use_quant_conv or self.use_post_quant_conv)),
            "VAEConfig.linear_encoder leaves nothing for use_quant_conv and use_post_quant_conv to do: set both False",
        )
        _require(self.scaling_factor > 0, f"VAEConfig.scaling_factor must be positive, got {self.scaling_factor!r}")

    @property
    def factor(self) -> int:
        """Pixels per latent token along each side."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Keys of transformers' CLIPTextModel."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 49407

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        _require_positive(self, "num_attention_heads", "max_position_embeddings")
        _require_choice("TextConfig", "hidden_act", self.hidden_act, ("quick_gelu", "gelu"))
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"TextConfig.hidden_size={self.hidden_size} must be a multiple of "
            f"num_attention_heads={self.num_attention_heads}",
        )
        for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, field)
            _require(
                0 <= value < self.vocab_size,
                f"TextConfig.{field}={value} is no row of a vocabulary of {self.vocab_size} tokens",
            )


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Keys of diffusers' UNet2DConditionModel, as far as SD1.x and SD2.x use them.

    `attention_head_dim` is the NUMBER of heads, one for all levels or one per level: diffusers' own misnomer, which
    every checkpoint follows. `layers_per_block` is one number, too, or one per level (up blocks have one more).
    `ff_mult` (the width of the transformer's feed-forward over its input) is 4 in diffusers and not a key there.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (CROSS_ATTENTION_DOWN,) * 3 + (PLAIN_DOWN,)
    up_block_types: tuple[str, ...] = (PLAIN_UP,) + (CROSS_ATTENTION_UP,) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention_dim: int = 768
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    ff_mult: int = 4

    def __post_init__(self) -> None:
        _require_positive(self, "in_channels", "out_channels", "block_out_channels", "layers_per_block")
        _require_positive(self, "cross_attention_dim", "attention_head_dim", "norm_num_groups", "ff_mult")
        _require_groups(self, self.block_out_channels, self.norm_num_groups)
        levels = len(self.block_out_channels)
        for field, choices in (
            ("down_block_types", (CROSS_ATTENTION_DOWN, PLAIN_DOWN)),
            ("up_block_types", (CROSS_ATTENTION_UP, PLAIN_UP)),
        ):
            types = getattr(self, field)
            _require(
                len(types) == levels, f"UNetConfig.{field} names {len(types)} blocks but block_out_channels {levels}"
            )
            for block_type in types:
                _require_choice("UNetConfig", field, block_type, choices)
        for field in ("attention_head_dim", "layers_per_block"):
            numbers = getattr(self, field)
            _require(
                isinstance(numbers, int) or len(numbers) == levels,
                f"UNetConfig.{field} must be one number or {levels} (one per level), got {numbers!r}",
            )
        for level, width in enumerate(self.block_out_channels):
            _require(
                width % self.heads(level) == 0,
                f"UNetConfig: {width} channels of level {level} do not split into {self.heads(level)} heads "
                "(attention_head_dim is the number of heads)",
            )

    @property
    def levels(self) -> int:
        return len(self.block_out_channels)

    def heads(self, level: int) -> int:
        """Attention heads at a level (0 is the finest)."""
        return self.attention_head_dim if isinstance(self.attention_head_dim, int) else self.attention_head_dim[level]

    def layers(self, level: int) -> int:
        """Layers of the down block at a level; its up block has one more."""
        return self.layers_per_block if isinstance(self.layers_per_block, int) else self.layers_per_block[level]

    @property
    def attention_blocks(self) -> tuple[tuple[str, int, int], ...]:
        """(block name, level, attention layers) of every block with self-attention, in forward order."""
        blocks = [
            (f"down_blocks_{level}", level, self.layers(level))
            for level, block_type in enumerate(self.down_block_types)
            if block_type == CROSS_ATTENTION_DOWN
        ]
        blocks.append(("mid_block", self.levels - 1, 1))
        blocks += [
            (f"up_blocks_{index}", self.levels - 1 - index, self.layers(self.levels - 1 - index) + 1)
            for index, block_type in enumerate(self.up_block_types)
            if block_type == CROSS_ATTENTION_UP
        ]
        return tuple(blocks)

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """The level of every self-attention layer, in forward order."""
        return tuple(level for _, level, layers in self.attention_blocks for _ in range(layers))


@dataclasses.dataclass(frozen=True)
class ControlNetConfig:
    """Keys of diffusers' ControlNetModel: the down path and the middle of a UNet, told of a grid of the latents' size.

    conditioning_embedding_out_channels: of the convolutions that read the grid; each beyond the first would halve it,
      which latents, of their size already, rule out.
    """

    in_channels: int = 4
    down_block_types: tuple[str, ...] = (CROSS_ATTENTION_DOWN,) * 3 + (PLAIN_DOWN,)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention_dim: int = 768
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    ff_mult: int = 4
    conditioning_channels: int = 4
    conditioning_embedding_out_channels: tuple[int, ...] = (16,)

    def __post_init__(self) -> None:
        _require_positive(self, "conditioning_channels", "conditioning_embedding_out_channels")
        _require(
            len(self.conditioning_embedding_out_channels) == 1,
            "ControlNetConfig.conditioning_embedding_out_channels must be one number, as the asset image comes as "
            f"latents and is not made smaller; got {self.conditioning_embedding_out_channels}",
        )
        assert self.unet

    @classmethod
    def of(cls, unet: UNetConfig, conditioning_channels: int) -> "ControlNetConfig":
        """The branch that fits a UNet."""
        shared = {name: getattr(unet, name) for name in _SHARED}
        return cls(**shared, conditioning_channels=conditioning_channels)

    @property
    def unet(self) -> UNetConfig:
        """A UNet with this down path (and the up path that mirrors it)."""
        ups = [CROSS_ATTENTION_UP if kind == CROSS_ATTENTION_DOWN else PLAIN_UP for kind in self.down_block_types]
        return UNetConfig(up_block_types=tuple(reversed(ups)), **{name: getattr(self, name) for name in _SHARED})


_SHARED = tuple(
    field.name for field in dataclasses.fields(ControlNetConfig) if not field.name.startswith("conditioning")
)


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
    """Keys of transformers' Dinov2Model (without SwiGLU).

    image_size: the side of the square that its learnt positions are of; they are interpolated for other sizes.
    num_channels: 3 for one that reads pixels.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    image_size: int = 518
    patch_size: int = 14
    num_channels: int = 3
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _require_positive(self, "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio")
        _require_positive(self, "image_size", "patch_size", "num_channels")
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"ImageEncoderConfig.hidden_size={self.hidden_size} must be a multiple of "
            f"num_attention_heads={self.num_attention_heads}",
        )
        _require(
            self.image_size >= self.patch_size,
            f"ImageEncoderConfig.image_size={self.image_size} is smaller than a patch of {self.patch_size}",
        )


@dataclasses.dataclass(frozen=True)
class BinderConfig:
    """Subject binding: which blocks add a phrase's vector to the keys and values of its asset's tokens.

    `none`; `conv_in` (through the reference UNet's first convolution); `smallest` (down and up blocks of the smallest
    resolution that has attention there, the paper's Bind(1)); `all` (Bind(1,2,3), the mid block too).
    """

    variant: BindingVariant = "all"
    hidden_size: int = 768

    def __post_init__(self) -> None:
        _require_choice("BinderConfig", "variant", self.variant, ("none", "conv_in", "smallest", "all"))
        _require_positive(self, "hidden_size")

    def blocks(self, unet: UNetConfig) -> tuple[tuple[str, int], ...]:
        """(block name, level) of every block of `unet` whose keys and values are bound, in forward order."""
        named = [(name, level) for name, level, _ in unet.attention_blocks]
        if self.variant == "all":
            # Choice: Bind(1,2,3) speaks of the three resolutions' blocks; the mid block's attention is bound too.
            return tuple(named)
        if self.variant == "smallest":
            outer = [(name, level) for name, level in named if name != "mid_block"] or named
            smallest = max(level for _, level in outer)
            return tuple((name, level) for name, level in outer if level == smallest)
        return ()


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """Keys of diffusers' DDIMScheduler; the defaults are those of Stable Diffusion 1.5's file.

    timestep_shift: of the timesteps that samplers choose, towards noise (arXiv 2403.03206, equation 23); 1 is none.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = False
    timestep_shift: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, "num_train_timesteps")
        _require(
            0.0 < self.timestep_shift < 1e4,
            f"DiffusionConfig.timestep_shift must be positive (1 shifts nothing), got {self.timestep_shift}",
        )
        _require_choice(
            "DiffusionConfig", "beta_schedule", self.beta_schedule, ("scaled_linear", "linear", "squaredcos_cap_v2")
        )
        _require_choice(
            "DiffusionConfig", "prediction_type", self.prediction_type, ("epsilon", "v_prediction", "sample")
        )
        _require_choice(
            "DiffusionConfig", "timestep_spacing", self.timestep_spacing, ("leading", "trailing", "linspace")
        )
        _require(
            0 < self.beta_start <= self.beta_end < 1,
            f"DiffusionConfig needs 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}",
        )
        _require(
            not (self.rescale_betas_zero_snr and self.prediction_type == "epsilon"),
            "DiffusionConfig.rescale_betas_zero_snr leaves no signal at the last timestep, which epsilon prediction "
            "cannot recover: use prediction_type='v_prediction' or 'sample'",
        )


def wave_channels(coordinates: int, octaves: int) -> int:
    """Channels of `models.composer.waves`: a sine and a cosine for each coordinate and octave."""
    return 2 * coordinates * octaves


def condition_channels(condition: Condition, latent_channels: int, pose_patch: int, pose_octaves: int) -> int:
    """Channels that join the noisy latent at the denoiser's conv_in."""
    return 2 * pose_patch**2 + wave_channels(3, pose_octaves) if condition == "pose" else latent_channels + 1


@dataclasses.dataclass(frozen=True)
class ComposerConfig:
    """The whole model. `height` and `width` are pixels; `unet` is the denoiser.

    reference_unet, controlnet, image_encoder: what encodes the asset image, one of the three. The paper's is the
      reference UNet; the others are those that its Table 3 compares it with. `controlnet` reads the canvas beside what
      the denoiser reads and adds to its features; `image_encoder` puts its tokens in the text's place. Only a
      reference UNet has keys and values to bind.
    condition: what joins the noisy latent at the denoiser's conv_in. "pose": the UV map, `pose_patch` x `pose_patch`
      points per latent token, 2 channels each. "tryon": the person's latent and a 1-channel mask.
    pose_octaves: sines and cosines, over so many octaves, of where on a resting body each place of the UV map lies.
    attend_blank: whether the denoiser sees reference tokens that no asset covers.
    reference_octaves: the same of each asset's own coordinates, as further input channels of the reference UNet.
    max_assets: the number of assets to which every canvas is padded.
    """

    unet: UNetConfig
    reference_unet: UNetConfig | None
    vae: VAEConfig
    text_encoder: TextConfig
    binder: BinderConfig
    diffusion: DiffusionConfig
    height: int = 512
    width: int = 384
    max_assets: int = 8
    condition: Condition = "pose"
    attend_blank: bool = False
    pose_patch: int = 1
    pose_octaves: int = 0
    reference_octaves: int = 0
    controlnet: ControlNetConfig | None = None
    image_encoder: ImageEncoderConfig | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "height", "width", "max_assets", "pose_patch")
        _require_choice("ComposerConfig", "condition", self.condition, ("pose", "tryon"))
        for field in ("pose_octaves", "reference_octaves"):
            value = getattr(self, field)
            _require(value >= 0, f"ComposerConfig.{field} must not be negative, got {value}")
        factor = self.vae.factor * 2 ** (self.unet.levels - 1)
        _require(
            self.height % factor == 0 and self.width % factor == 0,
            f"ComposerConfig: height={self.height} and width={self.width} must be multiples of {factor} "
            f"(VAE factor {self.vae.factor} x {2 ** (self.unet.levels - 1)} of the UNet)",
        )
        _require(
            self.vae.factor % self.pose_patch == 0,
            f"ComposerConfig.pose_patch={self.pose_patch} must divide the VAE's factor {self.vae.factor}",
        )
        latent, condition = self.vae.latent_channels, self.condition_channels
        _require(
            self.unet.in_channels == latent + condition,
            f"ComposerConfig: unet.in_channels={self.unet.in_channels}, but {latent} latent channels and {condition} "
            f"of condition {self.condition!r} (pose_patch={self.pose_patch}, pose_octaves={self.pose_octaves}) make "
            f"{latent + condition}",
        )
        _require(
            self.unet.out_channels == latent,
            f"ComposerConfig: unet.out_channels={self.unet.out_channels} but the VAE has {latent} latent channels",
        )
        self._check_appearance(latent + wave_channels(2, self.reference_octaves))
        width = self.text_encoder.hidden_size if self.image_encoder is None else self.image_encoder.hidden_size
        _require(
            self.unet.cross_attention_dim == width,
            f"ComposerConfig: unet.cross_attention_dim={self.unet.cross_attention_dim} must equal "
            f"{'text_encoder' if self.image_encoder is None else 'image_encoder'}.hidden_size={width}",
        )

    def _check_appearance(self, channels: int) -> None:
        """That one network reads the canvas, of so many channels, and fits the denoiser."""
        named = [name for name in APPEARANCES if getattr(self, name) is not None]
        _require(
            len(named) == 1,
            f"ComposerConfig needs one of {', '.join(APPEARANCES)} to encode the asset image, got "
            + (" and ".join(named) or "none"),
        )
        _require(
            self.reference_unet is not None or self.binder.variant == "none",
            f"ComposerConfig: a {self.appearance} has no keys and values to bind: binder.variant must be 'none', "
            f"got {self.binder.variant!r}",
        )
        field, alike, differ = "in_channels", (), []
        if self.reference_unet is not None:
            alike = [field.name for field in dataclasses.fields(UNetConfig)]
            alike = [name for name in alike if name not in ("in_channels", "out_channels")]
        elif self.controlnet is not None:
            field, alike = "conditioning_channels", _SHARED
        else:
            field = "num_channels"
        network = getattr(self, self.appearance)
        _require(
            getattr(network, field) == channels or self.canvas_in_pixels,
            f"ComposerConfig: {self.appearance}.{field}={getattr(network, field)}, but {self.vae.latent_channels} "
            f"latent channels with reference_octaves={self.reference_octaves} make {channels}",
        )
        differ = [name for name in alike if getattr(self.unet, name) != getattr(network, name)]
        _require(
            not differ, f"ComposerConfig: unet and {self.appearance} must be alike, but differ in {', '.join(differ)}"
        )

    @property
    def appearance(self) -> str:
        """The part that encodes the asset image, one of APPEARANCES."""
        return next(name for name in APPEARANCES if getattr(self, name) is not None)

    @property
    def networks(self) -> tuple[str, ...]:
        """The parts with a network and a config of its own, in the order of a model folder."""
        return ("unet", self.appearance, "vae", "text_encoder")

    @property
    def unets(self) -> dict[str, UNetConfig]:
        """The denoiser, and what encodes the asset image if that is a UNet or part of one."""
        found: dict[str, UNetConfig] = {"unet": self.unet}
        if self.reference_unet is not None:
            found["reference_unet"] = self.reference_unet
        if self.controlnet is not None:
            found["controlnet"] = self.controlnet.unet
        return found

    @property
    def canvas_in_pixels(self) -> bool:
        """Whether the asset image is read as it is, not its latents."""
        return self.image_encoder is not None and self.image_encoder.num_channels == 3

    @property
    def condition_channels(self) -> int:
        """Channels that join the noisy latent at the denoiser's conv_in."""
        return condition_channels(self.condition, self.vae.latent_channels, self.pose_patch, self.pose_octaves)

    def conditioned(self, condition: Condition) -> "ComposerConfig":
        """The config of a like model that is told this beside text and assets."""
        latent = self.vae.latent_channels
        joined = latent + condition_channels(condition, latent, self.pose_patch, self.pose_octaves)
        changed = {
            name: dataclasses.replace(network, in_channels=joined)
            for name in ("unet", "controlnet")
            if (network := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, condition=condition, **changed)

    def sized(self, size: tuple[int, int] | None) -> "ComposerConfig":
        """The config for pictures of another height and width; ValueError names the nearest that would do."""
        if size is None:
            return self
        height, width = size
        factor = self.vae.factor * 2 ** (self.unet.levels - 1)
        if not (height > 0 and width > 0 and height % factor == 0 and width % factor == 0):
            nearest = [max(1, round(side / factor)) * factor for side in size]
            raise ValueError(
                f"height and width must be multiples of {factor} for this model, got {height}x{width}; "
                f"{nearest[0]}x{nearest[1]} would do"
            )
        return dataclasses.replace(self, height=int(height), width=int(width))

    @property
    def latent_height(self) -> int:
        return self.height // self.vae.factor

    @property
    def latent_width(self) -> int:
        return self.width // self.vae.factor
