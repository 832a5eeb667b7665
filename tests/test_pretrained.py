"""Models of others become composers: Stable Diffusion folders, inpainting folders, single files, names on the Hub."""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fcjax import convert, folder, pretrained, single_file, trees, weights
from fcjax.cli import run
from fcjax.composer import Composer, warn_of_slow_bfloat16
from fcjax.config import Condition
from fcjax.models import composer
from fcjax.models.unet import UNet
from fcjax.network_config import TextConfig, UNetConfig, VAEConfig
from fcjax.presets import sd15
from fcjax.tokenizer import Tokenizer
from infer import convert as convert_program
from infer.request import weights_digest
from tests import oracles
from tests.conftest import TOKENIZER
from tests.stable_diffusion import LATENT, ldm_unet_key, ldm_vae_key, save_stable_diffusion, sd_parts


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("sd") / "model"
    return path, save_stable_diffusion(path, "StableDiffusionPipeline", LATENT)


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("inpainting") / "model"
    return path, save_stable_diffusion(path, "StableDiffusionInpaintPipeline", 2 * LATENT + 1)


@pytest.mark.parametrize("condition", ["pose", "tryon"])
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


def test_a_composer_becomes_a_tryon_model_that_sees_no_person_yet(tiny_model_folder: Path, tmp_path: Path):
    posed, tryon = pretrained.load(tiny_model_folder), pretrained.load(tiny_model_folder, condition="tryon")
    latent = posed.config.vae.latent_channels
    assert tryon.config.condition == "tryon" and tryon.config.unet.in_channels == 2 * latent + 1
    before, after = (model.params["unet"]["conv_in"]["kernel"] for model in (posed, tryon))
    np.testing.assert_array_equal(after[:, :, :latent], before[:, :, :latent])
    assert not np.asarray(after[:, :, latent:]).any()
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


def mixed(path: Path, source: Path) -> Path:
    """A copy of a folder whose UNet is of half precision and whose VAE has a bfloat16 tensor."""
    shutil.copytree(source, path)
    unet, vae = (path / name / "diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))
    save_file({key: tensor.astype(np.float16) for key, tensor in load_file(unet).items()}, unet)
    tensors = load_file(vae)
    save_file({**tensors, "decoder.conv_out.bias": tensors["decoder.conv_out.bias"].astype(jnp.bfloat16)}, vae)
    return path


def dtypes_of(tree: Any) -> set[str]:
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


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


# ---------------------------------------------------------------------------------------------------------------------
# Single files


UNET_CONFIG = UNetConfig(
    block_out_channels=(32, 64, 64),
    down_block_types=sd15().unet.down_block_types[1:],
    up_block_types=sd15().unet.up_block_types[:3],
    cross_attention_dim=64,
    layers_per_block=1,
)
VAE_CONFIG = VAEConfig(block_out_channels=(32, 64), layers_per_block=1)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A single file of small networks, and their parameters."""
    params = {
        "unet": oracles.random_part(UNET_CONFIG),
        "vae": oracles.random_part(VAE_CONFIG),
        "text_encoder": oracles.random_part(text_config()),
    }
    stored = {"model_ema.decay": np.ones((), np.float32), "alphas_cumprod": np.ones(1000, np.float32)}
    for key, tensor in convert.state_dict(params["unet"]).items():
        stored[single_file.UNET + ldm_unet_key(key, UNET_CONFIG)] = tensor
    for key, tensor in convert.state_dict(params["vae"]).items():
        name = ldm_vae_key(key, len(VAE_CONFIG.block_out_channels))
        stored[single_file.VAE + name] = tensor[..., None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
    for key, tensor in convert.state_dict(params["text_encoder"]).items():
        stored[single_file.TEXT + "text_model." + key] = tensor
    stored[single_file.TEXT + "text_model.embeddings.position_ids"] = np.arange(77)[None]
    path = tmp_path_factory.mktemp("single") / "v1-5-pruned-emaonly.safetensors"
    save_file({key: np.ascontiguousarray(tensor) for key, tensor in stored.items()}, path)
    shutil.copytree(TOKENIZER, path.parent / "tokenizer")
    return path, params


def text_config() -> TextConfig:
    return dataclasses.replace(sd_parts()["text_encoder"], hidden_size=64, intermediate_size=96, num_attention_heads=1)


def test_a_single_file_is_the_folder_that_it_came_from(single) -> None:
    path, given = single
    config, params, tokenizer, found, left = pretrained.load(path, dtype="float32")
    assert left == ("alphas_cumprod", "model_ema.decay")
    assert found.startswith("single file") and tokenizer == path.parent / "tokenizer"
    assert config.reference_unet == UNET_CONFIG and config.vae == VAE_CONFIG and config.text_encoder == text_config()
    for ours, theirs in (("reference_unet", "unet"), ("vae", "vae"), ("text_encoder", "text_encoder")):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params[ours], given[theirs])))
    [picture] = Composer.load(path).compose("a woman", steps=1, guidance=1.0)
    assert picture.image.size == (96, 128)
    assert weights_digest(path) == hashlib.sha256(hashlib.sha256(path.read_bytes()).digest()).hexdigest()


def test_diffusers_reads_the_single_file_alike(single) -> None:
    torch = pytest.importorskip("torch")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    path, _ = single
    opened = single_file.open_single_file(path)
    for read, tensors, config in (
        (convert_ldm_unet_checkpoint, opened.unet, {"layers_per_block": 1}),
        (convert_ldm_vae_checkpoint, opened.vae, {"down_block_types": [""] * 2, "up_block_types": [""] * 2}),
    ):
        stored = {key: torch.from_numpy(tensor) for key, tensor in load_file(path).items()}
        theirs = read(stored, config)
        assert theirs.keys() == tensors.shapes.keys()
        for key, tensor in theirs.items():
            np.testing.assert_array_equal(tensors.read(key), tensor.numpy().reshape(tensors.shapes[key]))


def test_all_that_a_single_file_lacks_is_listed_at_once(single, tmp_path: Path) -> None:
    stored = load_file(single[0])
    del stored["model.diffusion_model.input_blocks.1.0.in_layers.2.bias"]
    stored["model.diffusion_model.lora.weight"] = np.ones(3, np.float32)
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        pretrained.load(tmp_path / "model.safetensors")
    assert "down_blocks.0.resnets.0.conv1.bias" in str(error.value) and "lora.weight" in str(error.value)


def test_all_that_configs_are_told_by_is_listed_at_once(single, tmp_path: Path) -> None:
    unet, vae, text = single_file.UNET, single_file.VAE, single_file.TEXT
    absent = (
        f"{unet}input_blocks.1.0.in_layers.2.weight",
        f"{unet}middle_block.1.proj_in.weight",
        f"{vae}quant_conv.weight",
        f"{vae}encoder.down.0.block.0.conv1.weight",
        f"{text}text_model.embeddings.position_embedding.weight",
    )
    path = tmp_path / "model.safetensors"
    save_file({key: tensor for key, tensor in load_file(single[0]).items() if key not in absent}, path)
    with pytest.raises(ValueError) as error:
        pretrained.load(path)
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert lines[0].startswith(f"{path} lacks tensors") and f"under {vae} there are " in lines[4]
    assert [lines[index] for index in (2, 3, 5, 6, 8)] == [
        "down_blocks.0.resnets.0.conv1.weight",
        "mid_block.attentions.0.proj_in.weight",
        "quant_conv.weight",
        "encoder.down_blocks.0.resnets.0.conv1.weight",
        "text_model.embeddings.position_embedding.weight",
    ]
    stored = {key: tensor for key, tensor in load_file(single[0]).items() if "_blocks." not in key}
    save_file(stored, path)
    with pytest.raises(
        ValueError, match=r"lacks tensors .*\n.*model\.diffusion_model\.(.|\n)*down_blocks\.0\.resnets\.0"
    ):
        pretrained.load(path)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_damaged_weights(kind: str, stable, single, tmp_path: Path) -> None:
    """Cut short, and with a value that is none, in a folder and in a single file."""
    if kind == "folder":
        path = Path(shutil.copytree(stable[0], tmp_path / "model"))
        file, key = path / "text_encoder" / "model.safetensors", "text_model.final_layer_norm.bias"
    else:
        path = file = Path(shutil.copy(single[0], tmp_path / "model.safetensors"))
        key = single_file.VAE + "quant_conv.bias"
    tensors, whole = load_file(file), file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=re.escape(f"{file} is no readable safetensors file (cut short?)")):
        pretrained.load(path)
    tensors[key] = np.full_like(tensors[key], np.nan)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}: {re.escape(key)} holds values that are not finite"):
        pretrained.load(path)


def test_a_pickle_is_called_one(tmp_path: Path) -> None:
    file = tmp_path / "v1-5-pruned-emaonly.ckpt"
    file.write_bytes(b"PK")
    with pytest.raises(ValueError, match="emaonly.ckpt is a pickle, which can run code: save it as safetensors first"):
        pretrained.load(file)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("conditioner.embedders.0.a", "a file of SDXL"),
        ("cond_stage_model.model.a", r"of Stable Diffusion 2\.x: give the folder"),
        ("lora.weight", "holds no tensors under model.diffusion_model., first_stage_model., cond_stage_model"),
    ],
)
def test_other_single_files_are_refused(tmp_path: Path, key: str, message: str) -> None:
    save_file({key: np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        pretrained.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["single", "stable", "composer"])
def test_a_model_without_a_tokenizer_asks_for_one(
    kind: str, single, stable, tiny_model_folder: Path, tmp_path: Path, capsys
) -> None:
    source = {"single": single[0], "stable": stable[0], "composer": tiny_model_folder}[kind]
    if kind == "single":
        path = Path(shutil.copy(source, tmp_path))
    else:
        path = Path(shutil.copytree(source, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer")))
    with pytest.raises(ValueError, match="holds no tokenizer: give the tokenizer folder"):
        Composer.load(path)
    assert Composer.load(path, tokenizer=TOKENIZER).config.condition == "pose"
    convert_model(path, tmp_path / "converted", "--tokenizer", TOKENIZER)
    assert (tmp_path / "converted/tokenizer/vocab.json").is_file()
    said = "  left aside: 2 tensors of no network, 1 of them averages (model_ema.)\n"
    assert (said in capsys.readouterr().out) == (kind == "single")


# ---------------------------------------------------------------------------------------------------------------------
# The program


def convert_model(*words: object) -> None:
    run(convert_program.main, [str(word) for word in words])


def test_the_program_converts_and_says_what_it_found(stable, tmp_path: Path, capsys) -> None:
    out = tmp_path / "converted" / "model"
    convert_model(stable[0], out, "--dtype", "bfloat16", "--condition", "tryon")
    printed = capsys.readouterr().out
    assert "found: StableDiffusionPipeline" in printed and "condition tryon, binding all" in printed
    config, params = folder.load(out)
    assert config.condition == "tryon" and {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert sorted(path.name for path in out.parent.iterdir()) == ["model"]
    assert Tokenizer.load(out / "tokenizer").vocab_size == Tokenizer.load(TOKENIZER).vocab_size


def test_the_program_keeps_what_every_tensor_is_stored_as(stable, tmp_path: Path, capsys) -> None:
    out = tmp_path / "converted"
    convert_model(mixed(tmp_path / "mixed", stable[0]), out)
    printed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "M parameters" in line}
    assert printed["unet"].endswith("  float16") and printed["vae"].endswith("  bfloat16, float32")
    params = folder.load(out)[1]
    assert dtypes_of(params["unet"]) == dtypes_of(params["reference_unet"]) == {"float16"}
    assert dtypes_of(params["text_encoder"]) == {"float32"} and dtypes_of(params["binder"]) == {"float16"}
    vae = trees.flatten(params["vae"])
    assert dtypes_of(vae.pop("decoder/conv_out/bias")) == {"bfloat16"} and dtypes_of(vae) == {"float32"}
    np.testing.assert_array_equal(vae["encoder/conv_in/kernel"], stable[1]["vae"]["encoder"]["conv_in"]["kernel"])


def test_the_program_names_what_another_folder_holds(tiny_model_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "tryon"
    convert_model(tiny_model_folder, tmp_path / "whole")
    convert_model(tmp_path / "whole", out, "--condition", "tryon", "--shared-with", tmp_path / "whole")
    printed = capsys.readouterr().out
    assert "reference_unet, vae, text_encoder, tokenizer, scheduler, binder" in printed
    assert sorted(path.name for path in out.iterdir()) == ["model_index.json", "unet"]
    assert Composer.load(out).config.condition == "tryon"


def test_the_program_refuses_in_one_line_and_writes_nothing(stable, single, tmp_path: Path, capsys) -> None:
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            convert_model(*words)
        assert exit_.value.code == 2 and sorted(tmp_path.iterdir()) == before
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    broken = Path(shutil.copytree(stable[0], tmp_path / "broken"))
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = broken / part / f"{stem}.safetensors"
        tensors = load_file(file)
        first, second, *_ = sorted(tensors)
        tensors["further.weight"] = tensors.pop(first)
        tensors[second] = np.ones((2, 1), np.float32)
        save_file(tensors, file)
    lonely = Path(shutil.copy(single[0], tmp_path))
    larger = Path(shutil.copytree(TOKENIZER, tmp_path / "larger"))
    words = json.loads((larger / "vocab.json").read_text())
    (larger / "vocab.json").write_text(json.dumps({**words, "one more": len(words)}))
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out"
    line = refused(broken, out)
    # Of both parts at once.
    assert line.count("1 keys missing, 1 unused, 1 of another shape missing: ") == 2 and "the text_encoder" in line
    assert line.count("unused: further.weight of another shape: ") == 2 and line.count(": (2, 1) in the file, (") == 2
    assert "give one with --tokenizer" in refused(lonely, out)
    assert "exists already; give a new folder" in refused(stable[0], broken)
    assert "there is no model folder nowhere" in refused(stable[0], out, "--shared-with", "nowhere")
    assert "they belong to different models" in refused(stable[0], out, "--tokenizer", larger)
    assert "inpainting" not in refused(tmp_path / "nowhere", out)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        convert_model(stable[0], out, "--dtype", "bf16")
    assert exit_.value.code == 2 and "invalid choice 'bf16' for argument '--dtype'" in capsys.readouterr().err
