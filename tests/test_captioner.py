"""Captions and phrases by rule: measured colours, known attributes, every phrase in the caption."""

import colorsys
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fcjax.data.captioner import color_names, describe, phrase_of, with_article
from fcjax.data.sources import DeepFashion, Part, RawAsset, RawSample, VitonHD
from fcjax.metrics.palette import extract_palette
from fcjax.tokenizer import Tokenizer
from fcjax.wardrobe.palette import COLORS, PALETTE, shade
from tests import miniatures
from tests.conftest import TOKENIZER
from tests.miniatures import drawn, flat


@pytest.fixture(scope="module")
def man(tmp_path_factory: pytest.TempPathFactory) -> RawSample:
    return DeepFashion(miniatures.deepfashion(tmp_path_factory.mktemp("sets") / "df"))[0]


def spoken(caption: str, phrases: list[str]) -> None:
    """The tokenizer finds every phrase in the caption, where they overlap nowhere."""
    encoded = Tokenizer.load(TOKENIZER).encode_prompt(caption, phrases)
    assert encoded.appended == () and (encoded.spans[: len(phrases)].sum(axis=1) > 0.99).all()


def test_what_is_worn_is_described(man: RawSample):
    caption, phrases = describe(dataclasses.replace(man, caption=None))
    assert phrases == [
        "a red striped short-sleeved cotton top", "blue denim shorts", "black shoes", "a man with brown hair",
    ]  # fmt: skip
    assert caption == f"A man with brown hair wearing {phrases[0]}, {phrases[1]} and {phrases[2]}."
    spoken(caption, phrases)


def test_a_caption_of_the_set_is_kept_behind_the_phrases(man: RawSample):
    caption, phrases = describe(man)
    assert caption.endswith("and black shoes. His shirt has short sleeves, cotton fabric.")
    spoken(caption, phrases)


def test_phrases_of_the_set_are_kept(man: RawSample):
    assets = tuple(
        dataclasses.replace(asset, phrase="somebody") if asset.kind == "face" else asset for asset in man.assets
    )
    caption, phrases = describe(RawSample(man.image, assets))
    assert caption.startswith("Somebody wearing a red striped") and phrases[-1] == "somebody"


def test_tags_say_what_a_garment_is(tmp_path: Path):
    root = miniatures.viton_hd(tmp_path)
    miniatures.tagged(root, "00001_00.jpg")
    source = VitonHD(root, worn=False)
    assert describe(source[0]) == (
        "A woman with brown hair wearing red short sleeve t-shirts.", ["red short sleeve t-shirts"],
    )  # fmt: skip
    tag = dataclasses.replace(source[1].assets[0], color="emerald", noun="apron")
    assert phrase_of(tag) == "an emerald apron"


def test_without_maps_nothing_is_made_up():
    picture, _ = flat((240, 150, 40))
    caption, phrases = describe(RawSample(drawn().image, (RawAsset(picture, "skirt"),)))
    assert (caption, phrases) == ("A person wearing an orange skirt.", ["an orange skirt"])
    face = RawAsset(picture, "face")
    assert describe(RawSample(drawn().image, (face,), person="woman")) == ("A woman.", ["a woman"])


@pytest.mark.parametrize("name", COLORS)
def test_colours_are_called_by_their_names(name: str):
    """Of Wardrobe's colours, in all the shades that go by a name."""
    rng = np.random.default_rng(0)
    called = [color_names(extract_palette(np.uint8(255 * np.tile(shade(name, rng), (64, 1))))) for _ in range(20)]
    assert called.count(name) >= 18, called


def test_photographs_colours():
    for rgb, name in (((150, 185, 225), "light blue"), ((70, 70, 72), "dark grey"), ((200, 200, 200), "light grey")):
        assert color_names(extract_palette(np.tile(np.uint8(rgb), (64, 1)))) == name


def test_a_second_colour_is_named_where_it_is_none_of_folds():
    red, white = np.uint8((195, 35, 40)), np.uint8((242, 242, 240))
    half = np.concatenate([np.tile(red, (60, 1)), np.tile(white, (40, 1))])
    assert color_names(extract_palette(half)) == "red and white"
    few = np.concatenate([np.tile(red, (90, 1)), np.tile(white, (10, 1))])
    assert color_names(extract_palette(few)) == "red"
    hue, saturation, _ = PALETTE["navy"][0]
    folds = [np.tile(np.uint8(255 * np.array(colorsys.hsv_to_rgb(hue, saturation, v))), (50, 1)) for v in (0.18, 0.32)]
    assert color_names(extract_palette(np.concatenate(folds))) == "navy"


def test_articles():
    for words in ("a red dress", "an olive skirt", "blue jeans", "a white blouse", "black shoes"):
        assert with_article(words.removeprefix("an ").removeprefix("a ")) == words


def test_the_same_sample_has_the_same_words(man: RawSample):
    assert describe(man) == describe(man)
    other = np.where((man.parse == Part.UPPER)[..., None], np.uint8((40, 150, 80)), man.image)
    green = dataclasses.replace(man.assets[0], picture=np.dstack([other, np.uint8(255 * (man.parse == Part.UPPER))]))
    assert phrase_of(green).startswith("a green striped")
