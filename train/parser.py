"""Parse maps by a segmentation model of transformers, where a data set has none or better ones are wanted.

Mask2Former and its kin, SegFormer and its kin, by a name on the Hub or a folder. What the model calls its labels
decides what they mean. It needs torch, which is an extra: pip install 'fcjax[vision]'.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from train.chat import needed_torch

# What models call a label, without sides and punctuation -> what our parse maps may call it, the best name first.
MEANINGS: dict[str, tuple[str, ...]] = {
    "background": ("background",),
    "hat": ("hat",),
    "headwear": ("hat",),
    "hair": ("hair",),
    "glove": ("glove", "gloves"),
    "gloves": ("glove", "gloves"),
    "sunglasses": ("sunglasses", "glasses"),
    "glasses": ("sunglasses", "glasses"),
    "eyeglass": ("sunglasses", "glasses"),
    "upper clothes": ("upper",),
    "upper": ("upper",),
    "upper body clothes": ("upper",),
    "top": ("upper",),
    "shirt": ("upper",),
    "dress": ("dress",),
    "coat": ("coat", "outer", "upper"),
    "outer": ("coat", "outer", "upper"),
    "jacket": ("coat", "outer", "upper"),
    "jumpsuits": ("jumpsuit", "rompers", "dress"),
    "jumpsuit": ("jumpsuit", "rompers", "dress"),
    "rompers": ("rompers", "jumpsuit", "dress"),
    "socks": ("socks",),
    "sock": ("socks",),
    "pants": ("pants",),
    "trousers": ("pants",),
    "leggings": ("leggings", "pants"),
    "skirt": ("skirt",),
    "scarf": ("scarf",),
    "neckwear": ("scarf",),
    "belt": ("belt",),
    "bag": ("bag",),
    "neck": ("neck", "face"),
    "torso skin": ("neck", "face"),
    "face": ("face",),
    "head": ("face",),
    "arm": ("{side}_arm", "arm", "arms"),
    "leg": ("{side}_leg", "leg", "legs"),
    "shoe": ("{side}_shoe", "shoe", "shoes"),
    "shoes": ("shoes", "shoe", "left_shoe"),
    "footwear": ("shoes", "shoe", "left_shoe"),
}


class Parser:
    """A model that labels every pixel of a picture.

    ValueError where torch is missing, where `name` is no such model, and where its labels mean nothing here; OSError
    where it cannot be read.
    """

    def __init__(self, name: str):
        self.torch = torch = needed_torch("--parse-by")
        from transformers import (
            AutoConfig,
            AutoImageProcessor,
            AutoModelForSemanticSegmentation,
            AutoModelForUniversalSegmentation,
        )

        config: Any = AutoConfig.from_pretrained(name)
        # Mask2Former and the like give masks with a class each, SegFormer and the like a class for every pixel.
        kinds: list[Any] = [AutoModelForUniversalSegmentation, AutoModelForSemanticSegmentation]
        kind = next((kind for kind in kinds if type(config) in kind._model_mapping), None)
        if kind is None:
            raise ValueError(f"expected a segmentation model, got {name}, which is a {config.model_type}")
        self.labels = [config.id2label[number] for number in sorted(config.id2label)]
        unknown = [label for label in self.labels if not meant(label)]
        if unknown:
            raise ValueError(
                f"{name} has labels that are no parts of a dressed person: {', '.join(unknown[:5])}; name a model that "
                "was trained to parse people (ATR or LIP labels)"
            )
        self.processor: Any = AutoImageProcessor.from_pretrained(name)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = kind.from_pretrained(name).to(self.device).eval()

    def parse(self, picture: UInt8[np.ndarray, "H W 3"], parts: Mapping[str, int]) -> UInt8[np.ndarray, "H W"]:
        """The number that `parts` gives to what every pixel shows. ValueError where it has no part for a label."""
        numbers = numbered(self.labels, parts)
        inputs = self.processor(images=Image.fromarray(picture), return_tensors="pt").to(self.device)
        with self.torch.inference_mode():
            outputs = self.model(**inputs)
        found = self.processor.post_process_semantic_segmentation(outputs, target_sizes=[picture.shape[:2]])[0]
        return numbers[found.cpu().numpy()]


@functools.cache
def load_parser(name: str) -> Parser:
    """The model, read once by each process."""
    return Parser(name)


def meant(label: str) -> tuple[str, ...]:
    """What our parse maps may call a model's label ("Left-arm", "upper_clothes"), the best name first; () unknown."""
    words = re.split(r"[\W_]+", label.lower())
    side = next((word for word in words if word in ("left", "right")), "left")
    name = " ".join(word for word in words if word not in ("left", "right"))
    return tuple(part.format(side=side) for part in MEANINGS.get(name, ()))


def numbered(labels: Sequence[str], parts: Mapping[str, int]) -> UInt8[np.ndarray, "n"]:
    """The number in `parts` (by lower-case names) of each of a model's labels."""
    numbers = []
    for label in labels:
        name = next((part for part in meant(label) if part in parts), None)
        if name is None:
            raise ValueError(f"no part for the label {label!r}: expected one of {', '.join(meant(label))}")
        numbers.append(parts[name])
    return np.asarray(numbers, np.uint8)
