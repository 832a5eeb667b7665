"""Captions and phrases by rule, where a data set has none: colours measured on the garments' own pixels.

"A woman with brown hair wearing a red and white striped top, blue pants and black shoes."
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from fcjax.cutout import cut_out
from fcjax.data.sources.sample import Part, RawAsset, RawSample
from fcjax.metrics.color import ciede2000, lab
from fcjax.metrics.palette import LIGHTNESS_SCALE, Palette, asset_palette, region_palette
from fcjax.wardrobe.palette import COLORS, middle
from fcjax.wardrobe.people import HAIR_COLORS

SECOND = 0.3
"""The share of a garment from which a second colour is named."""
APART = 25.0
"""CIEDE2000 from which a second colour is no shade of the first."""
LEAST_HAIR = 0.0005
"""The share of the picture from which hair has a colour."""
# Colours that photographs show and Wardrobe does not name.
_MORE = {"light blue": (0.62, 0.75, 0.90), "dark grey": (0.27, 0.27, 0.28), "light grey": (0.78, 0.78, 0.78)}
NOUNS = {"upper": "top", "lower": "lower garment", "outer": "coat", "bottom": "lower garment"}
"""What kinds of assets are called whose names are no words for them."""


def describe(sample: RawSample) -> tuple[str, list[str]]:
    """A caption, and a phrase for every asset that stands in it word for word.

    Phrases and a caption that the sample has are kept; where its caption lacks a phrase, a sentence with all of them
    goes before it. ValueError for a picture of an asset in which nothing is seen.
    """
    looks = _person(sample)
    phrases = [asset.phrase or (looks if asset.kind == "face" else phrase_of(asset)) for asset in sample.assets]
    faces = [phrase for asset, phrase in zip(sample.assets, phrases, strict=True) if asset.kind == "face"]
    worn = [phrase for asset, phrase in zip(sample.assets, phrases, strict=True) if asset.kind != "face"]
    sentence = listed(faces) if faces else looks
    if worn:
        sentence += f" wearing {listed(worn)}"
    sentence = f"{sentence[0].upper()}{sentence[1:]}."
    return sentence if sample.caption is None else f"{sentence} {sample.caption}", phrases


def phrase_of(asset: RawAsset) -> str:
    """A noun phrase: its colour, what else is known of it, its name."""
    noun = asset.noun or NOUNS.get(asset.kind, asset.kind)
    words = [asset.color or measured_color(asset), *asset.adjectives, noun]
    return with_article(" ".join(word for word in words if word))


def measured_color(asset: RawAsset) -> str:
    """The name of the colour that most of its pixels show, and of a second that many do: "red and white"."""
    return color_names(asset_palette(cut_out(Image.fromarray(asset.picture), asset.kind, whole=False)))


def color_names(palette: Palette) -> str:
    """What people call a palette's main colour, or its two."""
    names, references = _references()
    nearest = ciede2000(palette.colors[:, None], references).argmin(axis=1)
    shares = np.bincount(nearest, palette.shares, len(names))
    first, second = np.argsort(-shares, kind="stable")[:2]
    # Folds and shading darken cloth, which makes no second colour of it.
    apart = ciede2000(references[first], references[second], LIGHTNESS_SCALE) >= APART
    return f"{names[first]} and {names[second]}" if shares[second] >= SECOND and apart else names[first]


@functools.cache
def _references() -> tuple[list[str], Float[ndarray, "n 3"]]:
    colors = {**{name: middle(name) for name in COLORS}, **_MORE}
    return list(colors), lab(np.array(list(colors.values())))


def _person(sample: RawSample) -> str:
    """The person, with the colour of the hair where it is seen."""
    person = with_article(sample.person)
    if sample.parse is None:
        return person
    hair = sample.parse == Part.HAIR
    palette = region_palette(sample.image, hair) if hair.mean() >= LEAST_HAIR else None
    if palette is None:
        return person
    names = list(HAIR_COLORS)
    distances = ciede2000(palette.colors[0], lab(np.array([HAIR_COLORS[name] for name in names])))
    return f"{person} with {names[int(distances.argmin())]} hair"


def with_article(words: str) -> str:
    """ "a red shirt", "an orange skirt", "blue pants"."""
    last = words.split()[-1]
    if last.endswith("s") and not last.endswith("ss"):
        return words
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


def listed(phrases: Sequence[str]) -> str:
    """ "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
