"""Captions by a vision-language model: a tiny random one, saved and read as real ones are."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcjax.data import decode_record
from tests.test_raw_records import SMALL, Raw, Source, Thing, a_sample
from train.chat import cleaned
from train.raw_records import RawJob
from train.shards import LeftOut
from train.vlm import Describer, load_describer

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
GARMENTS = ["shirt", "skirt", "dress", "hat", "bag"]
WORDS = ["a", "red", "blue", "green", "striped", *GARMENTS, "one", "person", "woman", "picture", "of"]
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of a few thousand random numbers with its processor."""
    torch = pytest.importorskip("torch")
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    path = tmp_path_factory.mktemp("vlm")
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    names: dict[str, Any] = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=False))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, **names, extra_special_tokens={"image_token": "<image>"}
    )
    image_processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    transformers.LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(path)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**small, image_size=16, patch_size=8, projection_dim=16),
        text_config=transformers.LlamaConfig(
            **small, vocab_size=len(SPECIAL + WORDS), pad_token_id=0, bos_token_id=1, eos_token_id=2
        ),
        image_token_id=SPECIAL.index("<image>"),  # pyright: ignore[reportCallIssue] (so it is in the files)
    )
    torch.manual_seed(3)
    llava = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for weight in llava.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.5)
        # It says words alone, as a model that learnt to speak does.
        llava.lm_head.weight[: len(SPECIAL)] = 0
    llava.save_pretrained(path)
    return path


@needs_torch
def test_a_model_answers_by_what_it_sees_and_always_alike(model: Path):
    describer = Describer(str(model), max_new_tokens=4)
    pictures = [np.full((30, 20, 3), color, np.uint8) for color in np.eye(3) * 255]
    answers = [describer.answer(picture, "one person") for picture in pictures]
    assert len(set(answers)) > 1 and answers == [describer.answer(picture, "one person") for picture in pictures]
    assert set(" ".join(answers).split()) <= set(WORDS)
    # What is transparent is white.
    clear = np.zeros((30, 20, 4), np.uint8)
    assert describer.answer(clear, "one person") == describer.answer(np.full((30, 20, 3), 255, np.uint8), "one person")


class Scripted(Describer):
    """A model that gives these answers in turn."""

    def __init__(self, *answers: str):
        self.answers = list(answers)
        self.asked: list[str] = []

    def answer(self, picture: np.ndarray, question: str) -> str:
        self.asked.append(question)
        return self.answers.pop(0)


def test_every_phrase_stands_in_the_caption():
    picture = np.zeros((4, 4, 3), np.uint8)
    sample = Raw(picture, [Thing(picture), Thing(picture, "skirt")])
    scripted = Scripted('"A red shirt."', "a blue skirt", "A woman in a red shirt, smiling.")
    caption, phrases = scripted.describe(sample)
    assert phrases == ["A red shirt", "a blue skirt"]
    assert caption == "A woman in a red shirt, smiling, a blue skirt"
    assert "one skirt" in scripted.asked[1] and "'A red shirt', 'a blue skirt'" in scripted.asked[2]


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        ("This is a red shirt. It has buttons.", "a red shirt"),
        ("**a blue  skirt**", "a blue skirt"),
        ("'A hat'", "A hat"),
    ],
)
def test_answers_are_cleaned(answer: str, phrase: str):
    assert cleaned(answer, "top") == phrase


@pytest.mark.parametrize("answer", ["", "...", "I cannot say, " + "well " * 12])
def test_no_phrase_is_an_error(answer: str):
    with pytest.raises(ValueError, match="gave no phrase for the top"):
        cleaned(answer, "top")


@needs_torch
def test_records_take_the_models_words(model: Path, monkeypatch: pytest.MonkeyPatch):
    load_describer.cache_clear()
    options = dataclasses.replace(SMALL, captions_by=str(model))
    (record,) = RawJob(Source((a_sample(),)), "fake", options).records(0)
    monkeypatch.setattr("train.chat.MOST_WORDS", 100)
    load_describer.cache_clear()
    (other,) = RawJob(Source((a_sample(),)), "fake", options).records(0)
    assert isinstance(record, LeftOut) and "gave no phrase for the top" in record.reason
    assert isinstance(other, bytes)
    sample = decode_record(other)
    assert all(phrase.lower() in sample["caption"].lower() for phrase in sample["phrases"])
    assert set(sample["caption"].replace(",", "").replace(":", "").split()) <= set(WORDS)


@needs_torch
def test_what_is_no_such_model_is_refused(model: Path, tmp_path: Path):
    with pytest.raises(OSError, match="nowhere"):
        Describer(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ValueError, match="expected a vision-language model"):
        Describer(str(tmp_path))


def test_torch_is_an_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"--captions-by needs torch: pip install 'fcjax\[vision\]'"):
        Describer("any")
