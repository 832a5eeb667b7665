"""Parse maps by a segmentation model: tiny random ones, saved and read as real ones are."""

import sys
from pathlib import Path

import numpy as np
import pytest

from train.parser import Parser, meant, numbered

LABELS = ["Background", "Hair", "Upper-clothes", "Left-arm", "right_shoe", "Jumpsuits"]
PARTS = {"background": 0, "hair": 7, "upper": 3, "left_arm": 4, "shoes": 9, "dress": 2}


@pytest.fixture(scope="module", params=["mask2former", "segformer"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation model of random numbers with these labels, and its processor."""
    torch = pytest.importorskip("torch")
    import transformers

    path = tmp_path_factory.mktemp(request.param)
    save(request.param, path, LABELS, torch, transformers)
    return path


def save(kind: str, path: Path, labels: list[str], torch, transformers) -> None:
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}
    size = {"height": 64, "width": 64}
    if kind == "mask2former":
        swin = transformers.SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        config = transformers.Mask2FormerConfig(
            backbone_config=swin,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            dim_feedforward=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=12,
            **named,
        )
        transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(path)
        transformers.Mask2FormerImageProcessorPil(size=size, num_labels=len(labels)).save_pretrained(path)
    else:
        config = transformers.SegformerConfig(
            depths=[1, 1, 1, 1],
            hidden_sizes=[4, 4, 8, 8],
            num_attention_heads=[1, 1, 1, 1],
            decoder_hidden_size=8,
            **named,
        )
        transformers.SegformerForSemanticSegmentation(config).save_pretrained(path)
        transformers.SegformerImageProcessorPil(size=size).save_pretrained(path)


def test_every_pixel_gets_one_of_our_labels(model: Path):
    parser = Parser(str(model))
    picture = np.random.default_rng(0).integers(0, 256, (50, 38, 3), np.uint8)
    found = parser.parse(picture, PARTS)
    assert found.shape == (50, 38) and found.dtype == np.uint8
    assert set(np.unique(found)) <= set(PARTS.values())
    assert np.array_equal(found, parser.parse(picture, PARTS))
    # Other numbers for the same labels give the same map of other numbers.
    shifted = parser.parse(picture, {name: number + 20 for name, number in PARTS.items()})
    assert np.array_equal(shifted, found + 20)


def test_other_models_are_refused(tmp_path: Path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    save("segformer", tmp_path / "rooms", ["wall", "Hair", "sofa"], torch, transformers)
    with pytest.raises(ValueError, match="labels that are no parts of a dressed person: wall, sofa; name a model"):
        Parser(str(tmp_path / "rooms"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="expected a segmentation model, got .*, which is a bert"):
        Parser(str(tmp_path))
    with pytest.raises(OSError, match="nowhere"):
        Parser(str(tmp_path / "nowhere"))


def test_labels_are_known_by_what_they_are_called():
    assert numbered(LABELS, PARTS).tolist() == [0, 7, 3, 4, 9, 2]
    assert meant("Right-arm") == ("right_arm", "arm", "arms") and meant("sofa") == ()
    with pytest.raises(ValueError, match="no part for the label 'Belt': expected one of belt"):
        numbered(["Belt"], PARTS)


# The labels of the models that people use: SegFormer trained on ATR, and LIP.
ATR = "Background,Hat,Hair,Sunglasses,Upper-clothes,Skirt,Pants,Dress,Belt,Left-shoe,Right-shoe,Face,Left-leg,Right-leg"
ATR += ",Left-arm,Right-arm,Bag,Scarf"
LIP = "Background,Hat,Hair,Glove,Sunglasses,Upper-clothes,Dress,Coat,Socks,Pants,Jumpsuits,Scarf,Skirt,Face,Left-arm"
LIP += ",Right-arm,Left-leg,Right-leg,Left-shoe,Right-shoe"


@pytest.mark.parametrize("labels", [ATR, LIP])
def test_the_usual_labels_are_all_known(labels: str):
    assert [label for label in labels.split(",") if not meant(label)] == []


def test_torch_is_an_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"--parse-by needs torch: pip install 'fcjax\[vision\]'"):
        Parser("any")
