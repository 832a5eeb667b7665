"""A prepared sample as the arrays of one training example, from latents or from pictures."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float16, Float32, UInt8
from PIL import Image

from fcjax.assets import owned_tokens, token_masks
from fcjax.body import atlas_uv, load_densepose_symmetry, rest_places
from fcjax.config import ComposerConfig
from fcjax.data.augment import AS_THEY_ARE, Augmentation
from fcjax.tokenizer import PromptTokens, Tokenizer

Sample = dict[str, Any]
Transform = Callable[[Sample, np.random.Generator], dict[str, np.ndarray]]


def example_of(
    model: ComposerConfig, tokenizer: Tokenizer, index: Mapping[str, Any], augment: Augmentation = AS_THEY_ARE
) -> Transform:
    """What turns a decoded sample of the set with this index, and a generator, into `composing_loss`'s arrays.

    From a set of pictures there are `images` and `canvases` uint8 (H, W, 3) in place of latents. Every time it chooses
    one of the sample's layouts. ValueError for an `augment` that latents, made once, cannot follow, and where its table
    of symmetry cannot be read.
    """
    latents, layouts = index["source"] == "latents", index["settings"]["layouts"]
    empty_ids = tokenizer.encode("", model.text_encoder.max_position_embeddings)
    if latents and augment != AS_THEY_ARE:
        raise ValueError(
            f"latents cannot be changed by {augment}: train on the set of pictures, or leave the augmentation out"
        )
    if latents and model.canvas_in_pixels:
        raise ValueError(
            "the image encoder reads the canvas's pixels: train on the set of pictures, not on its latents"
        )
    densepose = None if augment.symmetry is None else load_densepose_symmetry(augment.symmetry)

    def transform(sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if not latents and augment != AS_THEY_ARE:
            if not model.takes_pose:
                # No map is read, and none need be mirrored.
                sample = {name: value for name, value in sample.items() if name != "iuv"}
            sample = augment(sample, rng, densepose)
        layout = int(rng.integers(layouts))
        tokens = prompt_tokens(tokenizer, sample, model)
        read = _from_latents if latents else _from_pictures
        shown = _posed(sample, model, latents) if model.takes_pose else {}
        if model.tries_on:
            shown |= _worn(sample, model, latents)
        text = {"ids": tokens.ids, "empty_ids": empty_ids, "spans": tokens.spans}
        if latents and "embeddings" in sample:
            if not np.array_equal(tokens.ids, sample["ids"]):
                raise ValueError(
                    f"the embeddings of {sample['caption']!r} were made of other tokens: train with the tokenizer of "
                    "the model folder that the latents were prepared with"
                )
            text["text"] = sample["embeddings"].astype(np.float32)
        example = {**read(sample, layout, model), **shown, **text}
        # The denoiser does not look at assets without a phrase.
        example["masks"] = example["masks"] * (tokens.spans.sum(axis=1) > 0)[:, None, None]
        return example

    return transform


def prompt_tokens(tokenizer: Tokenizer, sample: Sample, model: ComposerConfig) -> PromptTokens:
    """A sample's caption and phrases.

    Choice: what does not fit the prompt, or the model's number of assets, is left out, as one sample of many thousands
    must not end a run.
    """
    length = model.text_encoder.max_position_embeddings
    return tokenizer.encode_prompt(sample["caption"], sample["phrases"], model.max_assets, length, strict=False)


def _from_latents(sample: Sample, layout: int, model: ComposerConfig) -> dict[str, np.ndarray]:
    return {
        "latents": sample["image"].astype(np.float32),
        "canvas": sample[f"canvas{layout}"].astype(np.float32),
        "masks": sample[f"masks{layout}"].astype(np.float32) / 255.0,
        "foreground": sample["foreground"].astype(np.float32) / 255.0,
        "matches": sample[f"matches{layout}"].astype(np.float32),
    }


def _from_pictures(sample: Sample, layout: int, model: ComposerConfig) -> dict[str, np.ndarray]:
    return {
        "images": fitted(sample["image"], model.height, model.width),
        "canvases": fitted(sample[f"canvas{layout}"], model.height, model.width),
        "masks": asset_tokens(sample, layout, model),
        "foreground": person_tokens(sample, model),
        "matches": matches(sample, layout, model).astype(np.float32),
    }


def _posed(sample: Sample, model: ComposerConfig, latents: bool) -> dict[str, np.ndarray]:
    uv = atlas_uv(sample["iuv"] if latents else pose_points(sample["iuv"], model))
    return {"uv": uv, "places": rest_places(uv)}


def _worn(sample: Sample, model: ComposerConfig, latents: bool) -> dict[str, np.ndarray]:
    """The cloth-agnostic person and the mask."""
    mask = fitted(sample["mask"], model.height, model.width).astype(np.float32) / 255.0
    # Choice: what is to be painted counts as the foreground; the rest is seen and need not be learnt.
    shown = {"person_masks": mask, "foreground": token_masks(mask[None], model.latent_height, model.latent_width)[0]}
    if latents:
        return {**shown, "person_latents": sample["agnostic"].astype(np.float32)}
    return {**shown, "persons": fitted(sample["agnostic"], model.height, model.width)}


# ---------------------------------------------------------------------------------------------------------------------
# Pictures at the resolution of the models' tokens


def latent_sizes(model: ComposerConfig) -> dict[str, int]:
    """What latents, made once, must have in common with the model that is trained on them."""
    sizes = {name: getattr(model, name) for name in ("height", "width", "max_assets", "pose_patch")}
    return {**sizes, "matched_rows": model.latent_height >> min(model.unet.attention_levels)}


def asset_tokens(sample: Sample, layout: int, model: ComposerConfig) -> Float32[np.ndarray, "a h w"]:
    """Each asset's share of the canvas's tokens."""
    return owned_tokens(sample[f"owners{layout}"], model.max_assets, model.latent_height, model.latent_width)


def person_tokens(sample: Sample, model: ComposerConfig) -> Float32[np.ndarray, "h w"]:
    """The person's share of the picture's tokens."""
    on_person = sample["foreground"][None].astype(np.float32) / 255.0
    return token_masks(on_person, model.latent_height, model.latent_width)[0]


def pose_points(iuv: UInt8[np.ndarray, "H W 3"], model: ComposerConfig) -> UInt8[np.ndarray, "y x 3"]:
    """The nearest pixels at the points that `pose_channels` reads: part ids and (u, v) must never be averaged."""
    rows, columns = model.latent_height * model.pose_patch, model.latent_width * model.pose_patch
    height, width = iuv.shape[:2]
    row = (np.arange(rows) * 2 + 1) * height // (2 * rows)
    column = (np.arange(columns) * 2 + 1) * width // (2 * columns)
    return iuv[row][:, column]


def matches(sample: Sample, layout: int, model: ComposerConfig) -> Float16[np.ndarray, "h w 2"]:
    """Per token of the person the (x, y) of the canvas, as shares, where the flat shows the same cloth; -1: nowhere.

    At the finest level that has self-attention. A token takes the mean over the pixels of the garment that most of it
    shows, if that is a third of it at least. A set that does not know (all but Wardrobe) has -1 everywhere.
    """
    finest = min(model.unet.attention_levels)
    height, width = model.latent_height >> finest, model.latent_width >> finest
    found = np.full((height, width, 2), -1, np.float16)
    if "origins" not in sample:
        return found
    origins: UInt8[np.ndarray, "H W 3"] = sample["origins"]
    rows, columns = origins.shape[0] // height, origins.shape[1] // width
    cells = origins.reshape(height, rows, width, columns, 3).transpose(0, 2, 1, 3, 4).reshape(height, width, -1, 3)
    most = np.full((height, width), rows * columns / 3)
    for number, (a, b, c, d) in enumerate(sample["placed"][layout], 1):
        own = cells[..., 0] == number
        count = own.sum(axis=-1)
        mean: Float[np.ndarray, "h w 2"] = (cells[..., 1:] * own[..., None]).sum(axis=2)
        mean = mean / np.maximum(count, 1)[..., None] / 255
        found[count >= most] = (mean * [a, c] + [b, d])[count >= most]
        most = np.maximum(most, count)
    return found


def fitted(picture: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture at the model's size, by means of equal squares of pixels."""
    rows, columns = picture.shape[:2]
    factor = rows // height
    if (factor * height, factor * width) != (rows, columns):
        raise ValueError(
            f"the prepared pictures are {rows}x{columns} (height x width), the configuration's {height}x{width}: "
            "prepare pictures of that size or a multiple of it, or name another --config"
        )
    return picture if factor == 1 else np.asarray(Image.fromarray(picture).reduce(factor))
