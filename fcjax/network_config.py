"""What each network is made of: frozen dataclasses whose field names follow diffusers' and transformers' config keys.

`fcjax.config` joins them; derive others with `dataclasses.replace`, each is checked where it is made.
"""

import dataclasses
from typing import Literal

BindingVariant = Literal["none", "conv_in", "smallest", "all"]

CROSS_ATTENTION_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_ATTENTION_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"


def require(holds: bool, message: str) -> None:
    """ValueError with the message where something does not hold."""
    if not holds:
        raise ValueError(message)


def require_choice(owner: str, field: str, value: object, choices: tuple[object, ...]) -> None:
    """ValueError where a field of the owner is none of the choices."""
    require(value in choices, f"{owner}.{field} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def require_positive(config: object, *fields: str) -> None:
    """ValueError for the first of these fields that is not a positive whole number, or several."""
    for field in fields:
        value = getattr(config, field)
        values = value if isinstance(value, tuple) else (value,)
        require(
            len(values) > 0 and all(isinstance(v, int) and v > 0 for v in values),
            f"{type(config).__name__}.{field} must be positive whole numbers, got {value!r}",
        )


def _require_groups(config: object, channels: tuple[int, ...], groups: int) -> None:
    for width in channels:
        require(
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
    sample_size: int | tuple[int, int] | None = 512
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    patch_size: int = 1
    linear_encoder: bool = False

    def __post_init__(self) -> None:
        require_positive(
            self, "in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block"
        )
        require_positive(self, "norm_num_groups", "patch_size")
        for field in ("in_channels", "out_channels"):
            require(
                getattr(self, field) == 3 * self.patch_size**2,
                f"VAEConfig.{field}={getattr(self, field)}, but RGB with patch_size={self.patch_size} makes "
                f"{3 * self.patch_size**2}",
            )
        _require_groups(self, self.block_out_channels, self.norm_num_groups)
        require(
            not (self.linear_encoder and (self.use_quant_conv or self.use_post_quant_conv)),
            "VAEConfig.linear_encoder leaves nothing for use_quant_conv and use_post_quant_conv to do: set both False",
        )
        require(self.scaling_factor > 0, f"VAEConfig.scaling_factor must be positive, got {self.scaling_factor!r}")

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
        require_positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        require_positive(self, "num_attention_heads", "max_position_embeddings")
        require_choice("TextConfig", "hidden_act", self.hidden_act, ("quick_gelu", "gelu"))
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"TextConfig.hidden_size={self.hidden_size} must be a multiple of "
            f"num_attention_heads={self.num_attention_heads}",
        )
        for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, field)
            require(
                0 <= value < self.vocab_size,
                f"TextConfig.{field}={value} is no row of a vocabulary of {self.vocab_size} tokens",
            )


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Keys of diffusers' UNet2DConditionModel, as far as SD1.x and SD2.x use them.

    `attention_head_dim` is the NUMBER of heads, one for all levels or one per level: diffusers' own misnomer, which
    every checkpoint follows. `layers_per_block` is one number, too, or one per level (up blocks have one more).
    `sample_size` is a side of the latents, or height and width; nothing depends on it but the size of pictures that a
    composer made of the UNet starts with. `ff_mult` (the width of the transformer's feed-forward over its input) is 4
    in diffusers and not a key there.
    """

    sample_size: int | tuple[int, int] | None = 64
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
        require_positive(self, "in_channels", "out_channels", "block_out_channels", "layers_per_block")
        require_positive(self, "cross_attention_dim", "attention_head_dim", "norm_num_groups", "ff_mult")
        _require_groups(self, self.block_out_channels, self.norm_num_groups)
        levels = len(self.block_out_channels)
        for field, choices in (
            ("down_block_types", (CROSS_ATTENTION_DOWN, PLAIN_DOWN)),
            ("up_block_types", (CROSS_ATTENTION_UP, PLAIN_UP)),
        ):
            types = getattr(self, field)
            require(
                len(types) == levels, f"UNetConfig.{field} names {len(types)} blocks but block_out_channels {levels}"
            )
            for block_type in types:
                require_choice("UNetConfig", field, block_type, choices)
        for field in ("attention_head_dim", "layers_per_block"):
            numbers = getattr(self, field)
            require(
                isinstance(numbers, int) or len(numbers) == levels,
                f"UNetConfig.{field} must be one number or {levels} (one per level), got {numbers!r}",
            )
        for level, width in enumerate(self.block_out_channels):
            require(
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
        require_positive(self, "conditioning_channels", "conditioning_embedding_out_channels")
        require(
            len(self.conditioning_embedding_out_channels) == 1,
            "ControlNetConfig.conditioning_embedding_out_channels must be one number, as the asset image comes as "
            f"latents and is not made smaller; got {self.conditioning_embedding_out_channels}",
        )
        assert self.unet

    @classmethod
    def of(cls, unet: UNetConfig, conditioning_channels: int) -> "ControlNetConfig":
        """The branch that fits a UNet."""
        shared = {name: getattr(unet, name) for name in SHARED_FIELDS}
        return cls(**shared, conditioning_channels=conditioning_channels)

    @property
    def unet(self) -> UNetConfig:
        """A UNet with this down path (and the up path that mirrors it)."""
        ups = [CROSS_ATTENTION_UP if kind == CROSS_ATTENTION_DOWN else PLAIN_UP for kind in self.down_block_types]
        return UNetConfig(up_block_types=tuple(reversed(ups)), **{name: getattr(self, name) for name in SHARED_FIELDS})


SHARED_FIELDS = tuple(
    field.name for field in dataclasses.fields(ControlNetConfig) if not field.name.startswith("conditioning")
)
"""What a ControlNet has of its UNet."""


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
        require_positive(self, "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio")
        require_positive(self, "image_size", "patch_size", "num_channels")
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"ImageEncoderConfig.hidden_size={self.hidden_size} must be a multiple of "
            f"num_attention_heads={self.num_attention_heads}",
        )
        require(
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
        require_choice("BinderConfig", "variant", self.variant, ("none", "conv_in", "smallest", "all"))
        require_positive(self, "hidden_size")

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


NetworkConfig = UNetConfig | ControlNetConfig | ImageEncoderConfig | VAEConfig | TextConfig
"""Of the networks that read or write pictures or text by themselves."""
