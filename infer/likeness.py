"""How like its assets and its words a picture is to networks: CLIP-I, CLIP-T, DINO, and faces, as figures of a set."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from fcjax.metrics.scores import FACE
from fcjax.metrics.similarity import VARIANTS, Similarity, Variant, face_similarity, load_embedder, similarity
from infer.sets import EvaluationSet

Picture = UInt8[ndarray, "h w 3"]
Measure = Callable[[Picture, EvaluationSet], list[float]]
"""Values of one picture of a set: one a picture, or one an asset."""
NOTHING: Mapping[str, tuple[str, Measure]] = MappingProxyType({})


def on_white(image: UInt8[ndarray, "h w 4"]) -> Picture:
    """An asset's picture on white."""
    share = image[..., 3:].astype(np.float32) / 255
    return np.round(image[..., :3] * share + 255 * (1 - share)).astype(np.uint8)


def likeness(clip: str | None, dino: str | None, faces: str | None) -> Mapping[str, tuple[str, Measure]]:
    """The figures that these networks give, by name, with their words in a table. ValueError where one cannot be had.

    clip, dino: folders of transformers or names on the Hub. faces: MODULE:FUNCTION, see `load_embedder`; it is given
    the whole picture, in which it has to find the face.
    """
    from fcjax.metrics.similarity import load_clip, load_dino

    found: dict[str, tuple[str, Measure]] = {}
    for name, words, network in (
        ("clip_i", "CLIP-I", None if clip is None else load_clip(clip)),
        ("dino", f"DINO ({Path(dino).name})" if dino else "", None if dino is None else load_dino(dino)),
    ):
        if network is not None:
            for variant in VARIANTS:
                found[f"{name}_{variant}"] = f"{words}, {variant}", _to_assets(network, variant)
            if network.tokenizer is not None:
                found["clip_t"] = "CLIP-T", _to_words(network)
    if faces is not None:
        embed = load_embedder(faces)

        def to_face(picture: Picture, one: EvaluationSet) -> list[float]:
            return [
                face_similarity(embed, on_white(one.assets[place].image), picture)
                for place, kind in enumerate(one.target.kinds)
                if kind == FACE
            ]

        found["face_similarity"] = "face similarity", to_face
    return found


def _to_assets(network: Similarity, variant: Variant) -> Measure:
    """Of the picture, or of what it shows of an asset, to each of its garments' pictures."""

    def measure(picture: Picture, one: EvaluationSet) -> list[float]:
        places = [
            place
            for place, kind in enumerate(one.target.kinds)
            if kind != FACE and (variant != "masked" or (one.target.regions == place + 1).any())
        ]
        if not places:
            return []
        assets = [on_white(one.assets[place].image) for place in places]
        if variant != "masked":
            shown = np.repeat(network.images([picture], variant), len(places), axis=0)
            return similarity(network.images(assets, variant), shown).tolist()
        regions = [one.target.regions == place + 1 for place in places]
        garments = [one.assets[place].image[..., 3] > 127 for place in places]
        shown = network.images([picture] * len(places), variant, regions)
        return similarity(network.images(assets, variant, garments), shown).tolist()

    return measure


def _to_words(network: Similarity) -> Measure:
    def measure(picture: Picture, one: EvaluationSet) -> list[float]:
        return similarity(network.images([picture]), network.texts([one.prompt])).tolist()

    return measure
