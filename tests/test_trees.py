"""Parameter paths and first-match rules."""

import numpy as np
import pytest

from fcjax import trees

TREE = {"unet": {"conv_in": {"kernel": np.ones((3, 4)), "bias": np.ones(4)}}, "vae": {"scale": np.ones(2)}}


def test_flatten_and_unflatten_are_each_others_reverse() -> None:
    flat = trees.flatten(TREE)
    assert list(flat) == ["unet/conv_in/kernel", "unet/conv_in/bias", "vae/scale"]
    assert trees.unflatten(flat) == TREE
    assert trees.count(TREE) == 18


def test_the_first_matching_rule_wins_and_must_match_the_whole_path() -> None:
    rules = ((r".*/bias", "bias"), (r"unet/.*", "unet"), (r"vae/.*", "vae"), (r".*", "rest"))
    assert trees.match_rules(TREE, rules) == {
        "unet": {"conv_in": {"kernel": "unet", "bias": "bias"}},
        "vae": {"scale": "vae"},
    }
    part_of_a_path = ((r"conv_in|vae", "half"), (r".*", "whole"))
    assert set(trees.flatten(trees.match_rules(TREE, part_of_a_path)).values()) == {"whole"}


def test_every_uncovered_path_is_listed() -> None:
    with pytest.raises(ValueError) as error:
        trees.match_rules(TREE, ((r".*/bias", 0),))
    message = str(error.value)
    assert message.startswith("2 parameter paths are covered by none of 1 rules")
    assert "unet/conv_in/kernel" in message and "vae/scale" in message and "conv_in/bias" not in message


def test_select_and_merge() -> None:
    keep = trees.match_rules(TREE, ((r"vae/.*", True), (r".*", False)))
    kept = trees.select(TREE, keep)
    assert list(trees.flatten(kept)) == ["vae/scale"]
    rest = trees.select(TREE, trees.map_paths(lambda path, flag: not flag, keep))
    assert trees.flatten(trees.merge(kept, rest)).keys() == trees.flatten(TREE).keys()
    with pytest.raises(ValueError, match=r"more than one tree:\n  vae/scale"):
        trees.merge(kept, TREE)


def test_map_paths_gives_paths_and_leaves_of_all_trees() -> None:
    lengths = trees.map_paths(lambda path, leaf, other: (len(path), leaf is other), TREE, TREE)
    assert lengths == {"unet": {"conv_in": {"kernel": (19, True), "bias": (17, True)}}, "vae": {"scale": (9, True)}}
    with pytest.raises(ValueError, match=r"unet/conv_in/bias \(in one alone\)"):
        trees.map_paths(lambda *_: 0, TREE, {"unet": {"conv_in": {"kernel": 0}}, "vae": {"scale": 0}})


@pytest.mark.parametrize("flat", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}])
def test_a_path_cannot_be_leaf_and_branch(flat: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="'a"):
        trees.unflatten(flat)


def test_keys_are_plain_strings() -> None:
    with pytest.raises(ValueError, match="strings without '/', got 'b/c' under 'a/'"):
        trees.flatten({"a": {"b/c": 1}})
