"""What phrases name, and what of a body that covers."""

import pytest

from fcjax.data.captioner import NOUNS
from fcjax.data.kinds import CATEGORY_OF, KINDS, WORDS, category_of, kinds_in
from fcjax.wardrobe.captions import SYNONYMS


@pytest.mark.parametrize(
    ("phrase", "kinds"),
    [
        ("a striped shirt", ["top"]),
        ("White sneakers,", ["shoes"]),
        ("ankle boots", ["shoes"]),
        ("fluffy slippers!", ["shoes"]),
        ("a straw bonnet", ["hat"]),
        ("a pair of ripped blue jeans", ["pants"]),
        ("a pleated midi-skirt", ["skirt"]),
        ("two silk blouses", ["top"]),
        ("black evening dresses", ["dress"]),
        # The last noun says what it is, a noun behind "with" and its like does not.
        ("a shirt dress", ["dress"]),
        ("dress shoes", ["shoes"]),
        ("a top hat", ["hat"]),
        ("a denim jean jacket", ["coat"]),
        ("a grey top with a skirt of lace", ["top"]),
        ("trousers in this fabric", ["pants"]),
        ("a red shirt for a man", ["top"]),
        ("a red shirt and blue jeans", ["top", "pants"]),
        ("a black and white dress, a hat", ["dress", "hat"]),
        ("a woman in a red dress", ["dress"]),
        ("a young man", ["face"]),
        ("a wide red thing", []),
        ("shortish flat heel-coloured stripes", []),
    ],
)
def test_what_a_phrase_names(phrase: str, kinds: list[str]):
    assert kinds_in(phrase) == kinds


def test_the_words_of_wardrobe_and_of_the_captioner_are_known():
    worn = {name: CATEGORY_OF.get(kind, kind) for name in SYNONYMS for kind in kinds_in(f"the {name}")}
    assert worn.keys() == SYNONYMS.keys()
    for name, nouns in SYNONYMS.items():
        for noun in nouns:
            [kind] = kinds_in(f"a striped {noun} with stars")
            assert CATEGORY_OF.get(kind, kind) == worn[name]
    for kind, noun in NOUNS.items():
        assert category_of(kinds_in(f"a blue {noun}")) == CATEGORY_OF[kind]
    named = [word for words in WORDS.values() for word in words.split()]
    assert len(named) == len(set(named))
    # Of the kinds of data sets those that are words.
    words = {kind for kinds in KINDS.values() for kind in kinds if "_" not in kind} - {"outer"}
    assert {kind: category_of(kinds_in(kind)) for kind in words} == {kind: CATEGORY_OF[kind] for kind in words}


@pytest.mark.parametrize(
    ("kinds", "category"),
    [
        (["top"], "upper"),
        (["coat", "top", "shoes"], "upper"),
        (["skirt", "hat"], "lower"),
        (["jumpsuit"], "dress"),
        (["top", "pants"], "outfit"),
        (["dress", "coat"], "outfit"),
        (["shoes", "hat", "face"], None),
        ([], None),
    ],
)
def test_what_is_repainted_for_kinds(kinds: list[str], category: str | None):
    assert category_of(kinds) == category
