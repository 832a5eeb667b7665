"""Reports as pages, and comparisons without names: nothing from outside, pictures inside, votes counted by the key."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.metrics import Figure
from infer.blind import QUESTIONS, Contest, balanced_orders, ballots, blind_page, count_votes
from infer.pages import write_contests
from infer.report_page import chart, data_uri, report_page

RED, BLUE = (np.full((32, 24, 3), color, np.uint8) for color in ((200, 0, 0), (0, 0, 200)))


class Reader(HTMLParser):
    """Tags in balance, addresses, and words."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in ("meta", "img", "input", "rect", "line"):
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag, attrs) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words += data


def colors(page: str) -> list[tuple[int, ...]]:
    return [
        Image.open(io.BytesIO(base64.b64decode(held))).convert("RGB").getpixel((0, 0))
        for held in re.findall(r"data:image/png;base64,([\w+/=]+)", page)
    ]


def test_a_report_holds_all_it_shows() -> None:
    figures = {
        "mini": {"binding accuracy": Figure(0.8, 0.7, 0.9, 30, 10)},
        "<other>": {"PSNR": Figure(21.5, 20, 23, 9, 9)},
    }
    page = report_page(
        "An <evaluation>",
        {"count": 10, "size": (32, 24), "also": (), "seed": 0},
        figures,
        [[("a & b", RED)], [("", BLUE)]],
    )
    read = Reader(page)
    assert [address[:22] for address in read.addresses] == ["data:image/png;base64,"] * 2 and "http" not in page
    assert "0.800 [0.700, 0.900]" in read.words and "21.5 [20.0, 23.0]" in read.words and "a & b" in read.words
    assert "<other>" in read.words and "also" not in read.words and "seed0" in read.words
    assert colors(page) == [(200, 0, 0), (0, 0, 200)] and page.count("<svg") == 2


def test_charts_reach_below_zero_and_stand_without_values() -> None:
    drawn = chart("correlation", {"a": Figure(-0.5, -0.6, -0.4, 3, 3), "b": Figure(0.5, 0.4, 0.6, 3, 3)})
    widths = [float(value) for value in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn)]
    assert widths[0] == pytest.approx(widths[1]) and widths[0] > 0
    assert "<svg" in chart("nothing", {}) and "nan" not in chart("zero", {"a": Figure(0, 0, 0, 1, 1)})


@pytest.mark.parametrize(
    ("most", "kept", "kind"), [(256, (192, 256), "png"), (1024, (768, 1024), "jpeg"), (2048, (900, 1200), "jpeg")]
)
def test_large_pictures_are_made_smaller(most: int, kept: tuple[int, int], kind: str) -> None:
    head, _, held = data_uri(Image.new("RGB", (900, 1200), (200, 30, 30)), most).partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(held)))
    assert image.size == kept and head == f"data:image/{kind};base64"
    assert np.abs(np.asarray(image, int) - (200, 30, 30)).max() <= 3


def test_judged_pictures_are_large() -> None:
    page, _ = blind_page("Which?", [Contest("a", [], {"ours": np.zeros((1100, 8, 3), np.uint8), "b": RED})], seed=0)
    [held] = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", page)
    assert Image.open(io.BytesIO(base64.b64decode(held))).height == 1024
    assert page.count('class="few"') == 1


@pytest.fixture
def compared(tmp_path: Path):
    contests = [
        Contest(f"a <woman> {number}", [("a shirt", RED)], {"ours": RED, "theirs": BLUE}) for number in range(8)
    ]
    page, key = blind_page("Which?", contests, seed=1)
    (tmp_path / "key.json").write_text(json.dumps(key))
    return page, key, tmp_path


def test_a_comparison_names_nobody(compared) -> None:
    page, key, _ = compared
    read = Reader(page)
    assert "ours" not in page and "theirs" not in page and "http" not in page and "a <woman> 7" in read.words
    shown = colors(page)
    # The asset, then both pictures, in the key's order.
    for number, order in enumerate(key["orders"]):
        expected = [{"ours": (200, 0, 0), "theirs": (0, 0, 200)}[arm] for arm in order]
        assert shown[3 * number + 1 : 3 * number + 3] == expected
    assert sum(order[0] == "ours" for order in key["orders"]) == 4
    assert page.count('type="radio"') == 8 * 2 * len(QUESTIONS)


@pytest.mark.parametrize(("arms", "count"), [("ab", 12), ("ab", 7), ("abcd", 12), ("abc", 2)])
def test_no_arm_has_a_place_of_its_own(arms: str, count: int) -> None:
    orders = balanced_orders(arms, count, seed=0)
    assert len(orders) == count and all(sorted(order) == list(arms) for order in orders)
    for place in range(len(arms)):
        held = [sum(order[place] == arm for order in orders) for arm in arms]
        assert max(held) - min(held) <= 1
    assert orders == balanced_orders(arms, count, seed=0)
    assert count < 4 or any(orders != balanced_orders(arms, count, seed) for seed in range(1, 4))


def test_pages_differ_and_their_keys_tell_how(tmp_path: Path) -> None:
    contests = [Contest("a", [], {"ours": RED, "theirs": BLUE}) for _ in range(20)]
    keys = []
    for name in ("a", "b"):
        write_contests(tmp_path / f"{name}.html", contests)
        keys.append(json.loads((tmp_path / f"{name}.key.json").read_text()))
    assert (
        keys[0]["orders"] != keys[1]["orders"]
        and blind_page("Which picture is better?", contests, keys[0]["seed"])[1] == keys[0]
    )


def test_votes_are_counted_by_the_key(compared) -> None:
    _, key, folder = compared
    votes = [{"set": n, "quality": order.index("ours"), "fidelity": None} for n, order in enumerate(key["orders"])]
    votes[0]["fidelity"] = key["orders"][0].index("theirs")
    for name in ("one.json", "two.json"):
        (folder / name).write_text(json.dumps({"page": key["page"], "votes": votes}))
    said = count_votes([folder / "one.json", folder / "two.json"], folder / "key.json")
    rows = [re.split(r" {2,}", line) for line in said.splitlines()]
    assert rows == [
        ["2 voters, 8 sets"],
        ["", "quality", "fidelity"],
        ["ours", "16: 1.00 [1.00, 1.00]", "0: 0.00"],
        ["theirs", "0: 0.00 [0.00, 0.00]", "2: 1.00"],
        ["votes", "16", "2"],
        ["abstentions", "0", "14"],
    ]


def test_everyone_has_one_vote_on_a_set(compared) -> None:
    """The last one counts: in a file, in one that the same voter saved later, and of a file that is given twice."""
    _, key, folder = compared
    ours = key["orders"][0].index("ours")
    for name, chosen in (("one", [1 - ours] * 4 + [ours]), ("two", [1 - ours])):
        votes = [{"set": 0, "quality": one} for one in chosen]
        (folder / f"{name}.json").write_text(json.dumps({"page": key["page"], "voter": "a", "votes": votes}))
    one, two = folder / "one.json", folder / "two.json"
    for files, expected in (([one, one], "ours"), ([one, two], "theirs"), ([two, folder / "." / "one.json"], "ours")):
        _, [ballot] = ballots(files, folder / "key.json")
        assert ballot == {0: {"quality": expected}}


@pytest.mark.parametrize("changes", [{"orders": 3}, {"orders": []}, {"orders": [[1, 2]]}, {"questions": []}])
def test_files_that_are_no_keys(compared, changes) -> None:
    _, key, folder = compared
    (folder / "key.json").write_text(json.dumps(key | changes))
    with pytest.raises(ValueError, match="is not the key of a comparison page"):
        count_votes([], folder / "key.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "cannot read .* as votes"),
        ("[]", "not votes .* page and votes"),
        ('{"page": "other", "votes": []}', "votes on the page other, the key .* is of"),
        *(
            (f'{{"page": "PAGE", "votes": [{vote}]}}', "a set that the page does not show")
            for vote in ('{"set": 99}', '{"set": -1, "quality": 0}', '{"set": true}', '{"quality": 0}', "null", '"a"')
        ),
        ('{"page": "PAGE", "votes": 3}', "votes must be a list"),
        ('{"page": "PAGE", "votes": [{"set": 0, "quality": -1}]}', "a picture that the page does not show"),
        ('{"page": "PAGE", "votes": [{"set": 0, "quality": [0]}]}', "a picture that the page does not show"),
        ('{"page": "PAGE", "votes": [{"set": 0, "quality": 2}]}', "a picture that the page does not show"),
    ],
)
def test_files_that_are_no_votes(compared, text: str, expected: str) -> None:
    _, key, folder = compared
    (folder / "votes.json").write_text(text.replace("PAGE", key["page"]))
    with pytest.raises(ValueError, match=expected):
        count_votes([folder / "votes.json"], folder / "key.json")


def test_one_model_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="of two at least"):
        blind_page("Which?", [Contest("a", [], {"ours": RED})], seed=0)
