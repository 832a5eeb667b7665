"""How like pictures are to a network: CLIP-I, CLIP-T, DINO and DINOv2 similarity, and faces by an embedder of yours.

All are cosines of embeddings, times 100. Networks see squares, and what becomes of a portrait's upper and lower end
moves the figure, so the variant belongs beside it:

- whole: the shorter side to the network's size, then the square in the middle, as the networks' own processors do (a
  quarter of a 3:4 portrait is not seen);
- padded: all of the picture on a white square;
- masked: what a mask shows on white, cut to its box, then padded.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from numpy import ndarray
from PIL import Image

from fcjax.local_devices import shared_out
from fcjax.metrics.networks.vit import Encoder, open_clip, open_dino
from fcjax.models.dino import DEVIATION, MEAN
from fcjax.tokenizer import Tokenizer

Variant = Literal["whole", "padded", "masked"]
VARIANTS: tuple[Variant, ...] = ("whole", "padded", "masked")
CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESIZED = 256
"""The shorter side to which DINO's pictures are brought before their middle 224 pixels are cut out."""
_BATCH = 16
Picture = UInt8[ndarray, "h w 3"]
Embedder = Callable[[Picture], Float[ndarray, "d"] | None]
"""A face's vector; None of a picture without one."""


class Similarity:
    """Embeddings of pictures, and of texts where the network has them. By `load_clip` and `load_dino`."""

    def __init__(
        self,
        encoder: Encoder,
        resized: int,
        mean: Sequence[float],
        deviation: Sequence[float],
        tokenizer: Tokenizer | None,
    ):
        self.encoder, self.resized, self.tokenizer = encoder, resized, tokenizer
        self._mean, self._deviation = np.asarray(mean, np.float32), np.asarray(deviation, np.float32)

    def images(
        self,
        pictures: Sequence[Picture],
        variant: Variant = "whole",
        masks: Sequence[Bool[ndarray, "h w"]] | None = None,
    ) -> Float32[ndarray, "n d"]:
        """Embeddings of length 1. masks: for "masked", of each picture's size. ValueError where they do not fit."""
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; expected one of {', '.join(VARIANTS)}")
        if (variant == "masked") != (masks is not None) or (masks is not None and len(masks) != len(pictures)):
            raise ValueError('a mask for every picture belongs to the variant "masked", and to it alone')
        shown = pictures if masks is None else [cut(one, mask) for one, mask in zip(pictures, masks, strict=True)]
        pixels = [self.prepared(picture, padded=variant != "whole") for picture in shown]
        found = [
            np.asarray(self.encoder.pictures(shared_out(np.stack(pixels[start : start + _BATCH]))))
            for start in range(0, len(pixels), _BATCH)
        ]
        return _unit(np.concatenate(found))

    def prepared(self, picture: Picture, padded: bool = False) -> Float32[ndarray, "s s 3"]:
        """A picture as the network reads it."""
        size = self.encoder.size
        if padded:
            image = Image.fromarray(squared(picture)).resize((size, size), Image.Resampling.BICUBIC)
        else:
            height, width = picture.shape[:2]
            # As the processors round: the longer side is cut to whole pixels.
            short, long = self.resized, int(self.resized * max(height, width) / min(height, width))
            across, down = (short, long) if height >= width else (long, short)
            image = Image.fromarray(picture).resize((across, down), Image.Resampling.BICUBIC)
            left, top = (across - size) // 2, (down - size) // 2
            image = image.crop((left, top, left + size, top + size))
        return (np.asarray(image, np.float32) / 255 - self._mean) / self._deviation

    def texts(self, texts: Sequence[str]) -> Float32[ndarray, "n d"]:
        """CLIP's embeddings of length 1 of texts, cut to 77 tokens. ValueError for a network without texts."""
        if self.encoder.texts is None or self.tokenizer is None:
            raise ValueError(f"{self.encoder.folder} embeds pictures alone; texts are CLIP's")
        ids = np.stack([self.tokenizer.encode(text) for text in texts])
        return _unit(np.asarray(self.encoder.texts(jnp.asarray(ids))))


def load_clip(source: str | Path = "openai/clip-vit-base-patch32") -> Similarity:
    """CLIP of a folder of transformers, or of a name on the Hub (DreamBooth's CLIP-I and CLIP-T are ViT-B/32's)."""
    encoder = open_clip(source)
    return Similarity(encoder, encoder.size, CLIP_MEAN, CLIP_DEVIATION, Tokenizer.load(encoder.folder))


def load_dino(source: str | Path = "facebook/dino-vits16") -> Similarity:
    """DINO or DINOv2 (facebook/dinov2-base) of a folder of transformers, or of a name on the Hub."""
    return Similarity(open_dino(source), RESIZED, MEAN, DEVIATION, None)


def similarity(first: Float[ndarray, "n d"], second: Float[ndarray, "n d"]) -> Float[ndarray, "n"]:
    """100 times the cosine of each pair of embeddings of length 1."""
    return 100 * np.sum(first.astype(np.float64) * second.astype(np.float64), axis=1)


def squared(picture: Picture) -> Picture:
    """All of a picture on a white square, in its middle."""
    height, width = picture.shape[:2]
    side = max(height, width)
    page = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    page[top : top + height, left : left + width] = picture
    return page


def cut(picture: Picture, mask: Bool[ndarray, "h w"]) -> Picture:
    """What the mask shows on white, cut to its box. ValueError for an empty mask, or one of another size."""
    if mask.shape != picture.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the picture {picture.shape[:2]} (height, width)")
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise ValueError("the mask is empty: nothing of the picture is left to compare")
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.where(mask[box][..., None], picture[box], np.uint8(255))


def load_embedder(name: str) -> Embedder:
    """The face embedder that "MODULE:FUNCTION" names, of pictures uint8 (h, w, 3) to vectors (None where it finds no
    face). ValueError for none.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} names no embedder: MODULE:FUNCTION is expected ({error})") from error
    if not callable(found):
        raise ValueError(f"{name!r} is no function")
    return found  # pyright: ignore[reportReturnType] (what it returns is seen when it is called)


def face_similarity(embed: Embedder, first: Picture, second: Picture) -> float | None:
    """100 times the cosine of two faces' embeddings, None where one of the pictures shows the embedder no face.

    ValueError where they are no vectors of one length.
    """
    found = [embed(picture) for picture in (first, second)]
    if any(vector is None for vector in found):
        return None
    one, other = (np.asarray(vector, np.float64) for vector in found)
    if one.ndim != 1 or one.shape != other.shape or not np.linalg.norm(one) * np.linalg.norm(other) > 0:
        raise ValueError(f"an embedder gives vectors of one length, not zero; got {one.shape} and {other.shape}")
    return float(100 * (one @ other) / (np.linalg.norm(one) * np.linalg.norm(other)))


def _unit(vectors: Float[ndarray, "n d"]) -> Float32[ndarray, "n d"]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
