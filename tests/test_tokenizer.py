"""Phrases found in prompts, overflow, unknown words, and the reduced vocabulary."""

import importlib.util
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from fcjax.tokenizer import PromptTokens, Tokenizer

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "fcjax" / "mini" / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FOLDER)


@pytest.fixture(scope="module")
def exporter():
    """The script that wrote the folder."""
    spec = importlib.util.spec_from_file_location("export_tokenizer", ROOT / "scripts" / "export_tokenizer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words_of(tokenizer: Tokenizer, encoded: PromptTokens, asset: int) -> str:
    """The text of the tokens that an asset's span weighs."""
    weighed = encoded.ids[encoded.spans[asset] > 0]
    return tokenizer.clip.decode(weighed).strip()


# ---------------------------------------------------------------------------------------------------------------------
# Prompts and phrases


def test_a_prompt_is_cut_as_clip_cuts_it(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode_prompt("A woman's face, wearing a CAMOUFLAGE  t-shirt and pinstriped trousers")
    tokens = tokenizer.clip.convert_ids_to_tokens(encoded.ids.tolist())
    # Recorded from CLIP's full table.
    cut = "a</w> woman</w> 's</w> face</w> ,</w> wearing</w> a</w> camouflage</w> t</w> -</w> shirt</w> and</w>"
    expected = ["<|startoftext|>", *cut.split(), "pinst", "ri", "ped</w>", "trousers</w>"]
    assert tokens == [*expected, *["<|endoftext|>"] * (77 - len(expected))]
    assert encoded.ids.dtype == np.int32 and encoded.prompt.endswith("a CAMOUFLAGE t-shirt and pinstriped trousers")
    assert not encoded.spans.any() and encoded.truncated == "" and encoded.appended == ()


def test_phrases_are_found_whatever_case_and_space(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode_prompt(
        "A woman in a Red\tstriped  shirt, and  jeans", ["jeans", " a red striped\nshirt "], max_assets=4
    )
    assert encoded.spans.shape == (4, 77) and encoded.spans.dtype == np.float32
    assert words_of(tokenizer, encoded, 0) == "jeans" and words_of(tokenizer, encoded, 1) == "a red striped shirt"
    np.testing.assert_allclose(encoded.spans.sum(1), [1, 1, 0, 0], rtol=1e-6)
    assert set(encoded.spans[1][encoded.spans[1] > 0]) == {np.float32(0.25)}
    assert encoded.appended == ()


def test_equal_phrases_take_successive_places(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode_prompt("a hat, a bag and a hat", ["a hat", "a hat", "a hat"])
    firsts = [int(np.flatnonzero(row)[0]) for row in encoded.spans[:3]]
    assert firsts == [1, 7, 10]
    assert encoded.appended == ("a hat",) and encoded.prompt == "a hat, a bag and a hat, a hat"
    assert [words_of(tokenizer, encoded, index) for index in range(3)] == ["a hat"] * 3


def test_phrases_never_share_words(tokenizer: Tokenizer) -> None:
    """The short phrase would also match inside the long one, which is another asset."""
    encoded = tokenizer.encode_prompt("a red shirt and a shirt", ["shirt", "red shirt"])
    assert not np.any((encoded.spans[0] > 0) & (encoded.spans[1] > 0))
    assert np.flatnonzero(encoded.spans[0]).tolist() == [6] and words_of(tokenizer, encoded, 1) == "red shirt"
    alone = tokenizer.encode_prompt("a red shirt", ["shirt", "red shirt"])
    assert alone.appended == ("shirt",) and words_of(tokenizer, alone, 0) == "shirt"


@pytest.mark.parametrize(
    ("prompt", "encoded_prompt"),
    [
        ("a woman", "a woman, a hat"),
        ("a woman with a hatbox", "a woman with a hatbox, a hat"),
        ("", "a hat"),
        ("a woman,", "a woman, a hat"),
    ],
)
def test_absent_phrases_are_appended_and_said_so(tokenizer: Tokenizer, prompt: str, encoded_prompt: str) -> None:
    encoded = tokenizer.encode_prompt(prompt, ["a hat"])
    assert encoded.prompt == encoded_prompt and encoded.appended == ("a hat",)
    assert words_of(tokenizer, encoded, 0) == "a hat"


def test_phrases_are_text_and_not_patterns(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode_prompt("a man in a (blue) top.* and jeans", ["a (blue) top.*", "İSTANBUL café"])
    assert words_of(tokenizer, encoded, 0).replace(" ", "") == "a(blue)top.*"
    assert encoded.appended == ("İSTANBUL café",) and encoded.spans[1].sum() == pytest.approx(1.0)


def test_long_prompts_are_cut_and_said_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers warns once of each tokenizer, to a logger that hands nothing on by itself.
    tokenizer = Tokenizer.load(FOLDER)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        encoded = tokenizer.encode_prompt("a hat" + " and jeans" * 36 + " on a beach", ["a hat"])
        assert tokenizer.encode("jeans " * 80).shape == (77,)
    assert encoded.ids.shape == (77,) and encoded.truncated == "a beach"
    assert encoded.ids[-1] == tokenizer.clip.eos_token_id and encoded.ids[-2] != tokenizer.clip.eos_token_id
    assert not caplog.records
    exact = tokenizer.encode_prompt("a hat" + " and jeans" * 36 + " on", ["a hat"])
    assert exact.truncated == ""
    np.testing.assert_array_equal(exact.ids, encoded.ids)
    for phrases in (["a beach"], ["a bag"]):
        with pytest.raises(ValueError, match=r"does not fit: 75 tokens of a prompt are read and this one has"):
            tokenizer.encode_prompt("a hat" + " and jeans" * 36 + " on a beach", phrases)


def test_training_leaves_out_what_does_not_fit(tokenizer: Tokenizer) -> None:
    phrases = ["a beach", "a hat", "a bag", "jeans"]
    encoded = tokenizer.encode_prompt("a hat" + " and jeans" * 36 + " on a beach", phrases, max_assets=3, strict=False)
    assert encoded.ids.shape == (77,) and encoded.spans.shape == (3, 77)
    np.testing.assert_allclose(encoded.spans.sum(axis=1), [0, 1, 0])
    np.testing.assert_array_equal(encoded.spans[1, :4], [0, 0.5, 0.5, 0])


def test_bad_phrases_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="at most 2 assets fit this model's canvas, got 3 phrases"):
        tokenizer.encode_prompt("a hat", ["a hat"] * 3, max_assets=2)
    with pytest.raises(ValueError, match="needs a phrase"):
        tokenizer.encode_prompt("a hat", ["a hat", "  "])


def test_the_empty_text_is_marks_alone(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("")
    assert ids[0] == tokenizer.clip.bos_token_id and np.all(ids[1:] == tokenizer.clip.eos_token_id)


def test_unknown_words_are_named(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode_prompt("A woman's qipao, kimono-striped QIPAO and 3 t-shirts in Zürich")
    assert encoded.unknown == ("qipao", "kimono", "shirts", "zürich")
    assert tokenizer.encode_prompt("a woman in a red and blue striped shirt").unknown == ()


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a tokenizer folder: vocab\.json and merges\.txt"):
        Tokenizer.load(tmp_path)
    shutil.copytree(FOLDER, tmp_path / "broken")
    (tmp_path / "broken" / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read the tokenizer"):
        Tokenizer.load(tmp_path / "broken")


def test_a_folder_without_words_knows_all(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shutil.copytree(FOLDER, tmp_path / "folder")
    (tmp_path / "folder" / "words.txt").unlink()
    (tmp_path / "folder" / "special_tokens_map.json").unlink()
    plain = Tokenizer.load(tmp_path / "folder")
    assert plain.encode_prompt("a kimono").unknown == ()
    np.testing.assert_array_equal(plain.encode("a kimono"), tokenizer.encode("a kimono"))


def test_a_saved_tokenizer_json_is_read_too(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.clip.save_pretrained(str(tmp_path))
    assert (tmp_path / "tokenizer.json").is_file()
    again = Tokenizer.load(tmp_path)
    encoded, other = (each.encode_prompt("a red hat", ["red hat"]) for each in (again, tokenizer))
    np.testing.assert_array_equal(encoded.ids, other.ids)
    np.testing.assert_array_equal(encoded.spans, other.spans)


def test_the_mini_vocabulary(tokenizer: Tokenizer) -> None:
    vocabulary = json.loads((FOLDER / "vocab.json").read_text(encoding="utf-8"))
    assert tokenizer.vocab_size == len(vocabulary) == 1536
    assert sorted(vocabulary.values()) == list(range(1536))
    assert (tokenizer.clip.bos_token_id, tokenizer.clip.eos_token_id, tokenizer.clip.pad_token_id) == (1534, 1535, 1535)
    assert "MIT License" in (FOLDER / "NOTICE").read_text()
    # Any text can be encoded and comes back: every byte is a token.
    for text in ("日本 ñandú ☂ 100%", "".join(map(chr, range(33, 127))).lower()):
        ids = tokenizer.clip(text, add_special_tokens=False).input_ids
        assert tokenizer.clip.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_every_caption_word_is_known(tokenizer: Tokenizer, exporter) -> None:
    """If this fails the grammar has grown: run scripts/export_tokenizer.py again, before training."""
    from fcjax.wardrobe.captions import vocabulary

    assert tokenizer.words is not None
    assert not exporter.letter_runs("\n".join(vocabulary())) - tokenizer.words
    assert tokenizer.unknown_words(" ".join(vocabulary())) == ()


# ---------------------------------------------------------------------------------------------------------------------
# The script


MERGES = [("a", "t</w>"), ("c", "a"), ("h", "at</w>"), ("ca", "t</w>"), ("c", "at</w>"), ("d", "o"), ("do", "g</w>")]


def test_merges_follow_rank(exporter) -> None:
    ranks = {merge: rank for rank, merge in enumerate(MERGES)}
    assert exporter.merges_of("cat", ranks) == {("a", "t</w>"), ("c", "at</w>")}
    assert exporter.merges_of("hat", ranks) == {("a", "t</w>"), ("h", "at</w>")}
    assert exporter.merges_of("x", ranks) == set()


def test_merges_are_chosen_for_known_words_then_fashion_then_rank(exporter) -> None:
    assert exporter.choose_merges(MERGES, {"dog"}, {"hat"}, 4) == [MERGES[0], MERGES[2], MERGES[5], MERGES[6]]
    assert exporter.choose_merges(MERGES, {"dog"}, {"hat"}, 3) == [MERGES[0], MERGES[5], MERGES[6]]
    with pytest.raises(SystemExit, match="raise --size"):
        exporter.choose_merges(MERGES, {"dog", "hat"}, set(), 3)


def test_bytes_have_characters_of_their_own(exporter) -> None:
    characters = exporter.byte_characters()
    assert len(set(characters)) == 256 and characters[:3] == ["!", '"', "#"] and not any(map(str.isspace, characters))
