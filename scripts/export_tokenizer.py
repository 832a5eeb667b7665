"""Writes the small model's tokenizer: CLIP's byte-pair encoding with the tokens that fashion needs.

    python scripts/export_tokenizer.py bpe_simple_vocab_16e6.txt.gz --out fcjax/mini/tokenizer

The table is CLIP's own (MIT), as shipped for example in the wheel of open-clip-torch. Kept are all 512 single-byte
tokens, so that any text can be encoded; every token that Wardrobe's captions come to and the merges on the way there;
and as many whole words of `scripts/fashion_words.txt` as there is room for. All these words are cut as CLIP cuts them,
because merges keep their order; other words fall into smaller tokens. `words.txt` lists the words of the captions: what
else is typed, the model never learnt.
"""

import argparse
import gzip
import itertools
import json
import re
from pathlib import Path

from fcjax.wardrobe.captions import vocabulary

# CLIP's 49,408 tokens are 512 bytes, these merges, and two marks.
CLIP_MERGES = 49152 - 256 - 2
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
NOTICE = """vocab.json and merges.txt are a selection from the byte-pair encoding of CLIP
(https://github.com/openai/CLIP):

MIT License

Copyright (c) 2021 OpenAI

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

Merge = tuple[str, str]


def byte_characters() -> list[str]:
    """The character that stands for each byte, in the order of CLIP's vocabulary: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(others)]


def read_merges(table: Path) -> list[Merge]:
    """CLIP's merges in order of rank."""
    with gzip.open(table, "rt", encoding="utf-8") as lines:
        merges = [tuple(line.split()) for line in lines.read().split("\n")[1 : 1 + CLIP_MERGES]]
    if len(merges) != CLIP_MERGES or any(len(merge) != 2 for merge in merges):
        raise SystemExit(f"{table} is not CLIP's table of merges")
    return [(first, second) for first, second in merges]


def merges_of(word: str, ranks: dict[Merge, int]) -> set[Merge]:
    """The merges that byte-pair encoding applies to a word of plain ASCII letters."""
    parts, used = [*word[:-1], word[-1] + WORD_END], set()
    while len(parts) > 1:
        best = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        used.add(best)
        merged, index = [], 0
        while index < len(parts):
            if tuple(parts[index : index + 2]) == best:
                merged.append("".join(best))
                index += 2
            else:
                merged.append(parts[index])
                index += 1
        parts = merged
    return used


def letter_runs(text: str) -> set[str]:
    """The words of a text as the tokenizer cuts them; "'s" is one of them."""
    return set(re.findall(r"'s|[a-z]+", text.lower()))


def choose_merges(merges: list[Merge], known: set[str], fashion: set[str], room: int) -> list[Merge]:
    """Exactly `room` merges in CLIP's order: what the known words need, then fashion words, cheapest first."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    chosen = {merge for word in known for merge in merges_of(word, ranks)}
    if len(chosen) > room:
        raise SystemExit(f"the captions need {len(chosen)} merges, but there is room for {room}: raise --size")
    waiting = {word: merges_of(word, ranks) for word in sorted(fashion - known)}
    while waiting:
        word = min(waiting, key=lambda word: (len(waiting[word] - chosen), len(word)))
        if len(chosen | waiting[word]) > room:
            break
        chosen |= waiting.pop(word)
    # The commonest merges whose parts are tokens fill what is left.
    tokens = {character + end for character in byte_characters() for end in ("", WORD_END)}
    for merge in merges:
        if merge in chosen or (len(chosen) < room and set(merge) <= tokens):
            chosen.add(merge)
            tokens.add("".join(merge))
    if waiting:
        print(f"no room for {len(waiting)} words, cut into smaller tokens: {' '.join(waiting)}")
    return sorted(chosen, key=ranks.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="CLIP's bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--out", type=Path, default=Path("fcjax/mini/tokenizer"))
    parser.add_argument("--size", type=int, default=1536, help="tokens in all, the two marks last")
    arguments = parser.parse_args()

    lines = (Path(__file__).parent / "fashion_words.txt").read_text().splitlines()
    fashion = letter_runs("\n".join(line for line in lines if not line.startswith("#")))
    known = letter_runs("\n".join(vocabulary()))
    characters = byte_characters()
    merges = choose_merges(read_merges(arguments.table), known, fashion, arguments.size - 514)
    tokens = [
        *characters,
        *(character + WORD_END for character in characters),
        *("".join(merge) for merge in merges),
        START,
        END,
    ]
    if len(set(tokens)) != len(tokens):
        raise SystemExit("two merges make the same token")

    arguments.out.mkdir(parents=True, exist_ok=True)
    marks = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    files = {
        "vocab.json": json.dumps({token: index for index, token in enumerate(tokens)}, ensure_ascii=False, indent=0),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]),
        "special_tokens_map.json": json.dumps(marks, indent=2),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **marks}, indent=2
        ),
        "words.txt": "\n".join(sorted(known)),
        "NOTICE": NOTICE.rstrip(),
    }
    for name, text in files.items():
        (arguments.out / name).write_text(text + "\n", encoding="utf-8")
    print(f"{len(tokens)} tokens, {len(merges)} merges, {len(known)} known words in {arguments.out}")


if __name__ == "__main__":
    main()
