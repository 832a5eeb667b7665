"""Turn a model of others into a composer's folder, or a composer's folder into one of another precision.

python -m infer.convert stable-diffusion-v1-5 outputs/sd15 --dtype bfloat16

python -m infer.convert v1-5-pruned-emaonly.safetensors outputs/sd15 --tokenizer stable-diffusion-v1-5/tokenizer

SRC: a Stable Diffusion 1.x or 2.x folder as diffusers writes it, an inpainting one, a single file of 1.x, a composer's
folder, mini, or a name on the Hugging Face Hub. DST is written whole or not at all; diffusers and transformers open its
parts. What is missing, unused or of another shape is listed all at once.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fcjax.cli import run
from fcjax.config import Condition


@dataclass(frozen=True)
class Request:
    """What to read and what to write."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """How tensors are stored; by default as they are."""
    condition: Condition | None = None
    """What the model is to be told beside text and assets: a pose, a person to dress (tryon), or both (posed_tryon); by
    default a pose, for an inpainting model tryon. A composer's own folder keeps its pose, or becomes one to be trained
    for try-on."""
    binding: Literal["none", "conv_in", "smallest", "all"] | None = None
    """The binder of a model of others; by default all."""
    appearance: Literal["reference_unet", "controlnet", "image_encoder"] = "reference_unet"
    """What encodes the assets, to be trained: the paper's reference UNet, or one of what it is compared with."""
    image_encoder: str | None = None
    """DINOv2's folder or its name on the Hub, for --appearance image_encoder."""
    clip_skip: int = 0
    """How many of the text encoder's last layers to leave out, for weights that were trained so."""
    tokenizer: Path | None = None
    """A tokenizer folder, where SRC has none."""
    shared_with: Path | None = None
    """Another model folder: parts that are the same there are not written again but named, as seen from DST."""


def main(request: Request) -> None:
    """Reads, says what was found, and writes."""
    import jax

    from fcjax import folder, pretrained, trees
    from fcjax.appearance import encoded
    from fcjax.tokenizer import Tokenizer

    destination = request.destination
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} exists already; give a new folder, so that nothing is lost")
    if request.binding not in (None, "none") and request.appearance != "reference_unet":
        raise ValueError(f"a {request.appearance} has no keys and values to bind: leave --binding out")
    if request.shared_with is not None:
        folder.read_index(request.shared_with)
    model = pretrained.load(
        pretrained.locate(request.source),
        condition=request.condition,
        binding=request.binding,
        clip_skip=request.clip_skip,
        dtype=request.dtype,
    )
    if request.appearance != "reference_unet" or request.image_encoder is not None:
        model = encoded(model, request.appearance, request.image_encoder)
    tokenizer = request.tokenizer or model.tokenizer
    if tokenizer is None:
        raise ValueError(f"{request.source} holds no tokenizer: give one with --tokenizer FOLDER")
    config = model.config
    Tokenizer.load(tokenizer).check(config.text_encoder)
    print(f"found: {model.found}")
    if model.left:
        averages = sum(key.startswith("model_ema.") for key in model.left)
        print(f"  left aside: {len(model.left)} tensors of no network, {averages} of them averages (model_ema.)")
    for name, part in model.params.items():
        dtypes = sorted({leaf.dtype.name for leaf in jax.tree.leaves(part)})
        print(f"  {name:15} {trees.count(part) / 1e6:8.1f} M parameters  {', '.join(dtypes)}")
    print(
        f"  condition {config.condition}, binding {config.binder.variant}, pictures of {config.height}x{config.width}"
    )
    behind = ", ".join(["the body map"] * config.takes_pose + ["the person's latents, the mask"] * config.tries_on)
    print(f"  unet reads {config.unet.in_channels} channels: noise, {behind}; weights that the source lacks are 0")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as aside:
        written = Path(aside) / "model"
        folder.save(written, model.params, config, dtype=None)
        shutil.copytree(tokenizer, written / "tokenizer")
        if request.shared_with is not None:
            shared = folder.share_parts(written, request.shared_with, destination)
            print(f"shared with {request.shared_with}: {', '.join(shared) or 'nothing'}")
        written.replace(destination)
    print(f"wrote {destination}")


if __name__ == "__main__":
    run(main)
