"""The kinds of assets that data sets and Wardrobe name: where they are worn, and by which words phrases tell them."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcjax.agnostic import Category

KINDS: "Mapping[Category, tuple[str, ...]]" = {
    "upper": ("top", "upper", "upper_body", "shirt", "jacket", "coat", "outer"),
    "lower": ("bottom", "lower", "lower_body", "trousers", "pants", "skirt", "leggings", "shorts"),
    "dress": ("dress", "dresses", "jumpsuit", "rompers"),
}
"""By the categories of `fcjax.agnostic.agnostic_mask`."""
CATEGORY_OF: "Mapping[str, Category]" = {kind: category for category, kinds in KINDS.items() for kind in kinds}
WORDS: Mapping[str, str] = {
    "top": "top shirt t-shirt tshirt tee blouse sweater jumper pullover sweatshirt hoodie vest polo button-up "
    "button-down tank camisole cami singlet tunic turtleneck crewneck henley jersey undershirt bodysuit corset bustier "
    "bra bralette waistcoat knitwear kurta",
    "coat": "coat jacket blazer cardigan parka overcoat raincoat trenchcoat trench windbreaker anorak bomber puffer "
    "fleece gilet overshirt poncho cape cloak outerwear",
    "dress": "dress gown sundress minidress nightgown frock robe bathrobe kimono kaftan sari",
    "jumpsuit": "jumpsuit romper playsuit overalls dungarees onesie suit pantsuit tuxedo swimsuit leotard pyjamas "
    "pajamas",
    "pants": "pants pant trousers trouser jeans jean shorts leggings legging tights stockings chinos sweatpants "
    "joggers slacks culottes khakis corduroys capris breeches bermudas",
    "skirt": "skirt miniskirt skort kilt sarong",
    "upper": "upper",
    "lower": "lower bottom",
    "shoes": "shoe boot bootie sneaker sandal heels slipper trainers loafer pumps flats clogs mules slides wedges "
    "stilettos brogues oxfords espadrilles moccasins plimsolls flip-flops high-tops wellingtons wellies footwear",
    "bag": "bag handbag purse backpack rucksack tote clutch satchel",
    "hat": "hat sunhat cap beanie beret bonnet fedora trilby panama sombrero turban visor helmet balaclava headgear",
    "scarf": "scarf scarves shawl pashmina",
    "face": "face man woman person girl boy lady",
}
"""Words for each kind, of which plurals in s and es may be left out."""
_KIND_OF = {word: kind for kind, words in WORDS.items() for word in words.split()}
_APART = re.compile(r"[,;:&+/()]|\b(?:and|plus)\b")
_BEHIND = re.compile("with|without|for|in|of|on|from|by|over|under|to|at|into|like|worn|made|that|which")


def kinds_in(phrase: str) -> list[str]:
    """The kinds of what a phrase names, in its order, such as ["top", "pants"] of "a red shirt and blue jeans".

    Of each part between commas and "and" it is the last word of `WORDS` before "with", "of" and their like: "a shirt
    dress with a hat on it" is a dress. People ("face") count where nothing else is named: "a red shirt for a man".
    """
    found, people = [], []
    for part in _APART.split(phrase.lower()):
        told: list[str] = []
        for word in re.findall(r"[\w-]+", part):
            if told and _BEHIND.fullmatch(word):
                break
            kind = _kind_of(word)
            if kind is not None:
                (people if kind == "face" else told).append(kind)
        found += told[-1:]
    return found or people[:1]


def _kind_of(word: str) -> str | None:
    """Of "boots", "t-shirts" and "ankle-boots"; None for a word that names no kind."""
    ends = (word, word.rpartition("-")[2])
    forms = (form for end in ends for form in (end, end.removesuffix("s"), end.removesuffix("es")))
    return next((_KIND_OF[form] for form in forms if form in _KIND_OF), None)


def category_of(kinds: Iterable[str]) -> "Category | None":
    """What `agnostic_mask` is to hide for assets of these kinds: "upper", "lower", "dress", or "outfit" for several.

    None where none of them says: shoes and a hat are hidden beside a category.
    """
    hidden: set[Category] = {CATEGORY_OF[kind] for kind in kinds if kind in CATEGORY_OF}
    return "outfit" if len(hidden) > 1 else next(iter(hidden), None)
