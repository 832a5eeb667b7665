"""Phrases by a language model: a tiny one that knows which word comes after which, saved and read as real ones are."""

import dataclasses
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fcjax.data import Prepared
from fcjax.data.sources import RawAsset, RawSample
from tests import miniatures
from tests.miniatures import HEIGHT, WIDTH, flat
from tests.test_raw_records import SMALL, Source, a_sample
from train.phrases import PhraseFinder, load_phrase_finder
from train.prepare import main
from train.raw_records import RawJob, described
from train.shards import write_set
from train.vlm import Describer

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<think>"]
# What it says after the word that its question ends with.
ANSWERS = (
    "top Short sleeves </s>",
    "skirt long blue cloth </s>",
    "pants trousers </s>",
    "shoes none </s>",
    "garment none </s>",
    "person somebody </s>",
)
WORDS = list(dict.fromkeys(word for answer in ANSWERS for word in answer.split() if word not in SPECIAL))
# The last word of what the model reads is the garment that it is asked about.
TEMPLATE = (
    "{{ messages[0]['content'] }} {{ messages[0]['content'].split('describe the ')[1].split('?')[0] }}"
    "{% if enable_thinking is not defined or enable_thinking %} <think>{% endif %}"
)


def save_tokenizer(path: Path, template: str | None = TEMPLATE) -> None:
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = Tokenizer(WordLevel({word: number for number, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    names: dict[str, Any] = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=False))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template, **names).save_pretrained(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose residual stream holds the last word alone, from which its head tells the next."""
    torch = pytest.importorskip("torch")
    import transformers

    path = tmp_path_factory.mktemp("llm")
    save_tokenizer(path)
    vocabulary = SPECIAL + WORDS
    size = len(vocabulary) + len(vocabulary) % 2
    llama: Any = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=size,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():
        for layer in llama.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        llama.model.embed_tokens.weight.copy_(torch.eye(len(vocabulary), size))
        llama.lm_head.weight.zero_()
        for answer in ANSWERS:
            for word, following in pairwise(map(vocabulary.index, answer.split())):
                llama.lm_head.weight[following, word] = 1
    # As models made for chat are saved; preparing must not draw lots.
    llama.generation_config.update(do_sample=True, temperature=2.0)
    llama.save_pretrained(path)
    return path


def test_a_model_finds_the_words_of_a_caption(model: Path):
    finder = PhraseFinder(str(model))
    caption = "A man in a shirt with short sleeves and trousers, long blue clothes."
    for _ in range(3):
        assert finder.find(caption, ["top", "pants", "shoes", "face"]) == ["short sleeves", "trousers", None, None]
    # Whole words alone.
    assert finder.find(caption, ["skirt"]) == [None]
    assert finder.find("Short sleeves.", ["upper", "lower"]) == ["Short sleeves", None]
    assert finder.find("A long blue cloth.", ["skirt"]) == ["long blue cloth"]


class Scripted(PhraseFinder):
    """A model that gives these answers in turn."""

    def __init__(self, *answers: str):
        self.answers, self.asked = list(answers), []

    def answer(self, question: str) -> str:
        self.asked.append(question)
        return self.answers.pop(0)


def test_what_is_asked_and_what_becomes_of_answers():
    scripted = Scripted("'A red shirt.'", "a red shirt", "None", "a woman")
    caption = "A woman in a red shirt, none of it torn."
    assert scripted.find(caption, ["top", "upper_body", "hat", "face"]) == ["a red shirt", None, None, "A woman"]
    assert all(f"caption of a photograph is: {caption}\n" in question for question in scripted.asked)
    asked = [question.split("describe the ")[1].split("?")[0] for question in scripted.asked]
    assert asked == ["top", "upper_body", "hat", "person"]
    # Of two tops the caption's words are neither's, and nobody knows what "other" is.
    assert Scripted("a hat").find("A hat and a top.", ["top", "other", "top", "hat"]) == [None, None, None, "A hat"]


@pytest.mark.parametrize("answer", ["", "...", "I cannot say, " + "well " * 12])
def test_no_phrase_is_an_error(answer: str):
    with pytest.raises(ValueError, match="gave no phrase for the top"):
        Scripted(answer).find("A top.", ["top"])


def given(monkeypatch: pytest.MonkeyPatch, *answers: str) -> Scripted:
    scripted = Scripted(*answers)
    monkeypatch.setattr("train.raw_records.load_phrase_finder", lambda name: scripted)
    return scripted


def test_a_sets_own_caption_is_kept(monkeypatch: pytest.MonkeyPatch):
    """What it does not mention has the set's phrase, or the rule's, behind it."""
    shirt, skirt = RawAsset(flat((200, 30, 40))[0], "top", "a tee"), RawAsset(flat((240, 150, 40))[0], "skirt")
    sample = RawSample(miniatures.drawn().image, (shirt, skirt), caption="A red\n shirt,  smiling.")
    given(monkeypatch, "a RED shirt", "a yellow skirt")
    words = "A red shirt, smiling, an orange skirt"
    assert described(sample, phrases_by="model") == (words, ["A red shirt", "an orange skirt"])
    given(monkeypatch, "none", "none")
    assert described(sample, phrases_by="model")[1] == ["a tee", "an orange skirt"]


def test_without_a_caption_the_rules_is_asked_about(monkeypatch: pytest.MonkeyPatch):
    sample = RawSample(miniatures.drawn().image, (RawAsset(flat((240, 150, 40))[0], "skirt"),))
    scripted = given(monkeypatch, "orange skirt")
    assert described(sample, phrases_by="model") == ("A person wearing an orange skirt.", ["orange skirt"])
    assert "is: A person wearing an orange skirt.\n" in scripted.asked[0]


def test_a_describers_caption_is_asked_about(monkeypatch: pytest.MonkeyPatch):
    """The picture is asked for a phrase only where the caption has none."""
    asked: list[str] = []

    def said(self: Any, content: list[dict[str, Any]]) -> str:
        asked.append(content[1]["text"])
        return "A blue skirt." if "shows one" in asked[-1] else "A woman in a red silk shirt."

    monkeypatch.setattr(Describer, "said", said)
    monkeypatch.setattr("train.raw_records.load_describer", lambda name: Describer.__new__(Describer))
    given(monkeypatch, "a red silk shirt", "none")
    caption, phrases = described(a_sample(), "describer", "model")
    assert (caption, phrases) == ("A woman in a red silk shirt, A blue skirt", ["a red silk shirt", "A blue skirt"])
    assert len(asked) == 2 and "one sentence" in asked[0] and "exactly these words" not in asked[0]
    assert "shows one skirt" in asked[1]


def test_shards_hold_the_words_that_it_finds(model: Path, tmp_path: Path):
    load_phrase_finder.cache_clear()
    root, out = miniatures.deepfashion(tmp_path / "set"), tmp_path / "out"
    size = ["--height", str(HEIGHT), "--width", str(WIDTH), "--workers", "1", "--layouts", "1"]
    main(["deepfashion", str(root), str(out), *size, "--phrases-by", str(model)])
    data = Prepared(out)
    own = next(sample for sample in map(data.__getitem__, range(2)) if sample["caption"].startswith("His shirt"))
    others = ["blue denim shorts", "black shoes", "a man with brown hair"]
    assert own["phrases"] == ["short sleeves", *others]
    assert own["caption"] == f"His shirt has short sleeves, cotton fabric, {', '.join(others)}"
    assert data.index["settings"]["phrases_by"] == str(model)
    with pytest.raises(ValueError, match=r"begun with other settings \(phrases_by\)"):
        write_set(RawJob(Source((a_sample(),)), "fake", SMALL), tmp_path / "fake")
        write_set(RawJob(Source((a_sample(),)), "fake", options(model)), tmp_path / "fake")


def options(model: Path) -> Any:
    return dataclasses.replace(SMALL, phrases_by=str(model))


def test_what_is_no_such_model_is_refused(model: Path, tmp_path: Path):
    with pytest.raises(OSError):
        PhraseFinder(str(tmp_path / "nowhere"))
    save_tokenizer(tmp_path / "resnet")
    (tmp_path / "resnet/config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ValueError, match="expected a causal language model, got"):
        PhraseFinder(str(tmp_path / "resnet"))
    (tmp_path / "mute").mkdir()
    for path in model.iterdir():
        (tmp_path / "mute" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "mute/chat_template.jinja").unlink()
    job = RawJob(Source((a_sample(),)), "fake", options(tmp_path / "mute"))
    with pytest.raises(ValueError, match="mute cannot be asked: it has no chat template; name a model made for chat"):
        write_set(job, tmp_path / "out")
    assert not (tmp_path / "out/report.json").exists()


def test_torch_is_an_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"--phrases-by needs torch: pip install 'fcjax\[vision\]'"):
        PhraseFinder("any")
