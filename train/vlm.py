"""Captions and phrases by a vision-language model of transformers, where a data set's own are not wanted.

Any model that transformers' AutoModelForImageTextToText loads and whose processor has a chat template: a name on the
Hub or a folder. It needs torch, which is an extra: pip install 'fcjax[vision]'.
"""

import functools
import re
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MOST_WORDS = 12
"""A phrase of more words is no phrase."""
PHRASE_QUESTION = (
    "This picture shows one {kind}. Answer with a short noun phrase for it that names its colour and pattern, such as "
    "'a red striped shirt': at most six words, nothing else."
)
CAPTION_QUESTION = (
    "Describe the person in this picture in one sentence of at most forty words: looks, pose, clothes and background. "
    "Use exactly these words for what they wear: {phrases}."
)


class Describer:
    """A vision-language model that answers questions on a picture, always the same way.

    ValueError where torch is missing and where `name` is no such model; OSError where it cannot be read.
    """

    def __init__(self, name: str, max_new_tokens: int = 80):
        torch = needed_torch("--captions-by")
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            processor: Any = AutoProcessor.from_pretrained(name)
            model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
        except ValueError as error:
            raise ValueError(f"expected a vision-language model, got {name}: {str(error).splitlines()[0]}") from error
        if not getattr(processor, "chat_template", None):
            raise ValueError(f"{name} cannot be asked: its processor has no chat template; name a model made for chat")
        self.processor, self.max_new_tokens = processor, max_new_tokens
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.to(self.device).eval()

    def answer(self, picture: UInt8[np.ndarray, "h w c"], question: str) -> str:
        """The model's likeliest words, in one line. Transparent pictures are put on white."""
        content = [{"type": "image", "image": _on_white(picture)}, {"type": "text", "text": question}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.device, dtype=self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        text = self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        return " ".join(text.split())

    def describe(self, sample: Any) -> tuple[str, list[str]]:
        """A caption of the person and a phrase for every asset, word for word in the caption.

        ValueError where the model gives no phrase.
        """
        phrases = [
            cleaned(self.answer(asset.picture, PHRASE_QUESTION.format(kind=asset.kind)), asset.kind)
            for asset in sample.assets
        ]
        wanted = ", ".join(repr(phrase) for phrase in phrases)
        caption = self.answer(sample.image, CAPTION_QUESTION.format(phrases=wanted)).rstrip(" .")
        for phrase in phrases:
            # Choice: what the model did not take up stands behind its sentence.
            if phrase.lower() not in caption.lower():
                caption = f"{caption}, {phrase}".lstrip(", ")
        return caption, phrases


@functools.cache
def load_describer(name: str) -> Describer:
    """The model, read once by each process."""
    return Describer(name)


def cleaned(answer: str, kind: str) -> str:
    """A noun phrase from an answer: its first sentence without quotation marks. ValueError where that is none."""
    phrase = re.split(r"[.;:!?\n]", answer.strip(" \"'`.*-"))[0].strip(" \"'`,*-")
    phrase = re.sub(r"^(this|it|that) is ", "", phrase, flags=re.IGNORECASE)
    words = phrase.split()
    if not re.search(r"\w", phrase) or len(words) > MOST_WORDS:
        raise ValueError(f"the vision-language model gave no phrase for the {kind}, but {answer!r}")
    return " ".join(words)


def needed_torch(flag: str) -> Any:
    """torch, or ValueError saying which extra holds it."""
    try:
        import torch
    except ImportError:
        raise ValueError(f"{flag} needs torch: pip install 'fcjax[vision]'") from None
    return torch


def _on_white(picture: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    image = Image.fromarray(picture)
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
