"""Prompts and the phrases of their assets as CLIP tokens.

The tokenizer is transformers' CLIPTokenizer over a folder as Stable Diffusion's model folders have it (`vocab.json` and
`merges.txt`, or `tokenizer.json`). A folder may hold `words.txt` too: the words that its model learnt.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from fcjax.assets import MAX_ASSETS
from fcjax.network_config import TextConfig


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """A prompt as the models take it.

    ids: token ids with start and end marks, padded. spans: for each asset (padded with zeros to the bound) the
    weights of a mean over its phrase's tokens; a row sums to 1, or to 0 where there is no asset or its phrase was left
    out. prompt: what was encoded: white space normalised, absent phrases appended. appended: those phrases. truncated:
    what did not fit and was left out. unknown: words of the prompt that the model never learnt, in order, where the
    tokenizer knows (else empty).
    """

    ids: Int32[np.ndarray, "k"]
    spans: Float32[np.ndarray, "a k"]
    prompt: str
    appended: tuple[str, ...] = ()
    truncated: str = ""
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """`clip`: a transformers tokenizer with offsets. `words`: what its model learnt; None: everything."""

    clip: Any
    words: frozenset[str] | None = None

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads a tokenizer folder; nothing is downloaded. ValueError for a folder that is none."""
        folder = Path(folder)
        whole = (folder / "tokenizer.json").is_file()
        if not whole and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
            raise ValueError(
                f"{folder} is not a tokenizer folder: vocab.json and merges.txt (or tokenizer.json) are expected"
            )
        # Imported here because it takes seconds, which programs without a prompt need not wait.
        # Where there is no torch, transformers says so on stderr; its tokenizers do without.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import CLIPTokenizer

        try:
            clip = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the readers below raise bare Exceptions
            raise ValueError(f"cannot read the tokenizer in {folder}: {error}") from error
        words = folder / "words.txt"
        known = frozenset(words.read_text(encoding="utf-8").split()) if words.is_file() else None
        return cls(clip, known)

    def save(self, folder: str | Path) -> None:
        """Writes a tokenizer folder that `load` and transformers read."""
        self.clip.save_pretrained(str(folder))
        if self.words is not None:
            (Path(folder) / "words.txt").write_text("\n".join(sorted(self.words)) + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        return len(self.clip)

    def check(self, text_encoder: TextConfig) -> None:
        """ValueError where the text encoder has no row for some tokens."""
        if self.vocab_size > text_encoder.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.vocab_size} tokens but the text encoder only {text_encoder.vocab_size}: they "
                "belong to different models"
            )

    def encode(self, text: str, max_length: int = 77) -> Int32[np.ndarray, "k"]:
        """Padded token ids of a text without assets: the empty text is what dropped text becomes."""
        return self.encode_prompt(text, (), max_length=max_length).ids

    def encode_prompt(
        self,
        prompt: str,
        phrases: Sequence[str] = (),
        max_assets: int = MAX_ASSETS,
        max_length: int = 77,
        strict: bool = True,
    ) -> PromptTokens:
        """Encodes a prompt and finds the phrase of each asset in it.

        A phrase is found whatever its case and white space, as whole words. No two phrases share words: longer ones
        choose first, equal ones take successive occurrences. A phrase that has no place of its own is appended to the
        prompt (", phrase"), which the result states. A prompt of more than `max_length` tokens is cut, which the
        result states; ValueError if that would cut a phrase, for an empty phrase, and for more than `max_assets`
        phrases. Not `strict`: phrases that would be cut and those beyond `max_assets` have no span.
        """
        if not strict:
            phrases = phrases[:max_assets]
        if len(phrases) > max_assets:
            raise ValueError(f"at most {max_assets} assets fit this model's canvas, got {len(phrases)} phrases")
        if not isinstance(prompt, str):
            raise ValueError(f"the prompt must be text that describes the picture, got {prompt!r}")
        prompt = _normalised(prompt)
        wanted = [_normalised(phrase) for phrase in phrases]
        if "" in wanted:
            raise ValueError(f"every asset needs a phrase that describes it, got {list(phrases)}")
        prompt, places, appended = _place_phrases(prompt, wanted)

        # Too long a prompt is cut below; transformers would say that it ends in errors.
        encoding = self.clip(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens, offsets = encoding["input_ids"], encoding["offset_mapping"]
        room = max_length - 2
        truncated = prompt[offsets[room][0] :] if len(tokens) > room else ""
        kept = tokens[:room]
        padding = [self.clip.pad_token_id] * (room - len(kept))
        ids = np.asarray([self.clip.bos_token_id, *kept, self.clip.eos_token_id, *padding], np.int32)

        spans = np.zeros((max_assets, max_length), np.float32)
        for index, (start, end) in enumerate(places):
            inside = [number for number, (left, right) in enumerate(offsets) if left < end and right > start]
            fits = bool(inside) and inside[-1] < room
            if not (fits or strict):
                continue
            if not inside:
                raise ValueError(f"the phrase {wanted[index]!r} has no token: write it in letters or digits")
            if not fits:
                raise ValueError(
                    f"the phrase {wanted[index]!r} does not fit: {room} tokens of a prompt are read and this one has "
                    f"{len(tokens)}; shorten it, or move the phrase towards its beginning"
                )
            # One on: the start mark stands before the first token.
            spans[index, np.asarray(inside) + 1] = 1.0 / len(inside)
        return PromptTokens(ids, spans, prompt, appended, truncated, self.unknown_words(prompt))

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words of a text that the model never learnt, each once, in order; empty where that is not known."""
        if self.words is None:
            return ()
        # As CLIP cuts words: runs of letters, and the endings 's, 't, 're ... on their own.
        found = re.findall(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+", text.lower())
        return tuple(dict.fromkeys(word for word in found if word not in self.words and not word.startswith("'")))


def _normalised(text: str) -> str:
    return " ".join(text.split())


def _place_phrases(prompt: str, phrases: list[str]) -> tuple[str, list[tuple[int, int]], tuple[str, ...]]:
    """The prompt with absent phrases appended, the characters [start, end) of each phrase, and what was appended."""
    places: list[tuple[int, int] | None] = [None] * len(phrases)
    taken: list[tuple[int, int]] = []
    for index in sorted(range(len(phrases)), key=lambda index: -len(phrases[index])):
        for match in re.finditer(rf"(?<!\w){re.escape(phrases[index])}(?!\w)", prompt, re.IGNORECASE):
            start, end = match.span()
            if all(end <= other_start or start >= other_end for other_start, other_end in taken):
                places[index] = (start, end)
                taken.append((start, end))
                break
    found, appended = [], []
    for phrase, place in zip(phrases, places, strict=True):
        if place is None:
            joint = "" if not prompt else " " if prompt.endswith(",") else ", "
            place = (len(prompt) + len(joint), len(prompt) + len(joint) + len(phrase))
            prompt += joint + phrase
            appended.append(phrase)
        found.append(place)
    return prompt, found, tuple(appended)
