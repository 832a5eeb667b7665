"""Phrases for assets and captions around them: a small grammar over a closed vocabulary.

A caption holds every asset's phrase word for word. A share of captions names the colour of no garment that is an
asset, so that a model cannot find its place by matching colour words to colours: only the binding of phrase and asset
tells.
"""

import re
from dataclasses import dataclass

import numpy as np

from fcjax.wardrobe.backgrounds import BACKDROPS, Background
from fcjax.wardrobe.palette import COLORS
from fcjax.wardrobe.people import HAIR_COLORS, Person
from fcjax.wardrobe.textures import SINGLE, Fabric

PLURAL = frozenset({"trousers", "jeans", "shorts", "leggings", "tights", "pants", "shoes", "boots", "sneakers"})
# Other words for a garment's own name.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "t-shirt": ("t-shirt", "t-shirt", "tee", "top"),
    "tank top": ("tank top", "top"),
    "top": ("top", "blouse"),
    "shirt": ("shirt", "button shirt", "button-up"),
    "sweater": ("sweater", "jumper", "pullover"),
    "sweatshirt": ("sweatshirt", "hoodie"),
    "trousers": ("trousers", "pants"),
    "jeans": ("jeans",),
    "shorts": ("shorts",),
    "leggings": ("leggings", "tights"),
    "skirt": ("skirt",),
    "dress": ("dress", "gown"),
    "jacket": ("jacket", "blazer"),
    "cardigan": ("cardigan", "jacket"),
    "coat": ("coat",),
    "shoes": ("shoes",),
    "sneakers": ("sneakers", "shoes"),
    "boots": ("boots", "shoes"),
    "hat": ("hat", "sun hat"),
    "cap": ("cap", "hat"),
    "beanie": ("beanie", "hat"),
    "bag": ("bag", "handbag", "purse"),
}
# Other words for a colour's own name.
COLOR_WORDS: dict[str, tuple[str, ...]] = {
    "grey": ("grey", "gray"),
    "purple": ("purple", "violet"),
    "turquoise": ("turquoise", "teal"),
    "beige": ("beige", "cream"),
    "navy": ("navy", "dark blue"),
    "olive": ("olive", "khaki"),
}
ADJECTIVES = {
    "stripes": ("striped",), "vertical": ("vertically striped", "pinstriped"), "diagonal": ("diagonally striped",),
    "checks": ("checked", "gingham"), "plaid": ("plaid", "tartan"), "dots": ("dotted", "polka dot"),
    "gradient": ("gradient", "ombre"), "floral": ("floral", "flowery"), "camouflage": ("camouflage", "camo"),
    "shapes": ("printed",), "zigzag": ("zigzag",), "letters": ("printed",), "logo": ("printed",), "denim": ("denim",),
    "knit": ("knitted",), "lace": ("lace",), "solid": ("plain",),
}  # fmt: skip
WITH = {
    "stripes": "stripes", "vertical": "vertical {} stripes", "diagonal": "diagonal {} stripes", "checks": "checks",
    "dots": "dots", "floral": "flowers", "letters": "letters", "zigzag": "zigzag lines",
}  # fmt: skip
SHAPES = {
    "star": "star", "heart": "heart", "diamond": "diamond", "triangle": "triangle", "cross": "cross", "moon": "moon",
    "circle": "circle", "sun": "sun", "flower": "flower",
}  # fmt: skip
PLACES = {
    "park": ("in a park",),
    "beach": ("on a beach",),
    "brick": ("in front of a brick wall",),
    "street": ("on a street", "in a street"),
}


@dataclass(frozen=True)
class Described:
    """What the grammar may say about one garment."""

    name: str  # a key of SYNONYMS
    fabric: Fabric
    sleeve: str = ""  # "sleeveless" | "short-sleeved" | "long-sleeved"
    length: str = ""  # "long" | "short" | "wide" | "slim"


def article(words: str) -> str:
    return f"an {words}" if words[0] in "aeio" else f"a {words}"


def _colored(described: Described, rng: np.random.Generator, noun: str) -> str:
    """The garment with colours and pattern."""
    fabric = described.fabric
    names = [str(rng.choice(COLOR_WORDS.get(name, (name,)))) for name in fabric.colors]
    first = names[0]
    adjective = str(rng.choice(ADJECTIVES[fabric.pattern]))
    if fabric.pattern in SINGLE:
        plain = fabric.pattern == "solid" or (fabric.pattern == "denim" and noun == "jeans")
        return f"{first} {noun}" if plain and rng.random() < 0.8 else f"{first} {adjective} {noun}"
    second = names[1]
    if fabric.pattern in ("logo", "shapes"):
        shape = SHAPES[fabric.variant]
        many = {"cross": "crosses"}.get(shape, f"{shape}s")
        return f"{first} {noun} with " + (
            article(f"{second} {shape}") if fabric.pattern == "logo" else f"{second} {many}"
        )
    if fabric.pattern == "letters" or (fabric.pattern in WITH and rng.random() < 0.4):
        feature = WITH[fabric.pattern]
        return f"{first} {noun} with " + (feature.format(second) if "{}" in feature else f"{second} {feature}")
    return f"{first} and {second} {adjective} {noun}"


def garment_phrase(described: Described, rng: np.random.Generator, level: str) -> str:
    """A noun phrase for a garment; `level` is "colors", "pattern" (no colours) or "noun" (the garment alone)."""
    noun = str(rng.choice(SYNONYMS[described.name]))
    if level == "colors":
        words = _colored(described, rng, noun)
    elif level == "pattern":
        words = f"{rng.choice(ADJECTIVES[described.fabric.pattern])} {noun}"
    elif level == "noun":
        words = noun
    else:
        raise ValueError(f"level is {level!r}; expected 'colors', 'pattern' or 'noun'")
    extra = described.sleeve or described.length
    if extra and rng.random() < (0.3 if level != "noun" else 0.5):
        words = f"{extra} {words}"
    if noun in PLURAL:
        return words if level != "noun" or rng.random() < 0.6 else f"the {words}"
    return article(words) if rng.random() < 0.85 else f"the {words}"


def swatch_phrase(described: Described, rng: np.random.Generator) -> str:
    """A phrase for a garment whose asset is a piece of its fabric."""
    noun = str(rng.choice(SYNONYMS[described.name]))
    words = f"{noun} {rng.choice(('of', 'in'))} this fabric"
    return words if noun in PLURAL else article(words)


def face_phrase(person: Person, rng: np.random.Generator) -> str:
    return str(rng.choice((f"this {person.noun}", "this face", f"a {person.noun}'s face")))


def person_words(person: Person, rng: np.random.Generator) -> str:
    """The person without a face asset."""
    words = person.noun
    if rng.random() < 0.5:
        words = ("old " if person.sliders["age"] > 0.6 else "young " if person.sliders["age"] < 0.2 else "") + words  # type: ignore[operator]
    features = []
    if person.hair_style == "bald":
        features.append("a bald head")
    else:
        kind = {"long": "long", "wavy": "wavy", "curly": "curly", "short": "short", "cropped": "short"}.get(
            person.hair_style
        )
        if rng.random() < 0.5:
            features.append(f"{kind} {person.hair_color} hair" if kind else f"{person.hair_color} hair")
    if person.beard > 0.7 and rng.random() < 0.6:
        features.append("a beard")
    if person.glasses != "none" and rng.random() < 0.7:
        features.append("glasses")
    if features and rng.random() < 0.7:
        words += " with " + " and ".join(features[:2])
    return article(words)


def background_words(background: Background, rng: np.random.Generator) -> str:
    color = background.color
    if background.kind == "plain":
        return str(
            rng.choice((f"on a plain {color} background", f"on a {color} background", f"in front of a {color} wall"))
        )
    if background.kind == "gradient":
        return f"on a {color} gradient background"
    if background.kind == "room":
        return f"in a room with a {color} wall"
    return str(rng.choice(PLACES[background.kind]))


def list_words(phrases: tuple[str, ...]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def subject_words(person: Person, face: str | None, rng: np.random.Generator) -> str:
    """Who the picture shows: a face asset's phrase stands for the person's features."""
    if face is None:
        return person_words(person, rng)
    if "face" not in face:
        return face
    return f"a {person.noun} with {face}" if face == "this face" else f"a person with {face}"


def caption_words(
    subject: str, worn: tuple[str, ...], carried: tuple[str, ...], view: str, place: str, rng: np.random.Generator
) -> str:
    """The whole caption of the phrases `worn` and `carried`; `view` is "", "the side" or "behind"."""
    opening = str(rng.choice(("", "a photo of ", "a fashion photo of ", "a picture of ")))
    parts = [f"{opening}{subject}"]
    if worn:
        parts.append(f"{rng.choice(('wearing', 'wearing', 'dressed in'))} {list_words(worn)}")
    if carried:
        parts.append(f"{rng.choice(('carrying', 'with'))} {list_words(carried)}")
    words = " ".join(parts)
    if view:
        return f"{words}, seen from {view}, {place}"
    return f"{words}, {place}" if rng.random() < 0.3 else f"{words} {place}"


def vocabulary() -> tuple[str, ...]:
    """Every word that phrases and captions can contain, sorted. Hyphenated words count as one."""
    text = [*COLORS, *HAIR_COLORS, *BACKDROPS, *PLURAL]
    text += [word for group in (*SYNONYMS.values(), *ADJECTIVES.values(), *PLACES.values()) for word in group]
    text += [word for group in COLOR_WORDS.values() for word in group]
    text += [value.replace("{}", "") for value in WITH.values()]
    text += [shape + end for shape in SHAPES.values() for end in ("", "s") if shape + end != "crosss"]
    text += [
        "a an the and of in on with this fabric crosses sleeveless short-sleeved long-sleeved long short wide slim",
        "woman man woman's man's face old young bald head curly wavy short long hair beard glasses",
        "person plain background gradient front wall room photo picture fashion wearing carrying dressed",
        "seen from behind side",
    ]
    return tuple(sorted(set(re.findall(r"[\w'-]+", " ".join(text)))))
