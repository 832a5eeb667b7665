"""The paper's model, from Stable Diffusion 1.5's weights, on data that you prepare."""

import dataclasses
from pathlib import Path

from fcjax import presets
from train.config import LossConfig, OptimizerConfig, TrainConfig

# The paper trains self- and cross-attention of both UNets, the binder, and the denoiser's first convolution.
PAPERS_PARAMETERS = (
    (r"(unet|reference_unet)/.*/attn[12]/.*", True),
    (r"binder/.*", True),
    (r"unet/conv_in/.*", True),
    (r".*", False),
)


def compose() -> TrainConfig:
    """AdamW at 1e-4 on the paper's subset; the paper is silent on batch, steps, drop-out and average.

    python -m infer.convert stable-diffusion-v1-5/stable-diffusion-v1-5 outputs/sd15
    python -m train.prepare latents --config sd15 --data data/people --model outputs/sd15 --out data/latents_sd15
    python -m train.run --config sd15 --out runs/sd15 --strategy fsdp

    `--optimizer.trainable .\\* True` trains everything.
    """
    start = Path("outputs/sd15")
    return TrainConfig(
        name="sd15",
        task="compose",
        model=presets.sd15(),
        data=Path("data/latents_sd15"),
        start=start,
        vae=start,
        tokenizer=start / "tokenizer",
        steps=50_000,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=1e-4, trainable=PAPERS_PARAMETERS),
        loss=LossConfig(weighting="min_snr", min_snr=5.0),
        compute_dtype="bfloat16",
        export_dtype="bfloat16",
        log_every=50,
        watch_every=1000,
        checkpoint_every=1000,
    )


def controlnet() -> TrainConfig:
    """The same with a ControlNet in the reference UNet's place, as in the paper's Table 3.

    python -m infer.convert stable-diffusion-v1-5/stable-diffusion-v1-5 outputs/sd15_controlnet --appearance controlnet
    python -m train.prepare latents --config sd15_controlnet --data data/people --model outputs/sd15_controlnet \\
        --out data/latents_sd15
    python -m train.run --config sd15_controlnet --out runs/sd15_controlnet
    """
    return _encoding("controlnet")


def image_encoder() -> TrainConfig:
    """The same with DINOv2's embeddings of the asset image in the text's place, as in the paper's Table 3.

    It reads pixels, so that it trains on the prepared set itself and not on its latents.

    python -m infer.convert stable-diffusion-v1-5/stable-diffusion-v1-5 outputs/sd15_image_encoder \\
        --appearance image_encoder --image-encoder facebook/dinov2-base
    python -m train.run --config sd15_image_encoder --out runs/sd15_image_encoder
    """
    return dataclasses.replace(_encoding("image_encoder"), data=Path("data/people"))


def _encoding(appearance: str) -> TrainConfig:
    given, start = compose(), Path(f"outputs/sd15_{appearance}")
    # Choice: the paper says nothing of what is trained there; all of the new network, and what reads it.
    rules = ((rf"{appearance}/.*", True), *PAPERS_PARAMETERS)
    return dataclasses.replace(
        given,
        name=f"sd15_{appearance}",
        model=presets.encoding_assets(given.model, appearance),
        start=start,
        vae=start,
        tokenizer=start / "tokenizer",
        optimizer=dataclasses.replace(given.optimizer, trainable=rules),
    )


def tryon() -> TrainConfig:
    """The same parameters of a model that tries on, from where `compose` ended, as the paper fine-tunes it.

    python -m train.prepare viton-hd SRC data/viton --no-need-pose
    python -m train.prepare latents --config sd15_tryon --data data/viton --model outputs/sd15 \\
        --out data/latents_sd15_tryon
    python -m train.run --config sd15_tryon --out runs/sd15_tryon --strategy fsdp

    `--start outputs/sd15` starts from a composer that was never trained.
    """
    return dataclasses.replace(
        compose(),
        name="sd15_tryon",
        task="tryon",
        data=Path("data/latents_sd15_tryon"),
        start=Path("runs/sd15/model"),
        # Choice: the paper is silent; what is kept of the person need not be learnt anew.
        steps=20_000,
    )


def posed_tryon() -> TrainConfig:
    """The same of a model that reads the body's map as well, for sets with DensePose's u and v; a share hides it.

    python -m train.prepare dresscode SRC data/dresscode
    python -m train.prepare latents --config sd15_posed_tryon --data data/dresscode --model outputs/sd15 \\
        --out data/latents_sd15_posed_tryon
    python -m train.run --config sd15_posed_tryon --out runs/sd15_posed_tryon --strategy fsdp
    """
    given = tryon()
    return dataclasses.replace(
        given,
        name="sd15_posed_tryon",
        model=presets.sd15(condition="posed_tryon"),
        data=Path("data/latents_sd15_posed_tryon"),
        loss=dataclasses.replace(given.loss, drop_pose=0.2),
    )
