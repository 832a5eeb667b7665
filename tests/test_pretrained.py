"""Folders of others become composers: Stable Diffusion and inpainting, whole or damaged."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fcjax import pretrained, trees, weights
from fcjax.composer import Composer, warn_of_slow_bfloat16
from fcjax.config import Condition
from fcjax.models import composer
from fcjax.models.unet import UNet
from fcjax.presets import sd15
from fcjax.tokenizer import Tokenizer
from tests import oracles
from tests.conftest import TOKENIZER
from tests.stable_diffusion import LATENT, dtypes_of, mixed, save_stable_diffusion


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("inpainting") / "model"
    return path, save_stable_diffusion(path, "StableDiffusionInpaintPipeline", 2 * LATENT + 1)


@pytest.mark.parametrize("condition", ["pose", "tryon", "posed_tryon"])
def test_a_plain_model_predicts_as_before_whatever_the_condition(stable, condition: Condition) -> None:
    path, given = stable
    config, params, tokenizer, found, _ = pretrained.load(path, condition=condition, binding="smallest")
    assert config.condition == condition and config.binder.variant == "smallest" and tokenizer == path / "tokenizer"
    assert "StableDiffusionPipeline" in found and config.diffusion == sd15().diffusion
    assert (config.height, config.width) == (32, 24)
    height, width, channels = 8, 6, config.condition_channels
    noisy, condition_map = oracles.normal(0, 1, height, width, LATENT), oracles.normal(1, 1, height, width, channels)
    text, times = oracles.normal(2, 1, 77, config.text_encoder.hidden_size), jnp.asarray([300.0])
    prediction = composer.denoise(params, config, noisy, times, text, condition_map)
    before = UNet(dataclasses.replace(config.unet, in_channels=LATENT)).apply(
        {"params": given["unet"]}, noisy, times, text
    )
    np.testing.assert_allclose(prediction, before, atol=1e-5)
    # The reference UNet is the UNet, and the binder adds nothing yet.
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params["reference_unet"], given["unet"])))
    binder = trees.flatten(params["binder"])
    assert binder and not any(leaf.any() for name, leaf in binder.items() if "linear_2" in name)
    for name in ("vae", "text_encoder"):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params[name], given[name])))


def test_an_inpainting_model_reads_its_channels_in_our_order(inpainting) -> None:
    path, given = inpainting
    config, params, _, found, _ = pretrained.load(path)
    assert config.condition == "tryon" and "Inpaint" in found
    posed = pretrained.load(path, condition="posed_tryon")
    kernel, wider = (one["unet"]["conv_in"]["kernel"] for one in (params, posed.params))
    # Noise, the pose with no weight yet, person and mask.
    assert wider.shape[2] == posed.config.unet.in_channels == kernel.shape[2] + 2
    np.testing.assert_array_equal(np.delete(wider, [LATENT, LATENT + 1], axis=2), kernel)
    assert not np.asarray(wider[:, :, LATENT : LATENT + 2]).any()
    noisy, person = oracles.normal(0, 1, 8, 6, LATENT), oracles.normal(1, 1, 8, 6, LATENT)
    mask = (oracles.normal(2, 1, 8, 6, 1) > 0).astype(jnp.float32)
    text, times = oracles.normal(3, 1, 77, config.text_encoder.hidden_size), jnp.asarray([300.0])
    ours = composer.denoise(params, config, noisy, times, text, jnp.concatenate([person, mask], axis=-1))
    theirs = UNet(dataclasses.replace(config.unet, in_channels=9)).apply(
        {"params": given["unet"]}, jnp.concatenate([noisy, mask, person], axis=-1), times, text
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # The reference UNet sees latents alone.
    np.testing.assert_array_equal(
        params["reference_unet"]["conv_in"]["kernel"], given["unet"]["conv_in"]["kernel"][:, :, :LATENT]
    )
    with pytest.raises(ValueError, match="inpainting model, which can become a try-on model"):
        pretrained.load(path, condition="pose")


def test_a_stable_diffusion_folder_composes_and_is_saved_as_a_composer(stable, tmp_path: Path) -> None:
    loaded = Composer.load(stable[0])
    [picture] = loaded.compose("a woman", seed=1, steps=1, guidance=1.0)
    assert picture.image.size == (24, 32)
    loaded.save(tmp_path / "model")
    again = Composer.load(tmp_path / "model")
    assert again.config == loaded.config
    [same] = again.compose("a woman", seed=1, steps=1, guidance=1.0)
    assert np.array_equal(np.asarray(same.image), np.asarray(picture.image))
    assert again.tokenizer.words == loaded.tokenizer.words
    with pytest.raises(ValueError, match="is a composer with binding 'all'; it cannot become one with 'none'"):
        pretrained.load(tmp_path / "model", binding="none")


def test_stable_diffusion_is_sampled_its_own_way(stable, inpainting, tiny_model_folder: Path, tmp_path: Path):
    loaded = Composer.load(stable[0])
    pictures = [
        np.asarray(loaded.compose("a woman", steps=1, **settings)[0].image)
        for settings in ({}, {"guidance": 7.5}, {"guidance": 1.5})
    ]
    assert np.array_equal(*pictures[:2]) and not np.array_equal(pictures[0], pictures[2])
    loaded.save(tmp_path / "model")
    for path, guidance, steps in (
        (stable[0], 7.5, 20),
        (inpainting[0], 7.5, 20),
        (tmp_path / "model", 7.5, 20),
        (tiny_model_folder, 1.5, 20),
        (pretrained.MINI, 1.25, 4),
        (pretrained.MINI_TRYON, 1.25, 8),
    ):
        own = {"guidance": guidance, "steps": steps}
        assert pretrained.own_sampling(path) == pretrained.load(path).config.own_sampling == own
        if path.parent == pretrained.MINI.parent:
            assert own.items() <= json.loads((path / "model_index.json").read_text())["fcjax"].items()


def test_a_composer_becomes_a_tryon_model_that_sees_no_person_yet(tiny_model_folder: Path, tmp_path: Path):
    posed, tryon = pretrained.load(tiny_model_folder), pretrained.load(tiny_model_folder, condition="tryon")
    latent = posed.config.vae.latent_channels
    assert tryon.config.condition == "tryon" and tryon.config.unet.in_channels == 2 * latent + 1
    before, after = (model.params["unet"]["conv_in"]["kernel"] for model in (posed, tryon))
    np.testing.assert_array_equal(after[:, :, :latent], before[:, :, :latent])
    assert not np.asarray(after[:, :, latent:]).any()
    both = pretrained.load(tiny_model_folder, condition="posed_tryon")
    told = both.params["unet"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(told[:, :, : before.shape[2]], before)
    assert told.shape[2] == before.shape[2] + latent + 1 and not np.asarray(told[:, :, before.shape[2] :]).any()
    Composer(tryon.config, tryon.params, Tokenizer.load(TOKENIZER)).save(tmp_path / "tryon")
    with pytest.raises(ValueError, match="is a composer with condition 'tryon'; it cannot become one with 'pose'"):
        pretrained.load(tmp_path / "tryon", condition="pose")


def test_files_of_half_precision_are_found(stable, tmp_path: Path) -> None:
    path = Path(shutil.copytree(stable[0], tmp_path / "model"))
    file = path / "vae" / "diffusion_pytorch_model.safetensors"
    half = {key: tensor.astype(np.float16) for key, tensor in load_file(file).items()}
    file.unlink()
    save_file(half, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    vae = pretrained.load(path).params["vae"]
    assert {leaf.dtype for leaf in jax.tree.leaves(vae)} == {np.dtype("float16")}
    (path / "vae" / "diffusion_pytorch_model.fp16.safetensors").rename(path / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no weights of its vae: .* diffusion_pytorch_model\.bin is a pickle"):
        pretrained.load(path)


def test_parameters_lie_in_the_dtype_of_computation(stable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or as is asked: a float32 folder takes no more of a card than the bfloat16 that it computes in."""
    monkeypatch.setattr("fcjax.composer.jax.__version__", "0.10.0")  # a later one has something to say of CPUs
    path = mixed(tmp_path / "mixed", stable[0])
    for dtype in ("float32", "bfloat16", jnp.float16):
        loaded = Composer.load(path, dtype)
        assert loaded.dtype == dtype and dtypes_of(loaded.params) == {jnp.dtype(dtype).name}
    assert dtypes_of(Composer.load(path, "bfloat16", param_dtype="float32").params) == {"float32"}
    assert Composer.load(path).dtype == jnp.float32
    for settings in ({"dtype": "bf16"}, {"dtype": "int8"}, {"dtype": float}, {"param_dtype": "fp16"}):
        with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16; got"):
            Composer.load(path, **settings)
    with pytest.raises(ValueError, match="dtype must be one of .*; got 'fp32'"):
        Composer(loaded.config, loaded.params, loaded.tokenizer, "fp32")


def test_parameters_are_saved_as_they_are_held(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = Composer.load(tiny_model_folder, param_dtype="bfloat16")
    for dtype, stored in ((None, "BF16"), ("float32", "F32")):
        model.save(tmp_path, dtype=dtype)
        assert set(weights.Tensors.of_part(tmp_path / "unet", "diffusion_pytorch_model").dtypes.values()) == {stored}


def test_what_a_model_of_others_becomes_is_chosen_when_loading(stable) -> None:
    config = Composer.load(stable[0], condition="tryon", binding="smallest").config
    assert config.condition == "tryon" and config.binder.variant == "smallest" and config.unet.in_channels == 9
    assert Composer.load(stable[0]).config.condition == "pose"


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("version", ["0.11.9", "0.12.0", "1.0.0.dev1"])
def test_slow_bfloat16_is_warned_of(version: str, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a faster way: newer versions of JAX on a CPU, whose flag is not set."""
    monkeypatch.setattr("fcjax.composer.jax.__version__", version)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_onednn_custom_call=true" if onednn else "")
    warn_of_slow_bfloat16(jnp.dtype("float32"))
    if version == "0.11.9" or onednn:
        warn_of_slow_bfloat16(jnp.dtype("bfloat16"))
    else:
        with pytest.warns(UserWarning, match="XLA_FLAGS=--xla_cpu_experimental_onednn_custom_call=true"):
            warn_of_slow_bfloat16(jnp.dtype("bfloat16"))


def test_folders_that_are_none_of_these(stable, tmp_path: Path) -> None:
    path = Path(shutil.copytree(stable[0], tmp_path / "model"))
    shutil.rmtree(path / "vae")
    with pytest.raises(ValueError, match="incomplete folder of StableDiffusionPipeline: it has no vae"):
        pretrained.load(path)
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(ValueError, match="of StableDiffusionXLPipeline; a composer's or one of Stable"):
        pretrained.load(path)


def test_a_unet_of_a_height_and_a_width_starts_with_them(stable, tmp_path: Path) -> None:
    path = Path(shutil.copytree(stable[0], tmp_path / "model"))
    file = path / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sample_size": [8, 16]}))
    config = pretrained.load(path).config
    assert (config.height, config.width) == (32, 64) and config.unet.sample_size == (8, 16)


def test_a_unet_of_other_channels_is_refused(tmp_path: Path) -> None:
    save_stable_diffusion(tmp_path / "model", "StableDiffusionPipeline", 7)
    with pytest.raises(ValueError, match=r"takes 7 channels; 4 \(latents\) or 9 \(inpainting"):
        pretrained.load(tmp_path / "model")
