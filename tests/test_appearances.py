"""The other encoders of assets: ControlNet against diffusers, image encoder against transformers; composers of both."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import convert, folder, presets, trees
from fcjax.config import APPEARANCES, ComposerConfig
from fcjax.models import composer, dino
from fcjax.models.controlnet import ControlNet
from fcjax.models.dino import ImageEncoder
from fcjax.models.parameters import abstract_part, init_parameters
from fcjax.models.unet import UNet
from fcjax.network_config import CROSS_ATTENTION_DOWN, PLAIN_DOWN, ControlNetConfig, ImageEncoderConfig
from tests import oracles
from tests.dual_unet import denoised, features_of, inputs_of

CONTROLNET = ControlNetConfig(
    in_channels=6,
    down_block_types=(CROSS_ATTENTION_DOWN, PLAIN_DOWN),
    block_out_channels=(8, 16),
    layers_per_block=2,
    cross_attention_dim=12,
    attention_head_dim=2,
    norm_num_groups=4,
    conditioning_channels=5,
)
ENCODER = ImageEncoderConfig(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=20, patch_size=4, num_channels=3
)
SMALL = ImageEncoderConfig(
    hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=4, patch_size=2, num_channels=12
)


def config_of(appearance: str, encoder: ImageEncoderConfig = SMALL) -> ComposerConfig:
    return presets.encoding_assets(presets.tiny(), appearance, encoder)


@pytest.fixture(scope="module", params=["controlnet", "image_encoder"])
def model(request: pytest.FixtureRequest):
    config = config_of(request.param)
    abstract = {name: abstract_part(getattr(config, name)) for name in config.networks}
    return config, oracles.random_parameters(abstract)


# ---------------------------------------------------------------------------------------------------------------------
# Against diffusers and transformers


def test_a_full_size_controlnet_has_the_keys_of_the_checkpoint() -> None:
    torch = pytest.importorskip("torch")
    config = presets.encoding_assets(presets.sd15(), "controlnet").controlnet
    assert config is not None
    with torch.device("meta"):
        theirs = {key: tuple(tensor.shape) for key, tensor in oracles.torch_controlnet(config).state_dict().items()}
    abstract = trees.flatten(abstract_part(config))
    assert {convert.torch_key(path): convert.torch_shape(path, leaf.shape) for path, leaf in abstract.items()} == theirs


def test_a_full_size_image_encoder_is_dinov2s() -> None:
    """Names are compared where folders are opened: transformers' modules have others than its files."""
    torch = pytest.importorskip("torch")
    config = presets.encoding_assets(presets.sd15(), "image_encoder").image_encoder
    assert config is not None
    with torch.device("meta"):
        shapes = sorted(tuple(tensor.shape) for tensor in oracles.torch_image_encoder(config).state_dict().values())
    abstract = trees.flatten(abstract_part(config))
    assert sorted(convert.torch_shape(path, leaf.shape) for path, leaf in abstract.items()) == shapes


def test_the_controlnet_equals_diffusers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from diffusers import ControlNetModel

    params = oracles.random_part(CONTROLNET)
    given = (
        oracles.normal(1, 2, 8, 6, 6),
        jnp.asarray([3.0, 900.0]),
        oracles.normal(2, 2, 5, 12),
        oracles.normal(3, 2, 8, 6, 5),
    )
    ours = jax.jit(lambda p, *x: ControlNet(CONTROLNET).apply({"params": p}, *x))(params, *given)
    folder.save_part(tmp_path, "controlnet", params, CONTROLNET)
    module = ControlNetModel.from_pretrained(tmp_path / "controlnet").eval()
    with torch.no_grad():
        skips, middle = module(*map(oracles.to_tensor, given), return_dict=False)
    assert len(ours) == len(skips) + 1
    for one, other in zip(ours, (*skips, middle), strict=True):
        assert oracles.relative_error(one, oracles.to_array(other)) <= 1e-4
    # What it gives goes into a UNet as diffusers' pipelines put it there.
    unet, added = CONTROLNET.unet, [0.5 * grid for grid in ours]
    params = oracles.random_part(unet)
    told = jax.jit(lambda p, added: UNet(unet).apply({"params": p}, *given[:3], residuals=added))(params, added)
    module = oracles.load_into(oracles.torch_unet(unet), params)
    *others, middle = map(oracles.to_tensor, added)
    with torch.no_grad():
        theirs = module(
            *map(oracles.to_tensor, given[:3]),
            down_block_additional_residuals=others,
            mid_block_additional_residual=middle,
        ).sample
    assert oracles.relative_error(told, oracles.to_array(theirs)) <= 1e-4


@pytest.mark.parametrize("size", [(20, 20), (28, 13), (8, 36)], ids=["its own", "taller", "wide"])
def test_the_image_encoder_equals_transformers(size: tuple[int, int], tmp_path: Path) -> None:
    """At other sizes positions are interpolated; what is left of a patch at the border is not read."""
    torch = pytest.importorskip("torch")
    from transformers import Dinov2Model

    params, pictures = oracles.random_part(ENCODER), oracles.normal(1, 2, *size, 3)
    ours = ImageEncoder(ENCODER).apply({"params": params}, pictures)
    folder.save_part(tmp_path, "image_encoder", params, ENCODER)
    module, said = Dinov2Model.from_pretrained(tmp_path / "image_encoder", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    with torch.no_grad():
        theirs = module.eval()(oracles.to_tensor(pictures)).last_hidden_state
    assert oracles.relative_error(ours, theirs) <= 1e-4


def test_cubic_weights_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    for source, wanted in ((5, 9), (9, 4), (1, 3)):
        rows = np.eye(source, dtype=np.float32)[None, :, :, None]
        theirs = torch.nn.functional.interpolate(torch.tensor(rows), size=(wanted, 1), mode="bicubic")[0, :, :, 0]
        np.testing.assert_allclose(dino.cubic_weights(source, wanted), theirs.numpy().T, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Composers


def test_assets_change_the_picture_and_hidden_ones_do_not(model) -> None:
    config, params = model
    inputs = inputs_of(config)
    run = jax.jit(lambda inputs, keep: denoised(
        params, config, inputs, composer.keep_assets(features_of(params, config, inputs), keep)
    ))  # fmt: skip
    other = {**inputs, "canvas": -inputs["canvas"]}
    seen, changed = run(inputs, jnp.ones(2, bool)), run(other, jnp.ones(2, bool))
    assert not np.allclose(seen, changed, atol=1e-3)
    one = jnp.asarray([True, False])
    hidden, other_hidden = run(inputs, one), run(other, one)
    np.testing.assert_allclose(hidden[0], seen[0], atol=1e-5)
    np.testing.assert_array_equal(hidden[1], other_hidden[1])
    # Hidden from everybody is the same as none.
    nobody = denoised(params, config, inputs)
    np.testing.assert_allclose(run(inputs, jnp.zeros(2, bool)), nobody, atol=1e-4)


def test_text_reaches_all_but_the_image_encoders_arm(model) -> None:
    config, params = model
    inputs = inputs_of(config)
    features = features_of(params, config, inputs)
    same, other = (
        denoised(params, config, {**inputs, "text": text}, features) for text in (inputs["text"], -inputs["text"])
    )
    assert np.array_equal(same, other) == (config.appearance == "image_encoder")


def test_it_begins_as_a_model_without_assets() -> None:
    config = config_of("controlnet")
    params, inputs = init_parameters(config, jax.random.key(0)), inputs_of(config)
    # A fresh UNet gives nothing at all.
    params["unet"] = oracles.random_part(config.unet)
    told = denoised(params, config, inputs, features_of(params, config, inputs))
    np.testing.assert_allclose(told, denoised(params, config, inputs), atol=1e-6)


def test_folders(model, tmp_path: Path) -> None:
    config, params = model
    params = {**params, "binder": {}}
    folder.save(tmp_path, params, config)
    assert not (tmp_path / "reference_unet").exists()
    loaded, again = folder.load(tmp_path)
    assert loaded == config
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_pixels_are_read_as_they_are() -> None:
    config = config_of("image_encoder", dataclasses.replace(SMALL, num_channels=3))
    assert config.canvas_in_pixels and not config_of("image_encoder").canvas_in_pixels
    pictures = jnp.linspace(-1, 1, 32 * 32 * 3).reshape(1, 32, 32, 3)
    canvas = composer.read_canvas({}, config, pictures)
    expected = ((np.asarray(pictures) + 1) / 2 - dino.MEAN) / dino.DEVIATION
    np.testing.assert_allclose(canvas, expected, atol=1e-5)
    np.testing.assert_allclose(composer.show_canvas(canvas), pictures, atol=1e-5)
    params = {"image_encoder": oracles.random_part(config.image_encoder)}
    inputs = inputs_of(config)
    features = composer.appearance_features(
        params, config, canvas, *(inputs[n][:1] for n in ("text", "spans", "masks"))
    )
    assert features.tokens.shape == (1, 16 * 16 + 1, 24)


def test_configurations_that_cannot_be() -> None:
    config = presets.tiny()
    for changes, expected in (
        ({"reference_unet": None}, "needs one of reference_unet, controlnet, image_encoder .* got none"),
        ({"image_encoder": SMALL}, "reference_unet and image_encoder"),
        ({"reference_unet": None, "controlnet": ControlNetConfig.of(config.unet, 12)}, "no keys and values to bind"),
    ):
        with pytest.raises(ValueError, match=expected):
            dataclasses.replace(config, **changes)
    bare = {"reference_unet": None, "binder": dataclasses.replace(config.binder, variant="none")}
    for changes, expected in (
        ({"controlnet": ControlNetConfig.of(config.unet, 4)}, "conditioning_channels=4, but 4 latent .* make 12"),
        (
            {"controlnet": dataclasses.replace(ControlNetConfig.of(config.unet, 12), norm_num_groups=2)},
            "norm_num_groups",
        ),
        ({"image_encoder": SMALL}, "cross_attention_dim=16 must equal image_encoder.hidden_size=24"),
        ({"image_encoder": dataclasses.replace(SMALL, hidden_size=16, num_channels=5)}, "num_channels=5"),
    ):
        with pytest.raises(ValueError, match=expected):
            dataclasses.replace(config, **bare, **changes)
    with pytest.raises(ValueError, match=f"one of {', '.join(APPEARANCES)}"):
        presets.encoding_assets(config, "adapter")
    with pytest.raises(ValueError, match="must be one number"):
        dataclasses.replace(CONTROLNET, conditioning_embedding_out_channels=(16, 32))
    for changes, expected in (({"num_attention_heads": 5}, "multiple"), ({"patch_size": 30}, "smaller than a patch")):
        with pytest.raises(ValueError, match=expected):
            dataclasses.replace(ENCODER, **changes)
    with pytest.raises(ValueError, match=r"takes a grid \(2, 8, 6, 5\)"):
        given = (jnp.zeros((2, 8, 6, 6)), jnp.zeros(2), jnp.zeros((2, 5, 12)), jnp.zeros((2, 8, 6, 4)))
        ControlNet(CONTROLNET).init(jax.random.key(0), *given)
    with pytest.raises(ValueError, match="grids .* of 4x4 at least"):
        ImageEncoder(ENCODER).init(jax.random.key(0), jnp.zeros((1, 3, 8, 3)))
