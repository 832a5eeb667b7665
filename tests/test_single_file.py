"""Stable Diffusion 1.5's single files: small ones as models, those of full size by names and shapes alone."""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fcjax import convert, pretrained, single_file, trees
from fcjax.composer import Composer
from fcjax.models.parameters import abstract_part
from fcjax.network_config import UNetConfig
from fcjax.presets import sd15
from fcjax.single_file import TEXT, UNET, VAE, SingleFile, open_single_file
from infer.request import weights_digest
from tests.conftest import TOKENIZER
from tests.stable_diffusion import UNET_CONFIG, VAE_CONFIG, convert_model, ldm_unet_key, ldm_vae_key, text_config

Shapes = dict[str, tuple[int, ...]]


def stored_shapes(config: Any) -> Shapes:
    """Of a network, under diffusers' names."""
    return {
        convert.torch_key(path): convert.torch_shape(path, leaf.shape)
        for path, leaf in trees.flatten(abstract_part(config)).items()
    }


def file_shapes(unet: UNetConfig) -> Shapes:
    """Of all tensors that the original code keeps in one file."""
    vae, text = sd15().vae, sd15().text_encoder
    shapes: Shapes = {"alphas_cumprod": (1000,), "model_ema.decay": (), "model_ema.num_updates": ()}
    for key, shape in stored_shapes(unet).items():
        shapes[UNET + ldm_unet_key(key, unet)] = shape
    for key, shape in stored_shapes(vae).items():
        name = ldm_vae_key(key, len(vae.block_out_channels))
        shapes[VAE + name] = (*shape, 1, 1) if "attn_1" in name and len(shape) == 2 else shape
    for key, shape in stored_shapes(text).items():
        shapes[TEXT + "text_model." + key] = shape
    return {**shapes, TEXT + "text_model.embeddings.position_ids": (1, 77)}


def write_hollow(path: Path, shapes: Shapes) -> None:
    """A file of float16 zeros that takes no room on disk: its end is set, and nothing before it is written."""
    header, end = {}, 0
    for key, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)


UNETS = {"sd15": sd15().reference_unet, "inpainting": dataclasses.replace(sd15().reference_unet, in_channels=9)}


@pytest.fixture(scope="module", params=UNETS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[UNetConfig, SingleFile]:
    path = tmp_path_factory.mktemp("single") / f"{request.param}.safetensors"
    write_hollow(path, file_shapes(UNETS[request.param]))
    return UNETS[request.param], open_single_file(path)


def test_the_configs_are_told_by_the_shapes(opened: tuple[UNetConfig, SingleFile]) -> None:
    unet, single = opened
    assert single.unet_config == unet
    assert single.vae_config == sd15().vae and single.text_config == sd15().text_encoder


def test_every_parameter_has_its_tensor(opened: tuple[UNetConfig, SingleFile]) -> None:
    """None is missing, unused or of another shape: `match_keys` would say so."""
    _, single = opened
    for name, tensors, config, count in (
        ("unet", single.unet, single.unet_config, 686),
        ("vae", single.vae, single.vae_config, 248),
        ("text_encoder", single.text_encoder, single.text_config, 196),
    ):
        matched = convert.match_keys(name, tensors.shapes, abstract_part(config), name)
        assert len(matched) == count and set(tensors.dtypes.values()) == {"F16"}


def test_diffusers_gives_the_tensors_the_same_names_and_shapes(opened: tuple[UNetConfig, SingleFile]) -> None:
    torch = pytest.importorskip("torch")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    unet, single = opened
    with torch.device("meta"):
        stored = {key: torch.empty(shape) for key, shape in file_shapes(unet).items()}
    blocks = [""] * len(sd15().vae.block_out_channels)
    for read, tensors, config in (
        (convert_ldm_unet_checkpoint, single.unet, {"layers_per_block": 2}),
        (convert_ldm_vae_checkpoint, single.vae, {"down_block_types": blocks, "up_block_types": blocks}),
    ):
        theirs = {key: tuple(tensor.shape) for key, tensor in read(dict(stored), config).items()}
        # Their convolutions of 1x1 pixels become Linear layers when they are put into the network.
        assert {
            key: shape[:2] if "attentions" in key and shape[2:] == (1,) else shape for key, shape in theirs.items()
        } == (tensors.shapes)


# ---------------------------------------------------------------------------------------------------------------------
# Small ones


def test_a_single_file_is_the_folder_that_it_came_from(single) -> None:
    path, given = single
    config, params, tokenizer, found, left = pretrained.load(path, dtype="float32")
    assert left == ("alphas_cumprod", "model_ema.decay")
    assert found.startswith("single file") and tokenizer == path.parent / "tokenizer"
    assert config.reference_unet == UNET_CONFIG and config.vae == VAE_CONFIG and config.text_encoder == text_config()
    for ours, theirs in (("reference_unet", "unet"), ("vae", "vae"), ("text_encoder", "text_encoder")):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params[ours], given[theirs])))
    [picture] = Composer.load(path).compose("a woman", steps=1, guidance=1.0)
    assert pretrained.own_sampling(path) == Composer.load(path).config.own_sampling == {"guidance": 7.5, "steps": 20}
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
