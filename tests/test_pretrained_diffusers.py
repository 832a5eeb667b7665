"""Folders that diffusers and transformers wrote become composers, whose parts they open again with equal outputs."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import folder, pretrained
from fcjax.cli import run
from fcjax.config import ComposerConfig
from fcjax.models import composer
from fcjax.models.text import TextEncoder
from fcjax.models.vae import VAE
from fcjax.presets import tiny
from fcjax.tokenizer import Tokenizer
from infer import convert as convert_program
from tests import oracles
from tests.conftest import TOKENIZER

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


class Written(NamedTuple):
    """A Stable Diffusion folder, and the torch modules that wrote it."""

    path: Path
    unet: Any
    vae: Any
    text_encoder: Any


def write(path: Path, kind: str) -> Written:
    """Small networks of torch's own random weights, in the shapes of Stable Diffusion 1.5, 2.1 and inpainting."""
    torch.manual_seed(0)
    base = tiny()
    vocabulary = Tokenizer.load(TOKENIZER).vocab_size
    marks = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    text = dataclasses.replace(base.text_encoder, vocab_size=vocabulary, **marks)
    unet = dataclasses.replace(base.unet, ff_mult=4, in_channels=9 if kind == "inpainting" else 4)
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    if kind == "sd21":
        heads = tuple(range(1, unet.levels + 1))
        unet = dataclasses.replace(unet, use_linear_projection=True, attention_head_dim=heads)
        text = dataclasses.replace(text, hidden_act="gelu")
        scheduler = diffusers.DDIMScheduler.from_config(
            scheduler.config, prediction_type="v_prediction", clip_sample=False
        )
    written = Written(
        path,
        oracles.torch_unet(unet).eval(),
        oracles.torch_vae(base.vae).eval(),
        oracles.torch_text_encoder(text).eval(),
    )
    # The UNet in several files with an index.
    written.unet.save_pretrained(path / "unet", max_shard_size="200KB")
    written.vae.save_pretrained(path / "vae")
    written.text_encoder.save_pretrained(path / "text_encoder")
    scheduler.save_pretrained(path / "scheduler")
    shutil.copytree(TOKENIZER, path / "tokenizer")
    name = "StableDiffusionInpaintPipeline" if kind == "inpainting" else "StableDiffusionPipeline"
    (path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    assert len(list((path / "unet").glob("*.safetensors"))) > 1
    return written


@pytest.fixture(scope="module", params=["sd15", "sd21", "inpainting"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("diffusers") / "model", request.param)


def torch_inputs(config: ComposerConfig, channels: int) -> tuple[Any, Any, Any]:
    text = oracles.normal(2, 2, 9, config.text_encoder.hidden_size)
    return oracles.normal(1, 2, 8, 6, channels), jnp.asarray([3.0, 900.0]), text


def test_a_composer_computes_what_diffusers_computes(written: Written, parity) -> None:
    config, params, *_ = pretrained.load(written.path, dtype="float32")
    velocity = config.unet.use_linear_projection
    assert config.diffusion.prediction_type == ("v_prediction" if velocity else "epsilon")
    sample, times, text = torch_inputs(config, 4)
    given = oracles.normal(3, 2, 8, 6, config.condition_channels)
    if config.condition == "tryon":
        # Theirs: noise, mask, masked latents; ours: noise, the person's latents, mask.
        theirs_in = jnp.concatenate([sample, given[..., 4:], given[..., :4]], axis=-1)
    else:
        theirs_in = sample
    images, ids = oracles.normal(4, 1, 32, 24, 3), np.random.default_rng(0).integers(0, 30, (2, 77))
    with torch.no_grad():
        expected = {
            "unet": written.unet(*map(oracles.to_tensor, (theirs_in, times, text))).sample,
            "encode": written.vae.encode(oracles.to_tensor(images)).latent_dist.mean,
            "decode": written.vae.decode(oracles.to_tensor(sample)).sample,
            "text": written.text_encoder(torch.tensor(ids)).last_hidden_state,
        }
    vae, encoder = VAE(config.vae), TextEncoder(config.text_encoder)
    ours = {
        "unet": composer.denoise(params, config, sample, times, text, given),
        "encode": vae.apply({"params": params["vae"]}, images, method=VAE.encode)[0],
        "decode": vae.apply({"params": params["vae"]}, sample, method=VAE.decode),
        "text": encoder.apply({"params": params["text_encoder"]}, jnp.asarray(ids)),
    }
    for name, theirs in expected.items():
        parity(ours[name], oracles.to_array(theirs), most=1e-4, what=name)


def test_diffusers_opens_what_the_program_converted(written: Written, tmp_path: Path) -> None:
    out = tmp_path / "composer"
    run(convert_program.main, [str(written.path), str(out)])
    config = pretrained.load(out).config
    sample, times, text = map(oracles.to_tensor, torch_inputs(config, 4))
    ids = torch.randint(0, 30, (2, 77))
    unets = {
        name: diffusers.UNet2DConditionModel.from_pretrained(out / name).eval() for name in ("unet", "reference_unet")
    }
    vae = diffusers.AutoencoderKL.from_pretrained(out / "vae").eval()
    text_encoder = transformers.CLIPTextModel.from_pretrained(out / "text_encoder").eval()
    extra = torch.zeros(2, config.unet.in_channels - 4, 8, 6)
    none = torch.zeros(2, written.unet.config.in_channels - 4, 8, 6)
    with torch.no_grad():
        expected = written.unet(torch.cat([sample, none], 1), times, text).sample
        torch.testing.assert_close(unets["reference_unet"](sample, times, text).sample, expected)
        torch.testing.assert_close(unets["unet"](torch.cat([sample, extra], 1), times, text).sample, expected)
        torch.testing.assert_close(vae.decode(sample).sample, written.vae.decode(sample).sample)
        torch.testing.assert_close(text_encoder(ids).last_hidden_state, written.text_encoder(ids).last_hidden_state)


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_clip_skip_equals_diffusers(written: Written, clip_skip: int, parity) -> None:
    """As StableDiffusionPipeline.encode_prompt has it: an earlier layer's output through the final norm."""
    config, params, *_ = pretrained.load(written.path, clip_skip=clip_skip)
    assert config.text_encoder.num_hidden_layers == written.text_encoder.config.num_hidden_layers - clip_skip
    ids = np.random.default_rng(1).integers(0, 30, (2, 77))
    ours = TextEncoder(config.text_encoder).apply({"params": params["text_encoder"]}, jnp.asarray(ids))
    modules = dict(written.text_encoder.named_modules())
    [final] = [module for name, module in modules.items() if name.endswith("final_layer_norm")]
    with torch.no_grad():
        hidden = written.text_encoder(torch.tensor(ids), output_hidden_states=True).hidden_states
        theirs = final(hidden[-(clip_skip + 1)])
    parity(ours, theirs, most=1e-4)
    layers = written.text_encoder.config.num_hidden_layers
    for wrong in (-1, layers):
        with pytest.raises(ValueError, match=f"clip_skip must lie between 0 and {layers - 1} .* got {wrong}"):
            pretrained.load(written.path, clip_skip=wrong)


SCHEDULERS = (
    "DDIM",
    "DDPM",
    "DPMSolverMultistep",
    "EulerAncestralDiscrete",
    "DEISMultistep",
    "EulerDiscrete",
    "HeunDiscrete",
    "KDPM2AncestralDiscrete",
    "KDPM2Discrete",
    "LCM",
    "LMSDiscrete",
    "PNDM",
    "UniPCMultistep",
)


# diffusers turns tensors into arrays in a way that NumPy 2 is about to drop; nothing of ours.
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_tells_the_process(name: str, tmp_path: Path) -> None:
    """Which of diffusers' schedulers a folder names is no matter: a sampler is chosen when composing."""
    scheduler = getattr(diffusers, f"{name}Scheduler")(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    scheduler.save_pretrained(tmp_path / "scheduler")
    config = folder.load_part_config(tmp_path, "scheduler")
    assert (config.beta_start, config.beta_end, config.prediction_type) == (0.00085, 0.012, "v_prediction")
    # Files that leave the spacing out mean the class's own default.
    file = tmp_path / "scheduler/scheduler_config.json"
    said = json.loads(file.read_text())
    spacing = said.pop("timestep_spacing")
    file.write_text(json.dumps(said))
    assert folder.load_part_config(tmp_path, "scheduler").timestep_spacing == spacing
    scheduler.register_to_config(trained_betas=[0.1, 0.2])
    scheduler.save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match="trained_betas is .* which is not supported"):
        folder.load_part_config(tmp_path, "scheduler")
