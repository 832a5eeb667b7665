"""The settings of a training run, edited in `configs/` and overridden on the command line."""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

from fcjax.config import ComposerConfig
from fcjax.data.augment import AS_THEY_ARE, Augmentation
from fcjax.diffusion import Weighting
from fcjax.optim import OptimizerName
from fcjax.pretrained import MINI


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What `fcjax.optim` builds."""

    name: OptimizerName = "adamw"
    learning_rate: float = 1e-4
    """The peak."""
    warmup_steps: int = 500
    """Steps in which the rate rises to it."""
    final_rate: float = 1.0
    """The rate falls along a cosine to this times its peak at the last step; 1.0 keeps it constant."""
    beta2: float = 0.99
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    """The largest global norm of gradients."""
    ema_decay: float = 0.9999
    """Of the moving average that models are made of; 0: none is kept, and they are made of the last parameters."""
    trainable: tuple[tuple[str, bool], ...] = ((".*", True),)
    """Paths of parameters as regular expressions, and whether they are trained; the first that fits decides."""

    def __post_init__(self):
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate must lie in (0, 1), got {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What the composing loss weighs and drops."""

    weighting: Weighting = "min_snr_plus_one"
    """How timesteps count (`fcjax.diffusion.loss_weight`)."""
    min_snr: float = 5.0
    """The bound of min-SNR weighting."""
    timestep_shift: float = 1.0
    """Above 1, more of the timesteps drawn are noisy ones (arXiv 2403.03206, equation 23): s u / (1 + (s - 1) u) of
    all, for u uniform in [0, 1)."""
    offset_noise: float = 0.0
    """A share of noise that is the same in all tokens of a channel, so that a model learns to move whole pictures'
    brightness (the "offset noise" of Stable Diffusion's users)."""
    foreground_weight: float = 0.0
    """Latent tokens on the person count `1 + foreground_weight` times."""
    # Choice: drop-out concerns the denoiser alone. The first three exclude each other, so that each branch of guidance
    # (no text, no assets, neither) gets the share of the training that it is given here.

    drop_text: float = 0.05
    """The share of samples whose text the denoiser does not see."""
    drop_reference: float = 0.05
    """The same of assets."""
    drop_both: float = 0.1
    """The same of both."""
    drop_pose: float = 0.0
    """The same of the pose."""
    matching: float = 0.0
    """Weight of `matching_loss`, for data that knows where a garment's flat shows what the person shows."""
    reading: float = 0.0
    """Weight of `train.reading.reading_loss`, which asks the reference UNet to hand over what the assets' latents hold.
    It teaches that UNet and the binder alone."""
    texture: float = 0.0
    """Weight w of `train.texture.texture_loss`, which asks for patterns where the squared error is least for a blur: of
    a pattern whose place is unknown, both together are least at w / (1 + w) of its contrast.
    As an error of the clean latents it counts by `weighting`: choose "min_snr" where noise is predicted."""
    rollout: float = 0.0
    """How many of the noise levels, as a share, come of the model's own prediction at a noisier one, so that it learns
    to mend its errors (`train.draws.own_noise`). Any share costs a whole forward pass of the denoiser. Begin with a
    trained model, and choose "min_snr" where noise is predicted: what is then asked for holds the errors, too."""
    noises: int = 1
    """Noise levels trained per reference pass."""

    def __post_init__(self):
        shares = (self.drop_text, self.drop_reference, self.drop_both)
        if min(*shares, self.drop_pose) < 0 or sum(shares) > 1 or self.drop_pose > 1:
            raise ValueError(f"drop-out shares must not be negative nor add up to more than 1, got {shares}")
        if not 0 <= self.rollout <= 1:
            raise ValueError(f"rollout is a share of the noise levels, from 0 to 1; got {self.rollout}")
        if self.weighting not in get_args(Weighting):
            raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}; got {self.weighting!r}")
        if self.timestep_shift <= 0:
            raise ValueError(f"timestep_shift must be positive, got {self.timestep_shift}")


@dataclasses.dataclass(frozen=True)
class VAELossConfig:
    """The autoencoder's loss: L1 and L2 of pixels in [-1, 1], L1 of their gradients and of 8x8 means, and a KL term.

    latent_noise: each sample's latents get Gaussian noise of a deviation drawn between 0 and this, so that the decoder
      learns to smooth a denoiser's small errors.
    """

    l1: float = 1.0
    l2: float = 2.0
    gradient: float = 1.0
    colour: float = 4.0
    kl: float = 1e-6
    latent_noise: float = 0.0
    crop: int = 64


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run: what is trained, on which data, for how long."""

    name: str
    task: Literal["vae", "compose", "tryon"]
    model: ComposerConfig
    data: Path | None
    """The prepared set; none: a few samples that the run draws into its own folder (`train.own_data`)."""
    steps: int
    """How many, those before the run went on with them."""
    batch_size: int
    """Samples of a step, on all devices together."""
    mixed_with: tuple[Path, ...] = ()
    """More prepared sets."""
    weights: tuple[float, ...] = ()
    """The share of the samples that each of all sets gives, `data`'s first; none: equal ones."""
    augment: Augmentation = AS_THEY_ARE
    """Changes at random to every sample; needs pictures, not latents (not of task "vae")."""
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    vae_loss: VAELossConfig = VAELossConfig()
    start: Path | None = None
    """The model folder of another run to start from; none starts at random."""
    vae: Path | None = None
    """The model folder whose VAE made the prepared latents (not of task "vae"): it goes into the result as it is."""
    tokenizer: Path = MINI / "tokenizer"
    """Its folder."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the networks compute in, and what frozen parameters are kept in; trained ones are kept in float32."""
    remat: Literal["none", "layers", "dots", "all"] = "none"
    """What the backward pass computes anew instead of keeping it (not of task "vae"): "none"; "layers", all but what
    resnets and attentions hand on; "dots", all but products of tokens and weights; "all", everything within a UNet."""
    accumulate: int = 1
    """Parts of a batch that are computed one after the other, their gradients added up."""
    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the tensors of the model folder are stored."""
    seed: int = 0
    strategy: str = "data"
    """Of `configs.sharding`, for several devices."""
    axes: tuple[tuple[str, int], ...] = ()
    """Those sizes of the strategy's axes that shall differ from its table's."""
    devices: int = 0
    """How many take part; 0: all."""
    heldout: Path | None = None
    """A prepared set whose losses are logged and whose first samples are drawn every `watch_every` steps."""
    watch_every: int = 500
    log_every: int = 20
    """Steps from one line of the log to the next."""
    checkpoint_every: int = 500
    keep: int = 2
    """How many of the newest checkpoints stay."""
    keep_best: int = 0
    """How many checkpoints with the lowest held-out loss stay beside them, which is then measured for each."""
    # Choice: far above what a hard batch costs, far below what a diverged run reports.

    explode: float = 100.0
    """A loss above so many times the median of those before it ends the run, as one that is no number always does; 0
    lets every number pass."""
    tensorboard: bool = False
    """TensorBoard's event files beside the log."""
    profile_at: int = 0
    """The step from which on steps are traced by JAX's profiler; 0: none, until SIGUSR1 asks for it."""
    profile_steps: int = 3
    """How many of them."""
    workers: int = 2
    """Threads that read the data."""

    def __post_init__(self):
        if self.task == "tryon" and not self.model.tries_on:
            # Of any composing configuration there is the like that tries on.
            object.__setattr__(self, "model", self.model.conditioned("tryon"))
        elif self.task == "compose" and self.model.condition != "pose":
            raise ValueError(f"task 'compose' trains a model that is told a pose, not {self.model.condition!r}")
        positive = ("steps", "batch_size", "watch_every", "log_every", "checkpoint_every", "keep", "workers")
        for field in (*positive, "profile_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field in ("keep_best", "profile_at"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must be at least 0, got {getattr(self, field)}")
        if self.explode and self.explode <= 1:
            raise ValueError(f"explode must be above 1, or 0 to let every loss pass, got {self.explode}")
        if self.keep_best and self.heldout is None:
            raise ValueError("keep_best goes by the held-out loss: name a set with --heldout, or leave it at 0")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide the batch of {self.batch_size}, got {self.accumulate}")
