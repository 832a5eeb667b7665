"""Phrases by a language model of transformers: which words of a caption describe which asset.

So the paper has them: one model describes the picture (train/vlm.py), another, which sees the caption alone, finds the
phrase of each asset in it. Any model that AutoModelForCausalLM loads and whose tokenizer has a chat template: a name on
the Hub or a folder. It needs torch, which is an extra: pip install 'fcjax[vision]'.
"""

import functools
import re
from collections.abc import Sequence

from fcjax.data.captioner import NOUNS
from train.chat import MOST_WORDS, Chat, cleaned, needed_torch

QUESTION = (
    "The caption of a photograph is: {caption}\n"
    "Which words of this caption describe the {noun}? Copy them as they stand there, at most {most} words in a row, "
    "article, colour and pattern included. Answer with these words and nothing else, or with 'none' if the caption "
    "does not mention the {noun}."
)


class PhraseFinder(Chat):
    """A language model that is asked about captions.

    ValueError where torch is missing and where `name` is no such model; OSError where it cannot be read.
    """

    def __init__(self, name: str, max_new_tokens: int = 40):
        needed_torch("--phrases-by")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__(name, AutoTokenizer, AutoModelForCausalLM, "a causal language model", max_new_tokens)

    def answer(self, question: str) -> str:
        """The model's likeliest words, in one line. Models that may think first are told not to."""
        return self.said(question, enable_thinking=False)

    def find(self, caption: str, kinds: Sequence[str]) -> list[str | None]:
        """For an asset of each kind the words of the caption that describe it, as they stand there; None without any.

        The model's words must be the caption's, whatever their case, and no other asset's. ValueError where it answers
        with no phrase.
        """
        rest, found = caption, []
        for kind in kinds:
            phrase = None
            # Choice: a kind tells which words are meant only where it is known and has one asset.
            if kind != "other" and kinds.count(kind) == 1:
                noun = "person" if kind == "face" else NOUNS.get(kind, kind)
                words = cleaned(self.answer(QUESTION.format(caption=caption, noun=noun, most=MOST_WORDS)), kind)
                there = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", rest, re.IGNORECASE)
                if there and words.lower() != "none":
                    phrase, (start, end) = there[0], there.span()
                    rest = f"{rest[:start]}\n{rest[end:]}"
            found.append(phrase)
        return found


@functools.cache
def load_phrase_finder(name: str) -> PhraseFinder:
    """The model, read once by each process."""
    return PhraseFinder(name)
