"""The UNet against diffusers' UNet2DConditionModel: names and shapes at full size, numbers and gradients (small)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError

from fcjax import convert, trees
from fcjax.models import convolution
from fcjax.models.convolution import conv2d
from fcjax.models.parameters import abstract_part
from fcjax.models.unet import UNet
from fcjax.network_config import CROSS_ATTENTION_DOWN, CROSS_ATTENTION_UP, PLAIN_DOWN, PLAIN_UP, UNetConfig
from fcjax.presets import sd15
from tests import oracles

SD15 = UNetConfig(
    down_block_types=(CROSS_ATTENTION_DOWN, PLAIN_DOWN),
    up_block_types=(PLAIN_UP, CROSS_ATTENTION_UP),
    block_out_channels=(8, 16),
    layers_per_block=2,
    cross_attention_dim=12,
    attention_head_dim=2,
    norm_num_groups=4,
)
SD21 = dataclasses.replace(
    SD15,
    down_block_types=(CROSS_ATTENTION_DOWN,) * 2,
    up_block_types=(CROSS_ATTENTION_UP,) * 2,
    attention_head_dim=(2, 4),
    use_linear_projection=True,
    layers_per_block=(2, 1),
)
INPAINTING = dataclasses.replace(SD15, in_channels=9, layers_per_block=1)


def _inputs(config: UNetConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    sample = oracles.normal(1, 2, 8, 6, config.in_channels)
    return sample, jnp.asarray([3.0, 900.0]), oracles.normal(2, 2, 5, config.cross_attention_dim)


@functools.lru_cache
def _apply(config: UNetConfig):
    return jax.jit(lambda params, *inputs, **options: UNet(config).apply({"params": params}, *inputs, **options))


@pytest.mark.parametrize(("part", "count"), [("unet", 859_526_724), ("reference_unet", 859_520_964)])
def test_full_size_has_the_keys_of_the_checkpoint(part: str, count: int) -> None:
    torch = pytest.importorskip("torch")
    config = getattr(sd15(), part)
    with torch.device("meta"):
        theirs = {key: tuple(tensor.shape) for key, tensor in oracles.torch_unet(config).state_dict().items()}
    abstract = abstract_part(config)
    ours = {
        convert.torch_key(path): convert.torch_shape(path, leaf.shape) for path, leaf in trees.flatten(abstract).items()
    }
    assert ours == theirs
    assert trees.count(abstract) == count


@pytest.mark.parametrize("config", [SD15, SD21, INPAINTING], ids=["sd15", "sd21", "inpainting"])
def test_equals_diffusers(config: UNetConfig, parity) -> None:
    torch = pytest.importorskip("torch")
    params = oracles.random_part(config)
    module = oracles.load_into(oracles.torch_unet(config), params)
    ours = _apply(config)(params, *_inputs(config))
    with torch.no_grad():
        theirs = module(*map(oracles.to_tensor, _inputs(config))).sample
    parity(ours, oracles.to_array(theirs), most=1e-4)


def test_gradients_equal_torch_autograd(gradient_parity) -> None:
    """Of every parameter of a small UNet: attention and convolution have backward passes of their own."""
    pytest.importorskip("torch")
    params = oracles.random_part(SD21)
    module = oracles.load_into(oracles.torch_unet(SD21), params)
    target = oracles.normal(7, 2, 8, 6, 4)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.sum((UNet(SD21).apply({"params": params}, *_inputs(SD21)) - target) ** 2)

    ((module(*map(oracles.to_tensor, _inputs(SD21))).sample - oracles.to_tensor(target)) ** 2).sum().backward()
    gradient_parity(convert.state_dict(gradient(params)), oracles.torch_gradients(module))


def test_emitting_equals_the_keys_and_values_within_the_whole_forward() -> None:
    """A layer fed with its own emitted keys and values once more gives the same output as without."""
    params = oracles.random_part(SD21)
    inputs = _inputs(SD21)
    emitted = jax.jit(lambda p: UNet(SD21).apply({"params": p}, *inputs, emit=True))(params)
    assert len(emitted) == len(SD21.attention_levels)
    assert [key.shape[1] for key, _ in emitted] == [48 >> (2 * level) for level in SD21.attention_levels]
    plain = _apply(SD21)(params, *inputs)
    doubled = _apply(SD21)(params, *inputs, reference=emitted)
    assert oracles.relative_error(doubled, plain) <= 1e-5


def test_hidden_reference_changes_nothing() -> None:
    params = oracles.random_part(SD21)
    inputs = _inputs(SD21)
    widths, levels = SD21.block_out_channels, SD21.attention_levels
    reference = tuple((oracles.normal(3, 2, 7, widths[i]), oracles.normal(4, 2, 7, widths[i])) for i in levels)
    hidden = tuple(jnp.zeros((2, 7), bool) for _ in levels)
    plain = _apply(SD21)(params, *inputs)
    unseen = _apply(SD21)(params, *inputs, reference=reference, reference_mask=hidden)
    assert oracles.relative_error(unseen, plain) <= 1e-5
    other = jax.tree.map(lambda leaf: -3 * leaf, reference)
    assert np.array_equal(_apply(SD21)(params, *inputs, reference=other, reference_mask=hidden), unseen)
    seen = _apply(SD21)(params, *inputs, reference=reference)
    assert oracles.relative_error(seen, plain) > 1e-3


def test_errors() -> None:
    params = oracles.random_part(SD21)
    sample, timesteps, text = _inputs(SD21)
    unet = UNet(SD21)
    with pytest.raises(ValueError, match="multiples of 2"):
        unet.apply({"params": params}, sample[:, :7], timesteps, text)
    with pytest.raises(ValueError, match="takes 4 channels"):
        unet.apply({"params": params}, sample[..., :3], timesteps, text)
    with pytest.raises(ValueError, match="one entry for each of 9 self-attention layers, got 1"):
        unet.apply({"params": params}, sample, timesteps, text, reference=((text, text),))
    with pytest.raises(ValueError, match="down_blocks_7"):
        unet.apply({"params": params}, sample, timesteps, text, bound={"down_blocks_7": (text, text)})
    other = {**params, "conv_in": {**params["conv_in"], "kernel": params["conv_in"]["kernel"][:1]}}
    with pytest.raises(ScopeParamShapeError, match=r"conv_in.*shape \(3, 3, 4, 8\), but .*\(1, 3, 4, 8\)"):
        unet.apply({"params": other}, sample, timesteps, text)
    with pytest.raises(ScopeParamNotFoundError, match="bias.*conv_in"):
        unet.apply({"params": {**params, "conv_in": {"kernel": params["conv_in"]["kernel"]}}}, sample, timesteps, text)


def plain(x, kernel, padding, stride: int = 1):
    pairs = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pairs, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("padding", [1, ((0, 1), (2, 1))])
@pytest.mark.parametrize(
    ("side", "inputs", "outputs", "forward", "backward"),
    [
        (6, 3, 4, "_plain", "_plain"),
        (6, 3, 1024, "product_of_windows", "_plain"),
        (6, 1024, 4, "_plain", "product_of_windows"),
        (24, 256, 320, "winograd", "winograd"),
    ],
)
def test_conv2d_and_its_gradients_equal_xlas(
    padding, side: int, inputs: int, outputs: int, forward: str, backward: str
) -> None:
    """By each of a CPU's algorithms, on whole tiles and others."""
    x, kernel = oracles.normal(0, 2, side, side, inputs), oracles.normal(1, 3, 3, inputs, outputs) / inputs**0.5
    pairs = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    y, back = jax.vjp(lambda x, kernel: conv2d(x, kernel, padding=padding), x, kernel)
    expected, back_expected = jax.vjp(lambda x, kernel: plain(x, kernel, padding), x, kernel)
    assert convolution.algorithm(x, kernel, pairs).__name__ == forward
    assert convolution.algorithm(y, kernel.swapaxes(2, 3), ((1, 1), (1, 1))).__name__ == backward
    for ours, theirs in zip((y, *back(jnp.sin(y))), (expected, *back_expected(jnp.sin(y))), strict=True):
        assert oracles.relative_error(ours, theirs) <= 1e-5


def test_conv2d_in_strides() -> None:
    x, kernel = oracles.normal(0, 2, 6, 5, 3), oracles.normal(1, 3, 3, 3, 4)
    assert oracles.relative_error(conv2d(x, kernel, stride=2, padding=1), plain(x, kernel, 1, 2)) <= 1e-6


def test_the_gradient_crops_where_conv2d_pads_by_more_than_its_kernel_reaches() -> None:
    x, kernel = oracles.normal(0, 2, 6, 5, 1024), oracles.normal(1, 3, 3, 1024, 4) / 32
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(conv2d(x, kernel, padding=3))))(x)
    expected = jax.grad(lambda x: jnp.sum(jnp.sin(plain(x, kernel, 3))))(x)
    assert oracles.relative_error(gradient, expected) <= 1e-5


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype", "expected"),
    [
        ((2, 64, 48, 320), (3, 3, 320, 320), "float32", "winograd"),
        ((2, 32, 24, 1280), (3, 3, 1280, 1280), "float32", "winograd"),
        ((2, 16, 12, 1280), (3, 3, 1280, 1280), "float32", "product_of_windows"),
        # Tiles would be a third more than the grid, or their kernel larger than what is held.
        ((24, 8, 6, 1280), (3, 3, 1280, 1280), "float32", "product_of_windows"),
        ((2, 32, 24, 2560), (3, 3, 2560, 1280), "float32", "product_of_windows"),
        ((2, 16, 12, 640), (3, 3, 640, 640), "float32", "_plain"),
        ((2, 64, 48, 320), (3, 3, 320, 320), "bfloat16", "_plain"),
        ((2, 64, 48, 320), (3, 3, 320, 4), "float32", "_plain"),
        ((2, 64, 48, 320), (1, 1, 320, 320), "float32", "_plain"),
        ((1, 512, 384, 256), (3, 3, 256, 256), "float32", "_plain"),
    ],
)
def test_what_a_cpu_takes_for_a_convolution(shape, kernel, dtype: str, expected: str) -> None:
    x, kernel = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(kernel, dtype)
    assert convolution.algorithm(x, kernel, ((1, 1), (1, 1))).__name__ == expected


def test_a_loop_holds_one_transformed_kernel_at_a_time() -> None:
    """XLA moves what depends on weights alone out of loops: of eight kernels that would be 72 MiB."""
    kernels = jax.ShapeDtypeStruct((8, 3, 3, 256, 256), "float32")

    def layers(x, kernels):
        for kernel in kernels:
            x = conv2d(x, kernel, padding=1)
        return x

    loop = jax.jit(lambda x, kernels: jax.lax.fori_loop(0, 4, lambda _, x: layers(x, kernels), x))
    compiled = loop.lower(jax.ShapeDtypeStruct((2, 24, 24, 256), "float32"), kernels).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None and analysis.temp_size_in_bytes < 40 * 2**20
