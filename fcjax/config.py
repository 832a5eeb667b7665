"""What a composer is made of: its networks (`fcjax.network_config`), the diffusion process, and what joins them.

Field names follow diffusers' config keys. `fcjax.presets` has the paper's setting and that of the model in the package.
Derive others with `dataclasses.replace`; every combination is checked where it is made.
"""

import dataclasses
import numbers
from collections.abc import Iterable
from typing import Any, Literal, get_args

from fcjax.network_config import (
    SHARED_FIELDS,
    BinderConfig,
    ControlNetConfig,
    ImageEncoderConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
    require,
    require_choice,
    require_positive,
)

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Condition = Literal["pose", "tryon", "posed_tryon"]

APPEARANCES = ("reference_unet", "controlnet", "image_encoder")


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
        require_positive(self, "num_train_timesteps")
        require(
            0.0 < self.timestep_shift < 1e4,
            f"DiffusionConfig.timestep_shift must be positive (1 shifts nothing), got {self.timestep_shift}",
        )
        require_choice(
            "DiffusionConfig", "beta_schedule", self.beta_schedule, ("scaled_linear", "linear", "squaredcos_cap_v2")
        )
        require_choice(
            "DiffusionConfig", "prediction_type", self.prediction_type, ("epsilon", "v_prediction", "sample")
        )
        require_choice(
            "DiffusionConfig", "timestep_spacing", self.timestep_spacing, ("leading", "trailing", "linspace")
        )
        require(
            0 < self.beta_start <= self.beta_end < 1,
            f"DiffusionConfig needs 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}",
        )
        require(
            not (self.rescale_betas_zero_snr and self.prediction_type == "epsilon"),
            "DiffusionConfig.rescale_betas_zero_snr leaves no signal at the last timestep, which epsilon prediction "
            "cannot recover: use prediction_type='v_prediction' or 'sample'",
        )


def wave_channels(coordinates: int, octaves: int) -> int:
    """Channels of `models.composer.waves`: a sine and a cosine for each coordinate and octave."""
    return 2 * coordinates * octaves


def condition_channels(condition: Condition, latent_channels: int, pose_patch: int, pose_octaves: int) -> int:
    """Channels that join the noisy latent at the denoiser's conv_in."""
    pose = 2 * pose_patch**2 + wave_channels(3, pose_octaves)
    return {"pose": pose, "tryon": latent_channels + 1, "posed_tryon": pose + latent_channels + 1}[condition]


OWN_SAMPLING = ("guidance", "steps")
"""What of `ComposerConfig` says how pictures are sampled where a request does not; no network depends on it."""


@dataclasses.dataclass(frozen=True)
class ComposerConfig:
    """The whole model. `height` and `width` are pixels; `unet` is the denoiser.

    reference_unet, controlnet, image_encoder: what encodes the asset image, one of the three. The paper's is the
      reference UNet; the others are those that its Table 3 compares it with. `controlnet` reads the canvas beside what
      the denoiser reads and adds to its features; `image_encoder` puts its tokens in the text's place. Only a
      reference UNet has keys and values to bind.
    condition: what joins the noisy latent at the denoiser's conv_in. "pose": the UV map, `pose_patch` x `pose_patch`
      points per latent token, 2 channels each. "tryon": the person's latent and a 1-channel mask. "posed_tryon": both.
    pose_octaves: sines and cosines, over so many octaves, of where on a resting body each place of the UV map lies.
    attend_blank: whether the denoiser sees reference tokens that no asset covers.
    reference_octaves: the same of each asset's own coordinates, as further input channels of the reference UNet.
    max_assets: the number of assets to which every canvas is padded.
    guidance: how far to go from the picture without text and assets where a request does not say (1: not at all).
    steps: of sampling, where a request does not say.
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
    # What every model of before these were settings was sampled at.
    guidance: float = 1.5
    steps: int = 20

    def __post_init__(self) -> None:
        require_positive(self, "height", "width", "max_assets", "pose_patch", "steps")
        require_choice("ComposerConfig", "condition", self.condition, get_args(Condition))
        for field in ("pose_octaves", "reference_octaves"):
            value = getattr(self, field)
            require(value >= 0, f"ComposerConfig.{field} must not be negative, got {value}")
        require(
            isinstance(self.guidance, numbers.Real) and -1e4 < self.guidance < 1e4,
            f"ComposerConfig.guidance must be a finite number (1 switches it off), got {self.guidance!r}",
        )
        factor = self.vae.factor * 2 ** (self.unet.levels - 1)
        require(
            self.height % factor == 0 and self.width % factor == 0,
            f"ComposerConfig: height={self.height} and width={self.width} must be multiples of {factor} "
            f"(VAE factor {self.vae.factor} x {2 ** (self.unet.levels - 1)} of the UNet)",
        )
        require(
            self.vae.factor % self.pose_patch == 0,
            f"ComposerConfig.pose_patch={self.pose_patch} must divide the VAE's factor {self.vae.factor}",
        )
        latent, condition = self.vae.latent_channels, self.condition_channels
        require(
            self.unet.in_channels == latent + condition,
            f"ComposerConfig: unet.in_channels={self.unet.in_channels}, but {latent} latent channels and {condition} "
            f"of condition {self.condition!r} (pose_patch={self.pose_patch}, pose_octaves={self.pose_octaves}) make "
            f"{latent + condition}",
        )
        require(
            self.unet.out_channels == latent,
            f"ComposerConfig: unet.out_channels={self.unet.out_channels} but the VAE has {latent} latent channels",
        )
        self._check_appearance(latent + wave_channels(2, self.reference_octaves))
        width = self.text_encoder.hidden_size if self.image_encoder is None else self.image_encoder.hidden_size
        require(
            self.unet.cross_attention_dim == width,
            f"ComposerConfig: unet.cross_attention_dim={self.unet.cross_attention_dim} must equal "
            f"{'text_encoder' if self.image_encoder is None else 'image_encoder'}.hidden_size={width}",
        )

    def _check_appearance(self, channels: int) -> None:
        """That one network reads the canvas, of so many channels, and fits the denoiser."""
        named = [name for name in APPEARANCES if getattr(self, name) is not None]
        require(
            len(named) == 1,
            f"ComposerConfig needs one of {', '.join(APPEARANCES)} to encode the asset image, got "
            + (" and ".join(named) or "none"),
        )
        require(
            self.reference_unet is not None or self.binder.variant == "none",
            f"ComposerConfig: a {self.appearance} has no keys and values to bind: binder.variant must be 'none', "
            f"got {self.binder.variant!r}",
        )
        field, alike, differ = "in_channels", (), []
        if self.reference_unet is not None:
            alike = [field.name for field in dataclasses.fields(UNetConfig)]
            alike = [name for name in alike if name not in ("in_channels", "out_channels")]
        elif self.controlnet is not None:
            field, alike = "conditioning_channels", SHARED_FIELDS
        else:
            field = "num_channels"
        network = getattr(self, self.appearance)
        require(
            getattr(network, field) == channels or self.canvas_in_pixels,
            f"ComposerConfig: {self.appearance}.{field}={getattr(network, field)}, but {self.vae.latent_channels} "
            f"latent channels with reference_octaves={self.reference_octaves} make {channels}",
        )
        differ = [name for name in alike if getattr(self.unet, name) != getattr(network, name)]
        require(
            not differ, f"ComposerConfig: unet and {self.appearance} must be alike, but differ in {', '.join(differ)}"
        )

    @property
    def appearance(self) -> str:
        """The part that encodes the asset image, one of APPEARANCES."""
        return next(name for name in APPEARANCES if getattr(self, name) is not None)

    @property
    def own_sampling(self) -> dict[str, Any]:
        """How pictures are sampled where a request does not say: arguments of `Composer.compose`."""
        return {name: getattr(self, name) for name in OWN_SAMPLING}

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

    @property
    def takes_pose(self) -> bool:
        """Whether the denoiser reads a body's UV map."""
        return self.condition != "tryon"

    @property
    def tries_on(self) -> bool:
        """Whether the denoiser reads a person's picture and a mask of what is to be repainted."""
        return self.condition != "pose"

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
        sides = tuple(size) if isinstance(size, Iterable) else ()
        if len(sides) != 2 or not all(isinstance(side, numbers.Real) and float(side).is_integer() for side in sides):
            raise ValueError(
                f"size must be height and width, two whole numbers such as ({self.height}, {self.width}), got {size!r}"
            )
        height, width = map(int, sides)
        factor = self.vae.factor * 2 ** (self.unet.levels - 1)
        if not (height > 0 and width > 0 and height % factor == 0 and width % factor == 0):
            nearest = [max(1, round(side / factor)) * factor for side in (height, width)]
            raise ValueError(
                f"height and width must be multiples of {factor} for this model, got {height}x{width}; "
                f"{nearest[0]}x{nearest[1]} would do"
            )
        return dataclasses.replace(self, height=height, width=width)

    @property
    def latent_height(self) -> int:
        return self.height // self.vae.factor

    @property
    def latent_width(self) -> int:
        return self.width // self.vae.factor
