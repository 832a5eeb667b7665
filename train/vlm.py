"""Captions and phrases by a vision-language model of transformers, where a data set's own are not wanted.

Any model that transformers' AutoModelForImageTextToText loads and whose processor has a chat template: a name on the
Hub or a folder. It needs torch, which is an extra: pip install 'fcjax[vision]'.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from train.chat import Chat, cleaned, holding, needed_torch

PHRASE_QUESTION = (
    "This picture shows one {kind}. Answer with a short noun phrase for it that names its colour and pattern, such as "
    "'a red striped shirt': at most six words, nothing else."
)
CAPTION_QUESTION = (
    "Describe the person in this picture in one sentence of at most forty words: looks, pose, clothes and background."
)
WORDS = " Use exactly these words for what they wear: {phrases}."


class Describer(Chat):
    """A vision-language model that answers questions on a picture.

    ValueError where torch is missing and where `name` is no such model; OSError where it cannot be read.
    """

    def __init__(self, name: str, max_new_tokens: int = 80):
        needed_torch("--captions-by")
        from transformers import AutoModelForImageTextToText, AutoProcessor

        super().__init__(name, AutoProcessor, AutoModelForImageTextToText, "a vision-language model", max_new_tokens)

    def answer(self, picture: UInt8[np.ndarray, "h w c"], question: str) -> str:
        """The model's likeliest words, in one line. Transparent pictures are put on white."""
        return self.said([{"type": "image", "image": _on_white(picture)}, {"type": "text", "text": question}])

    def phrase(self, asset: Any) -> str:
        """A phrase for an asset. ValueError where the model gives none."""
        return cleaned(self.answer(asset.picture, PHRASE_QUESTION.format(kind=asset.kind)), asset.kind)

    def caption(self, image: UInt8[np.ndarray, "h w 3"], phrases: Sequence[str] = ()) -> str:
        """A sentence on the person, which is to use the phrases, if any are given."""
        words = WORDS.format(phrases=", ".join(map(repr, phrases))) if phrases else ""
        return self.answer(image, CAPTION_QUESTION + words).rstrip(" .")

    def describe(self, sample: Any) -> tuple[str, list[str]]:
        """A caption of the person and a phrase for every asset, word for word in the caption.

        ValueError where the model gives no phrase.
        """
        phrases = [self.phrase(asset) for asset in sample.assets]
        return holding(self.caption(sample.image, phrases), phrases), phrases


@functools.cache
def load_describer(name: str) -> Describer:
    """The model, read once by each process."""
    return Describer(name)


def _on_white(picture: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    image = Image.fromarray(picture)
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
