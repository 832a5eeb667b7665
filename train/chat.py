"""Models of transformers that are asked and answer in words, and phrases made of their answers."""

import re
from collections.abc import Sequence
from typing import Any

MOST_WORDS = 12
"""A phrase of more words is no phrase."""


class Chat:
    """A model that answers always the same way: its likeliest words.

    Args:
        name: on the Hub, or a folder.
        reader, model: transformers' classes that read its tokenizer or processor, and the model.
        kind: what is expected, for the error: "a vision-language model".

    ValueError where `name` is no such model, or none made for chat; OSError where it cannot be read.
    """

    def __init__(self, name: str, reader: Any, model: Any, kind: str, max_new_tokens: int):
        import torch

        try:
            self.reader: Any = reader.from_pretrained(name)
            loaded: Any = model.from_pretrained(name, dtype="auto")
        except ValueError as error:
            raise ValueError(f"expected {kind}, got {name}: {str(error).splitlines()[0]}") from error
        if not getattr(self.reader, "chat_template", None):
            raise ValueError(f"{name} cannot be asked: it has no chat template; name a model made for chat")
        self.max_new_tokens = max_new_tokens
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = loaded.to(self.device).eval()

    def said(self, content: str | Sequence[dict[str, Any]], **template: Any) -> str:
        """The answer to one message, in one line. template: variables of the chat template."""
        from transformers import BatchFeature

        read = self.reader.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **template,
        )
        inputs: Any = BatchFeature(dict(read)).to(self.device, dtype=self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        text = self.reader.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        return " ".join(text.split())


def cleaned(answer: str, kind: str) -> str:
    """A noun phrase from an answer: its first sentence without quotation marks. ValueError where that is none."""
    phrase = re.split(r"[.;:!?\n]", answer.strip(" \"'`.*-"))[0].strip(" \"'`,*-")
    phrase = re.sub(r"^(this|it|that) is ", "", phrase, flags=re.IGNORECASE)
    words = phrase.split()
    if not re.search(r"\w", phrase) or len(words) > MOST_WORDS:
        raise ValueError(f"the model gave no phrase for the {kind}, but {answer!r}")
    return " ".join(words)


def holding(caption: str, phrases: Sequence[str]) -> str:
    """The caption with every phrase in it."""
    for phrase in phrases:
        # Choice: what a caption does not have stands behind it.
        if phrase.lower() not in caption.lower():
            caption = f"{caption.rstrip(' .')}, {phrase}".lstrip(", ")
    return caption


def needed_torch(flag: str) -> Any:
    """torch, or ValueError saying which extra holds it."""
    try:
        import torch
    except ImportError:
        raise ValueError(f"{flag} needs torch: pip install 'fcjax[vision]'") from None
    return torch
