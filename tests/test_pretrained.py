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

from fcjax import convert, folder, pretrained, single_file, trees
from fcjax.cli import run
from fcjax.composer import Composer
from fcjax.config import Condition, TextConfig, UNetConfig, VAEConfig
from fcjax.models import composer
from fcjax.models.unet import UNet
from fcjax.presets import sd15, tiny
from fcjax.tokenizer import Tokenizer
from infer import convert as convert_program
from infer.request import weights_digest
from tests import oracles
from tests.conftest import TOKENIZER

LATENT = 4


def sd_parts(in_channels: int = LATENT) -> dict[str, Any]:
    """Configs of small networks that only say what Stable Diffusion's files say."""
    small = tiny()
    vocabulary = Tokenizer.load(TOKENIZER).vocab_size
    marks = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    return {
        "unet": dataclasses.replace(small.unet, ff_mult=4, in_channels=in_channels),
        "vae": small.vae,
        "text_encoder": dataclasses.replace(small.text_encoder, vocab_size=vocabulary, **marks),
    }


def save_stable_diffusion(path: Path, kind: str, in_channels: int) -> dict[str, Any]:
    """A folder as diffusers writes it, of random weights, which are returned."""
    parts = sd_parts(in_channels)
    params = {name: oracles.random_part(part) for name, part in parts.items()}
    for name, part in parts.items():
        folder.save_part(path, name, params[name], part)
    scheduler = {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    shutil.copytree(TOKENIZER, path / "tokenizer")
    (path / "model_index.json").write_text(json.dumps({"_class_name": kind, "safety_checker": [None, None]}))
    return params


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
    config, params, tokenizer, found = pretrained.load(path, condition=condition, binding="smallest")
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
    config, params, _, found = pretrained.load(path)
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


def test_folders_that_are_none_of_these(stable, tmp_path: Path) -> None:
    path = Path(shutil.copytree(stable[0], tmp_path / "model"))
    shutil.rmtree(path / "vae")
    with pytest.raises(ValueError, match="incomplete folder of StableDiffusionPipeline: it has no vae"):
        pretrained.load(path)
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(ValueError, match="of StableDiffusionXLPipeline; a composer's or one of Stable"):
        pretrained.load(path)


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


def ldm_unet_key(key: str, config: UNetConfig) -> str:
    """A key of diffusers under the name that the original code's loops give it."""
    layers, parts = config.layers_per_block, key.split(".")
    ends = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    stem, leaf = key.rsplit(".", 1)
    if stem in ends:
        return f"{ends[stem]}.{leaf}"
    if parts[0] == "mid_block":
        place, inside = {"attentions.0": 1, "resnets.0": 0, "resnets.1": 2}[".".join(parts[1:3])], parts[3:]
        prefix, kind = f"middle_block.{place}", parts[1]
    else:
        level, kind, layer, inside = int(parts[1]), parts[2], int(parts[3]), parts[4:]
        side = "input" if parts[0] == "down_blocks" else "output"
        block = 1 + level * (layers + 1) + layer if side == "input" else level * (layers + 1) + layer
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{parts[-1]}"
        if kind == "upsamplers":
            attention = config.up_block_types[level].startswith("CrossAttn")
            return f"output_blocks.{level * (layers + 1) + layers}.{2 if attention else 1}.conv.{parts[-1]}"
        prefix = f"{side}_blocks.{block}.{int(kind == 'attentions')}"
    if kind == "resnets":
        ours = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
        ours |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
        inside = [ours[inside[0]], *inside[1:]]
    return ".".join([prefix, *inside])


def ldm_vae_key(key: str, levels: int) -> str:
    for ours, theirs in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("down_blocks", "down"),
        ("resnets", "block"),
    ):
        key = key.replace(ours, theirs)
    return re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", key)


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
    config, params, tokenizer, found = pretrained.load(path, dtype="float32")
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


def test_a_single_file_without_a_tokenizer_asks_for_one(single, tmp_path: Path) -> None:
    path = Path(shutil.copy(single[0], tmp_path))
    with pytest.raises(ValueError, match="holds no tokenizer: give the tokenizer folder"):
        Composer.load(path)
    assert Composer.load(path, tokenizer=TOKENIZER).config.condition == "pose"


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
        tensors["further.weight"] = tensors.pop(sorted(tensors)[0])
        save_file(tensors, file)
    lonely = Path(shutil.copy(single[0], tmp_path))
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out"
    line = refused(broken, out)
    # Of both parts at once.
    assert line.count("further.weight") == 2 and "2 keys" not in line and "the unet" in line and "the text_enc" in line
    assert "give one with --tokenizer" in refused(lonely, out)
    assert "exists already; give a new folder" in refused(stable[0], broken)
    assert "inpainting" not in refused(tmp_path / "nowhere", out)


# ---------------------------------------------------------------------------------------------------------------------
# The Hub


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = {}

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert pretrained.locate("stable-diffusion-v1-5/stable-diffusion-v1-5") == tmp_path
    assert "*/diffusion_pytorch_model.safetensors" in asked["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert pretrained.locate("mini") == pretrained.MINI and pretrained.locate("a/b/c") == Path("a/b/c")
    assert pretrained.locate(tmp_path) == tmp_path and len(asked) == 1


def test_a_hub_name_that_is_not_cached_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    where = re.escape(str(tmp_path / "models--nobody--nothing"))
    with pytest.raises(ValueError, match=f"nobody/nothing is no path, and not to be had .* {where}"):
        pretrained.locate("nobody/nothing")
