"""How like its assets and its words a picture is to networks: CLIP-I, CLIP-T, DINO, and faces, as figures of a set."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from fcjax.metrics.networks.vit import FILES
from fcjax.metrics.networks.weights import digest
from fcjax.metrics.scores import FACE
from fcjax.metrics.similarity import (
    VARIANTS,
    Embedder,
    Similarity,
    Variant,
    face_similarity,
    load_clip,
    load_dino,
    load_embedder,
    similarity,
)
from fcjax.pretrained import locate
from infer.sets import EvaluationSet

Picture = UInt8[ndarray, "h w 3"]
Measure = Callable[[Picture, EvaluationSet], list[float]]
"""Values of one picture of a set: one a picture, or one an asset."""
NOTHING: Mapping[str, tuple[str, Measure]] = MappingProxyType({})


def on_white(image: UInt8[ndarray, "h w 4"]) -> Picture:
    """An asset's picture on white."""
    share = image[..., 3:].astype(np.float32) / 255
    return np.round(image[..., :3] * share + 255 * (1 - share)).astype(np.uint8)


def likeness(
    clip: str | None = None, dino: Sequence[str] = (), faces: str | None = None
) -> Mapping[str, tuple[str, Measure]]:
    """The figures that these networks give, by name, with their words in a table. ValueError where one cannot be had.

    clip, dino: folders of transformers or names on the Hub. faces: MODULE:FUNCTION, see `load_embedder`; it is given
    the whole picture, in which it has to find the face. Faces that it does not find are counted, without a similarity.
    """
    names = [Path(one).name for one in dino]
    if len(set(names)) < len(names):
        raise ValueError(f"--dino names networks by their folders, which must differ; got {', '.join(dino)}")
    found: dict[str, tuple[str, Measure]] = {}
    sources = [("--clip", clip, "clip_i", "CLIP-I", load_clip)] if clip is not None else []
    sources += [("--dino", one, name, f"DINO ({name})", load_dino) for one, name in zip(dino, names, strict=True)]
    for flag, source, name, words, load in sources:
        network = _had(flag, source, load)
        for variant in VARIANTS:
            found[f"{name}_{variant}"] = f"{words}, {variant}", _to_assets(network, variant)
        if network.tokenizer is not None:
            found["clip_t"] = "CLIP-T", _to_words(network)
    if faces is not None:
        to_faces = _Faces(load_embedder(faces))
        found["face_similarity"] = "face similarity", to_faces.similarity
        found["face_found"] = "share of faces that the embedder finds", to_faces.found
    return found


def digests(sources: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the weights of the networks that `likeness` takes."""
    return {source: digest(locate(source, FILES)) for source in sources}


def _had(flag: str, source: str, load: Callable[[str], Similarity]) -> Similarity:
    try:
        return load(source)
    except (ValueError, OSError) as error:
        lost = "CLIP-I and CLIP-T" if flag == "--clip" else "the similarity by it"
        raise ValueError(
            f"{flag} {source} cannot be had: {error}. {flag} takes a folder of transformers, or a name on the Hub that "
            f"its cache holds; without {flag} all figures but {lost} still run"
        ) from error


class _Faces:
    """Figures of the faces of a set: of each whether it was found on both pictures, and how like they are."""

    def __init__(self, embed: Embedder):
        self._embed = embed
        self._last: tuple[Picture | None, list[float | None]] = (None, [])

    def _values(self, picture: Picture, one: EvaluationSet) -> list[float | None]:
        """Of the picture last asked for they are kept, as both figures ask."""
        if self._last[0] is not picture:
            places = [place for place, kind in enumerate(one.target.kinds) if kind == FACE]
            assets = [on_white(one.assets[place].image) for place in places]
            self._last = picture, [face_similarity(self._embed, asset, picture) for asset in assets]
        return self._last[1]

    def similarity(self, picture: Picture, one: EvaluationSet) -> list[float]:
        return [value for value in self._values(picture, one) if value is not None]

    def found(self, picture: Picture, one: EvaluationSet) -> list[float]:
        return [float(value is not None) for value in self._values(picture, one)]


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
