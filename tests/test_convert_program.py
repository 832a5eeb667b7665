"""The program that converts: what it says, what it keeps, what it refuses."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fcjax import folder, trees
from fcjax.composer import Composer
from fcjax.network_config import ImageEncoderConfig
from fcjax.tokenizer import Tokenizer
from tests import oracles
from tests.conftest import TOKENIZER
from tests.stable_diffusion import convert_model, dtypes_of, mixed


def test_the_program_converts_and_says_what_it_found(stable, tmp_path: Path, capsys) -> None:
    out = tmp_path / "converted" / "model"
    convert_model(stable[0], out, "--dtype", "bfloat16", "--condition", "tryon")
    printed = capsys.readouterr().out
    assert "found: StableDiffusionPipeline" in printed and "condition tryon, binding all" in printed
    assert "unet reads 9 channels: noise, the person's latents, the mask" in printed
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


def test_a_controlnet_begins_as_the_denoiser(stable, tmp_path: Path, capsys) -> None:
    out = tmp_path / "controlnet"
    convert_model(stable[0], out, "--appearance", "controlnet")
    assert "controlnet " in capsys.readouterr().out
    config, params = folder.load(out)
    assert config.appearance == "controlnet" and config.binder.variant == "none" and params["binder"] == {}
    unet, copied = (trees.flatten(params[name]) for name in ("unet", "controlnet"))
    shared = unet.keys() & copied.keys()
    assert {path.split("/")[0] for path in shared} >= {"conv_in", "time_embedding", "down_blocks_0", "mid_block"}
    for path in shared:
        np.testing.assert_array_equal(copied[path], unet[path])
    # It adds nothing yet.
    added = [path for path in copied if path.startswith(("controlnet_down_blocks", "controlnet_mid_block"))]
    assert added and not any(copied[path].any() for path in added)


def test_an_image_encoder_is_read(stable, tmp_path: Path) -> None:
    encoder = ImageEncoderConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    given = oracles.random_part(encoder)
    folder.save_part(tmp_path / "dinov2", "image_encoder", given, encoder)
    out = tmp_path / "out"
    convert_model(
        stable[0], out, "--appearance", "image_encoder", "--image-encoder", tmp_path / "dinov2" / "image_encoder"
    )
    config, params = folder.load(out)
    assert config.image_encoder == encoder and config.canvas_in_pixels
    jax.tree.map(np.testing.assert_array_equal, params["image_encoder"], given)
    # As wide as the text, so that the denoiser keeps all that it has.
    unet, before = (trees.flatten(one["unet"]) for one in (params, stable[1]))
    unet["conv_in/kernel"] = unet["conv_in/kernel"][:, :, : before["conv_in/kernel"].shape[2]]
    jax.tree.map(np.testing.assert_array_equal, unet, before)


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
    for words, expected in (
        (["controlnet", "--binding", "all"], "a controlnet has no keys and values to bind"),
        (["controlnet", "--image-encoder", stable[0]], "weights belong to the appearance image_encoder"),
        (["image_encoder"], "which needs them: a DINOv2 folder"),
        (
            ["image_encoder", "--image-encoder", stable[0] / "text_encoder"],
            "of type 'clip_text_model'; expected dinov2",
        ),
        (["image_encoder", "--image-encoder", tmp_path], "has no config.json"),
    ):
        assert expected in refused(stable[0], out, "--appearance", *words)
    assert "inpainting" not in refused(tmp_path / "nowhere", out)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        convert_model(stable[0], out, "--dtype", "bf16")
    assert exit_.value.code == 2 and "invalid choice 'bf16' for argument '--dtype'" in capsys.readouterr().err
