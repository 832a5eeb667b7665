"""CLIP, DINO and DINOv2 against transformers on random weights; what they read of a picture; bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fcjax.metrics.similarity import (
    CLIP_DEVIATION,
    CLIP_MEAN,
    Similarity,
    cut,
    face_similarity,
    load_clip,
    load_dino,
    load_embedder,
    similarity,
    squared,
)
from infer.likeness import likeness, on_white
from infer.sets import WardrobeSets
from tests.conftest import TOKENIZER

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((90, 70, 3), (64, 64, 3), (50, 120, 3))]
SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}


def randomised(module: Any) -> Any:
    """With no zeros among its parameters."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "embed" not in name else 0.2
        torch.nn.init.normal_(parameter, std=scale)
        if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "lambda1")) or "norm" in name:
            parameter.data += 1 if name.endswith("weight") or "lambda" in name else 0
    return module.eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory):
    from transformers import CLIPConfig, CLIPModel

    text = {**SMALL, "vocab_size": 1536, "eos_token_id": 1535, "bos_token_id": 1534, "pad_token_id": 1535}
    vision = {**SMALL, "image_size": 224, "patch_size": 32, "num_attention_heads": 2}
    module = randomised(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)))
    folder = tmp_path_factory.mktemp("clip")
    module.save_pretrained(folder)
    for path in TOKENIZER.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder, module


def vectors(found: Any) -> np.ndarray:
    """Of transformers' answer, which holds them in some versions."""
    array = (found if torch.is_tensor(found) else found.pooler_output).detach().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def processed(name: str, pictures: list[np.ndarray], **settings: Any) -> Any:
    import transformers

    processor = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    return torch.cat([processor(**settings)(picture, return_tensors="pt")["pixel_values"] for picture in pictures])


def test_clip_equals_transformers(clip) -> None:
    folder, module = clip
    ours = load_clip(folder)
    with torch.no_grad():
        theirs = vectors(module.get_image_features(pixel_values=processed("CLIPImageProcessor", PICTURES)))
    np.testing.assert_allclose(ours.images(PICTURES), theirs, atol=1e-4)
    texts = ["a woman in a red dress", "a man"]
    ids = torch.tensor(np.stack([ours.tokenizer.encode(text) for text in texts]), dtype=torch.long)
    with torch.no_grad():
        theirs = vectors(module.get_text_features(input_ids=ids))
    np.testing.assert_allclose(ours.texts(texts), theirs, atol=1e-4)
    assert similarity(ours.texts(texts), ours.texts(texts)) == pytest.approx([100, 100])


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_dino_equals_transformers(pickled: bool, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    module = randomised(ViTModel(ViTConfig(**SMALL, image_size=224, patch_size=32), add_pooling_layer=False))
    module.save_pretrained(tmp_path)
    if pickled:
        stored = tmp_path / "model.safetensors"
        tensors = {key: torch.tensor(array) for key, array in load_file(stored).items()}
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        stored.unlink()
    pixels = processed("BitImageProcessor", PICTURES, size={"shortest_edge": 256}, **_of_imagenet())
    with torch.no_grad():
        theirs = vectors(module(pixels).last_hidden_state[:, 0])
    np.testing.assert_allclose(load_dino(tmp_path).images(PICTURES), theirs, atol=1e-4)


def test_dinov2_equals_transformers(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    sizes = {name: SMALL[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    module = randomised(Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2, image_size=70, patch_size=14)))
    module.save_pretrained(tmp_path)
    pixels = processed("BitImageProcessor", PICTURES, size={"shortest_edge": 256}, **_of_imagenet())
    with torch.no_grad():
        theirs = vectors(module(pixels).last_hidden_state[:, 0])
    np.testing.assert_allclose(load_dino(tmp_path).images(PICTURES), theirs, atol=1e-4)


def _of_imagenet() -> dict[str, Any]:
    return {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def test_variants_see_different_parts(clip) -> None:
    network = load_clip(clip[0])
    picture = np.full((120, 60, 3), 255, np.uint8)
    picture[:20] = (200, 0, 0)
    middle = network.prepared(picture) * np.float32(CLIP_DEVIATION) + np.float32(CLIP_MEAN)
    whole = network.prepared(picture, padded=True) * np.float32(CLIP_DEVIATION) + np.float32(CLIP_MEAN)
    # The red top of a portrait is not in the square in its middle.
    assert middle[..., 1].min() > 0.99 and whole[..., 1].min() < 0.01
    mask = np.zeros((120, 60), bool)
    mask[:20, 10:40] = True
    assert cut(picture, mask).shape == (20, 30, 3) and squared(cut(picture, mask)).shape == (30, 30, 3)
    masked = network.images([picture], "masked", [mask])
    np.testing.assert_allclose(masked, network.images([np.array(cut(picture, mask))], "padded"), atol=1e-6)
    hole = mask.copy()
    hole[5, 20] = False
    assert (cut(picture, hole)[5, 10] == 255).all()


def test_faces_are_compared_by_an_embedder_of_ones_own() -> None:
    assert load_embedder("os.path:basename")("a/b") == "b"
    one, other = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 9, np.uint8)
    assert face_similarity(lambda picture: np.array([1.0, picture.mean()]), one, one) == pytest.approx(100)
    assert face_similarity(lambda picture: np.array([1.0, picture.mean() - 4.5]), one, other) < 0
    with pytest.raises(ValueError, match="vectors of one length"):
        face_similarity(lambda picture: np.zeros(3), one, other)
    assert face_similarity(lambda picture: np.ones(2) if picture.any() else None, one, other) is None
    for name in ("os.path", "no_such_module:f", "os.path:nothing"):
        with pytest.raises(ValueError, match="names no embedder: MODULE:FUNCTION"):
            load_embedder(name)


def mean_color(picture: np.ndarray) -> np.ndarray:
    """A face embedder."""
    return picture.reshape(-1, 3).mean(axis=0) + 1


def test_figures_of_a_set(clip) -> None:
    """One value a garment, or one a picture."""
    figures = likeness(str(clip[0]), (), f"{__name__}:mean_color")
    assert {name: words for name, (words, _) in figures.items()} == {
        "clip_i_whole": "CLIP-I, whole",
        "clip_i_padded": "CLIP-I, padded",
        "clip_i_masked": "CLIP-I, masked",
        "clip_t": "CLIP-T",
        "face_similarity": "face similarity",
        "face_found": "share of faces that the embedder finds",
    }
    sets = WardrobeSets("heldout", 0, 128, 96)
    one = next(sets[index] for index in range(20) if "face" in sets[index].target.kinds)
    garments = sum(kind != "face" for kind in one.target.kinds)
    counts = {name: len(measure(one.target.truth, one)) for name, (_, measure) in figures.items()}
    assert counts["clip_i_whole"] == counts["clip_i_padded"] == garments >= counts["clip_i_masked"]
    assert counts["clip_t"] == counts["face_similarity"] == 1
    own = one.assets[0].image
    assert (on_white(own)[own[..., 3] == 0] == 255).all()
    network = load_clip(clip[0])
    shown = [place for place, kind in enumerate(one.target.kinds) if kind != "face"]
    expected = similarity(
        network.images([on_white(one.assets[place].image) for place in shown], "padded"),
        np.repeat(network.images([one.target.truth], "padded"), len(shown), axis=0),
    )
    np.testing.assert_allclose(figures["clip_i_padded"][1](one.target.truth, one), expected, atol=1e-3)
    assert not likeness()


def no_face_in_the_dark(picture: np.ndarray) -> np.ndarray | None:
    """A face embedder that misses faces."""
    return mean_color(picture) if picture.mean() > 60 else None


def test_faces_that_are_not_found_are_counted() -> None:
    figures = likeness(faces=f"{__name__}:no_face_in_the_dark")
    sets = WardrobeSets("heldout", 0, 128, 96)
    one = next(sets[index] for index in range(20) if "face" in sets[index].target.kinds)
    seen, missed = one.target.truth, np.zeros((128, 96, 3), np.uint8)
    values = [[len(figures[name][1](picture, one)) for name in figures] for picture in (seen, missed)]
    assert list(figures) == ["face_similarity", "face_found"] and values == [[1, 1], [0, 1]]
    assert [figures["face_found"][1](picture, one) for picture in (seen, missed)] == [[1.0], [0.0]]


def test_what_runs_without_a_network_is_said(tmp_path: Path) -> None:
    for flags, words in (
        (
            {"clip": str(tmp_path)},
            r"--clip .* cannot be had: .*config.json.* all figures but CLIP-I and CLIP-T still run",
        ),
        (
            {"dino": (str(tmp_path),)},
            r"--dino .* cannot be had: .* without --dino all figures but the similarity by it",
        ),
        ({"dino": ("a/vits16", "b/vits16")}, "must differ; got a/vits16, b/vits16"),
    ):
        with pytest.raises(ValueError, match=words):
            likeness(**flags)


def test_wrong_requests(clip, tmp_path: Path) -> None:
    network = load_clip(clip[0])
    with pytest.raises(ValueError, match="expected one of whole, padded, masked"):
        network.images(PICTURES, "cropped")  # pyright: ignore[reportArgumentType]
    for variant, masks in (("masked", None), ("whole", [np.ones((90, 70), bool)]), ("masked", [])):
        with pytest.raises(ValueError, match='belongs to the variant "masked"'):
            network.images(PICTURES, variant, masks)
    with pytest.raises(ValueError, match="the mask is empty"):
        cut(PICTURES[0], np.zeros((90, 70), bool))
    with pytest.raises(ValueError, match=r"the mask is \(3, 3\)"):
        cut(PICTURES[0], np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="embeds pictures alone"):
        Similarity(network.encoder._replace(texts=None), 224, CLIP_MEAN, CLIP_DEVIATION, None).texts(["a"])


def test_folders_that_do_not_serve(clip, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has no config.json"):
        load_dino(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="model.safetensors or pytorch_model.bin is expected"):
        load_dino(tmp_path)
    with pytest.raises(ValueError, match="of type 'vit'; expected clip"):
        load_clip(tmp_path)
    with pytest.raises(ValueError, match="of type 'clip'; expected vit or dinov2"):
        load_dino(clip[0])
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no readable safetensors file"):
        load_dino(tmp_path)
