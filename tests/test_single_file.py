"""Stable Diffusion 1.5's single files at full size, by the names and shapes of their tensors alone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcjax import convert, trees
from fcjax.models.parameters import abstract_part
from fcjax.network_config import UNetConfig
from fcjax.presets import sd15
from fcjax.single_file import TEXT, UNET, VAE, SingleFile, open_single_file
from tests.stable_diffusion import ldm_unet_key, ldm_vae_key

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
