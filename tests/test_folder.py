"""Model folders: what is written is read again, diffusers opens it, and a wrong folder says what is wrong."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fcjax import convert, folder, part_config, trees
from fcjax.config import ComposerConfig
from fcjax.models.parameters import abstract_parameters
from fcjax.network_config import BindingVariant
from fcjax.presets import mini, sd15, tiny
from fcjax.weights import write_tensors
from tests import oracles


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ComposerConfig, dict[str, Any]]:
    config = tiny()
    wide = {name: dataclasses.replace(getattr(config, name), ff_mult=4) for name in ("unet", "reference_unet")}
    config = dataclasses.replace(config, **wide)
    params = oracles.random_parameters(abstract_parameters(config))
    path = tmp_path_factory.mktemp("folder") / "model"
    folder.save(path, params, config)
    return path, config, params


@pytest.fixture
def broken(saved, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[0], tmp_path / "model"))


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_is_saved_is_loaded(saved) -> None:
    path, config, params = saved
    loaded_config, loaded = folder.load(path)
    assert loaded_config == config
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, loaded)))


@pytest.mark.parametrize("variant", ["none", "conv_in"])
def test_every_variant_and_dtype(variant: BindingVariant, tmp_path: Path) -> None:
    config = tiny(variant, condition="tryon")
    params = oracles.random_parameters(abstract_parameters(config))
    folder.save(tmp_path, params, config, dtype="bfloat16")
    loaded_config, loaded = folder.load(tmp_path)
    assert loaded_config == config and set(loaded) == {*params, "binder"}
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(loaded))
    wider = trees.flatten(folder.load(tmp_path, dtype=jnp.float32)[1])
    for path, leaf in trees.flatten(params).items():
        np.testing.assert_allclose(wider[path], leaf, rtol=2**-8)
    with pytest.raises(ValueError, match="must be one of float32, bfloat16, float16; got 'bf16'"):
        folder.save(tmp_path, params, config, dtype="bf16")


@pytest.mark.parametrize("config", [sd15(), mini(), tiny()], ids=["sd15", "mini", "tiny"])
def test_configs_of_the_presets_survive(config: ComposerConfig) -> None:
    for name in (*config.networks, "binder", "scheduler"):
        part = config.diffusion if name == "scheduler" else getattr(config, name)
        written = json.loads(json.dumps(part_config.config_dict(name, part)))
        assert part_config.parse_config(type(part), written, name) == part


def test_a_model_keeps_how_it_is_sampled(broken: Path, saved) -> None:
    """Folders of before these were settings say nothing of them, and were sampled at 1.5 in 20 steps."""
    index = broken / "model_index.json"
    own = json.loads(index.read_text())["fcjax"]
    sampling = saved[1].own_sampling
    assert sampling.items() <= own.items()
    for said in ({"guidance": 3, "steps": 8}, {"steps": 9}, {}):
        _edit(index, fcjax={**{key: own[key] for key in own if key not in sampling}, **said})
        assert folder.load_config(broken).own_sampling == {"guidance": 1.5, "steps": 20, **said}
    for wrong, message in (
        ({"guidance": None}, "guidance is None, a number is expected"),
        ({"guidance": 1e9}, "must be a finite number"),
        ({"steps": 2.5}, "steps is 2.5, a whole number is expected"),
        ({"steps": 0}, "steps must be positive whole numbers, got 0"),
    ):
        _edit(index, fcjax={**own, **wrong})
        with pytest.raises(ValueError, match=message):
            folder.load_config(broken)


def test_diffusers_and_transformers_open_the_parts(saved) -> None:
    pytest.importorskip("torch")
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    path, _, params = saved
    opened = {
        "unet": UNet2DConditionModel.from_pretrained(path / "unet"),
        "vae": AutoencoderKL.from_pretrained(path / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(path / "text_encoder"),
    }
    # With equal tensors the outputs are equal: that is what the tests of the models show.
    for name, module in opened.items():
        ours = convert.state_dict(params[name])
        theirs = {convert.current_key(name, key): tensor.numpy() for key, tensor in module.state_dict().items()}
        theirs.pop(None, None)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    scheduler = DDIMScheduler.from_pretrained(path / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.beta_end == 0.012


def test_what_diffusers_writes_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    config = dataclasses.replace(tiny().unet, ff_mult=4)
    torch.manual_seed(0)
    module = oracles.torch_unet(config)
    module.save_pretrained(tmp_path / "unet", max_shard_size="60KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    assert folder.load_part_config(tmp_path, "unet") == dataclasses.replace(config, sample_size=None)
    params = folder.load_part(tmp_path, "unet", config)
    ours = trees.flatten(params)["conv_in/kernel"]
    np.testing.assert_array_equal(ours, module.conv_in.weight.detach().numpy().transpose(2, 3, 1, 0))


def shard(file: Path) -> None:
    """A file's tensors in two files and an index, in its place."""
    tensors = load_file(file)
    file.unlink()
    weight_map = {}
    for index, keys in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        shard = f"diffusion_pytorch_model-0000{index + 1}-of-00002.safetensors"
        save_file({key: tensors[key] for key in keys}, file.with_name(shard))
        weight_map |= dict.fromkeys(keys, shard)
    file.with_name(file.name + ".index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_sharded_files_are_read(broken: Path, saved) -> None:
    shard(broken / "vae" / "diffusion_pytorch_model.safetensors")
    loaded = folder.load(broken)[1]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, saved[2], loaded)))


def test_what_is_saved_takes_the_place_of_all_that_was_there(broken: Path, saved) -> None:
    """diffusers would rather read shards; files of another precision are found by their variant."""
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file), file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    shard(file)
    folder.save_part(broken, "vae", saved[2]["vae"], saved[1].vae)
    assert sorted(path.name for path in file.parent.iterdir()) == ["config.json", file.name]
    folder.save_part(broken, "binder", {}, saved[1].binder)
    assert [path.name for path in (broken / "binder").iterdir()] == ["config.json"]


def test_the_digest_is_of_what_is_read(broken: Path) -> None:
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    before = folder.weights_digest(broken)
    save_file(load_file(file), file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert folder.weights_digest(broken) == before
    shard(file)
    assert len([path for path in folder.weight_files(broken) if path.parent.name == "vae"]) == 2


def test_values_beyond_float16_are_not_written(saved, tmp_path: Path) -> None:
    params = {"linear_1": {"bias": np.full(3, 1e5, np.float32)}}
    with pytest.raises(ValueError, match=r"binder: linear_1\.bias holds values beyond float16's 65504"):
        folder.save_part(tmp_path, "binder", params, saved[1].binder, dtype="float16")


def test_weights_are_written_whole_or_not_at_all(broken: Path, saved, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"begun")
        raise KeyboardInterrupt

    monkeypatch.setattr("fcjax.weights.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.save_part(broken, "vae", saved[2]["vae"], saved[1].vae)
    assert len(list((broken / "vae").iterdir())) == 2
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, saved[2], folder.load(broken)[1])))


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_weights_are_as_readable_as_other_files(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "model.safetensors", {"a": np.ones(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_all_that_is_wrong_in_a_part_is_listed_at_once(broken: Path) -> None:
    file = broken / "reference_unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"]
    tensors["lora.weight"] = np.ones(1, np.float32)
    tensors["conv_out.weight"] = tensors["conv_out.weight"][:2]
    save_file(tensors, file)
    with pytest.raises(ValueError) as error:
        folder.load(broken)
    for part in (str(file), "conv_in.bias", "lora.weight", "conv_out.weight: (2, 8, 3, 3) in the file, (4, 8, 3, 3)"):
        assert part in str(error.value)


def test_a_wrong_folder_says_what_is_wrong(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no model folder"):
        folder.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no model folder: it has no model_index\.json"):
        folder.load(broken / "unet")
    # As a run's folder has its model in it.
    shutil.copytree(broken, tmp_path / "run/model")
    with pytest.raises(ValueError, match=r"no model_index\.json; .*run/model is one"):
        folder.load(tmp_path / "run")
    (broken / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match="has no vae"):
        folder.load(broken)
    shutil.rmtree(broken / "binder")
    with pytest.raises(ValueError, match="not of a composer: it has no binder"):
        folder.load(broken)
    (broken / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="no readable JSON"):
        folder.load(broken)


def test_a_folder_of_another_pipeline_is_refused(broken: Path) -> None:
    index = broken / "model_index.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match=r"of StableDiffusionPipeline, not of a composer: .* nothing under \"fcjax\""):
        folder.load(broken)
    index.write_text(json.dumps({"fcjax": {"height": 32}}))
    with pytest.raises(ValueError, match="missing or unknown: attend_blank"):
        folder.load(broken)


def test_another_architecture_is_refused(broken: Path) -> None:
    _edit(
        broken / "unet" / "config.json",
        addition_embed_type="text_time",
        transformer_layers_per_block=[1, 2],
        new_switch=True,
        upcast_attention=True,
        newer_key=None,
    )
    with pytest.raises(ValueError) as error:
        folder.load(broken)
    lines = str(error.value).splitlines()[1:]
    assert {line.split()[0] for line in lines} == {"transformer_layers_per_block", "addition_embed_type", "new_switch"}


WRONG_KINDS = [
    ("unet", {"sample_size": "64"}, "sample_size is '64', a whole number or a list of 2 whole numbers or null is"),
    ("unet", {"down_block_types": None}, "down_block_types is None, a list of words is expected"),
    ("unet", {"norm_eps": "1e-5"}, "norm_eps is '1e-5', a number is expected"),
    ("unet", {"cross_attention_dim": [32]}, r"cross_attention_dim is \[32\], a whole number is expected"),
    ("unet", {"attention_head_dim": None}, "attention_head_dim is None, a whole number or a list of whole numbers is"),
    ("text_encoder", {"eos_token_id": None}, "eos_token_id is None, a whole number is expected"),
    ("text_encoder", {"eos_token_id": 10**6}, "eos_token_id=1000000 is no row of a vocabulary"),
    ("vae", {"scaling_factor": "0.18"}, "scaling_factor is '0.18', a number is expected"),
    ("vae", {"block_out_channels": 8}, "block_out_channels is 8, a list of whole numbers is expected"),
    ("vae", {"use_quant_conv": "no"}, "use_quant_conv is 'no', true or false is expected"),
    ("scheduler", {"beta_start": None}, "beta_start is None, a number is expected"),
    ("scheduler", {"steps_offset": None}, "steps_offset is None, a whole number is expected"),
    ("scheduler", {"prediction_type": 1}, "prediction_type is 1, a word is expected"),
    (".", {"fcjax": []}, r"must be an object of height, width, .*, got \[\]"),
    (".", {"pose_octaves": None}, "pose_octaves is None, a whole number is expected"),
    (".", {"attend_blank": "no"}, "attend_blank is 'no', true or false is expected"),
    (".", {"height": 36}, "height=36 and width=32 must be multiples of 8"),
]


@pytest.mark.parametrize(("part", "changes", "message"), WRONG_KINDS)
def test_values_that_cannot_be_are_refused(part: str, changes: dict[str, Any], message: str, broken: Path) -> None:
    """By the name of the file, or of the folder where the parts do not fit each other."""
    name = {"scheduler": "scheduler_config.json", ".": "model_index.json"}.get(part, "config.json")
    if part == "." and "fcjax" not in changes:
        changes = {"fcjax": {**json.loads((broken / name).read_text())["fcjax"], **changes}}
    _edit(broken / part / name, **changes)
    with pytest.raises(
        ValueError, match=rf"(?s){re.escape(str(broken if part == '.' else broken / part / name))}.*{message}"
    ):
        folder.load(broken)


def test_truncated_and_missing_weights(broken: Path) -> None:
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no readable safetensors file"):
        folder.load(broken)
    file.unlink()
    with pytest.raises(ValueError, match="no weights of its vae"):
        folder.load(broken)


def test_weights_that_are_not_finite(broken: Path) -> None:
    file = broken / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["text_model.final_layer_norm.bias"][3] = np.nan
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"text_model\.final_layer_norm\.bias holds values that are not finite"):
        folder.load(broken)


def test_parts_by_name(saved) -> None:
    path, config, params = saved
    assert folder.load_part_config(path, "vae") == config.vae
    vae = folder.load_part(path, "vae", config.vae)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params["vae"], vae)))
    with pytest.raises(ValueError, match="has the parts unet, reference_unet"):
        folder.load_part_config(path, "decoder")


def test_parts_that_another_folder_holds_are_left_out(saved, broken: Path, tmp_path: Path) -> None:
    path, config, params = saved
    vae = json.loads((broken / "vae/config.json").read_text())
    (broken / "vae/config.json").write_text(json.dumps(vae))  # the same, in other bytes
    weights, whole = sum(file.stat().st_size for file in broken.rglob("*.safetensors")), folder.weight_files(broken)
    shared = folder.share_parts(broken, path, broken)
    assert set(shared) == {"unet", "reference_unet", "text_encoder", "scheduler", "binder"}
    assert sorted(place.name for place in broken.iterdir()) == ["model_index.json", "vae"]
    assert sum(file.stat().st_size for file in broken.rglob("*.safetensors")) < weights / 2
    loaded_config, loaded = folder.load(broken)
    assert loaded_config == config and all(jax.tree.leaves(jax.tree.map(np.array_equal, params, loaded)))
    # A picture knows the model that made it by its weights, wherever they lie.
    assert [file.parent.name for file in folder.weight_files(broken)] == [file.parent.name for file in whole]
    # The place is told as seen from the folder: elsewhere there is nothing to be found.
    moved = Path(shutil.copytree(broken, tmp_path / "far" / "away"))
    with pytest.raises(ValueError, match=r"model_index.json says that \w+ lies in .*, but there is no .*"):
        folder.load(moved)
    _edit(moved / "model_index.json", shared=["unet"])
    with pytest.raises(ValueError, match=r'"shared" in .* must map parts to the folders that hold them'):
        folder.load(moved)
