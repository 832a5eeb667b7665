"""Random parameters, and the torch modules that the models are held against."""

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcjax import convert, trees
from fcjax.models.parameters import abstract_part
from fcjax.network_config import ControlNetConfig, ImageEncoderConfig, NetworkConfig, TextConfig, UNetConfig, VAEConfig


def random_parameters(abstract: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Parameters of plausible size with no zeros among them, so that every path counts in the output."""

    def draw(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = np.random.default_rng([seed, zlib.crc32(path.encode())]).standard_normal(leaf.shape)
        if path.endswith("kernel"):
            values *= np.prod(leaf.shape[:-1]) ** -0.5
        elif path.endswith(("scale", "lambda1")):
            values = 1 + 0.2 * values
        else:
            values *= 0.2
        return jnp.asarray(values, jnp.float32)

    return trees.map_paths(draw, abstract)


def random_part(config: NetworkConfig, seed: int = 0) -> dict[str, Any]:
    return random_parameters(abstract_part(config), seed)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def load_into(module: Any, params: dict[str, Any]) -> Any:
    """Puts parameters of ours into a torch module, every key of which they must fill."""
    import torch

    # Threads that wait for each other in a loop take minutes where the cores are shared.
    torch.set_num_threads(1)
    state = {key: torch.tensor(np.asarray(tensor)) for key, tensor in convert.state_dict(params).items()}
    module.load_state_dict(state, strict=True)
    return module.eval()


def to_tensor(array: Any) -> Any:
    """An array as a torch tensor; grids (4 axes) become NCHW."""
    import torch

    array = np.asarray(array)
    return torch.tensor(np.ascontiguousarray(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array))


def to_array(tensor: Any) -> np.ndarray:
    """The reverse of `to_tensor`."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def torch_unet(config: UNetConfig) -> Any:
    from diffusers import UNet2DConditionModel

    heads = config.attention_head_dim
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=config.down_block_types,
        up_block_types=config.up_block_types,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=heads,
        use_linear_projection=config.use_linear_projection,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,
    )


def torch_controlnet(config: ControlNetConfig) -> Any:
    from diffusers import ControlNetModel

    return ControlNetModel(
        in_channels=config.in_channels,
        conditioning_channels=config.conditioning_channels,
        conditioning_embedding_out_channels=config.conditioning_embedding_out_channels,
        down_block_types=config.down_block_types,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.attention_head_dim,
        use_linear_projection=config.use_linear_projection,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,
    )


def torch_image_encoder(config: ImageEncoderConfig) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    names = [field.name for field in dataclasses.fields(config)]
    return Dinov2Model(Dinov2Config(**{name: getattr(config, name) for name in names}, use_mask_token=False))


def torch_vae(config: VAEConfig) -> Any:
    from diffusers import AutoencoderKL

    levels = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        use_quant_conv=config.use_quant_conv,
        use_post_quant_conv=config.use_post_quant_conv,
        mid_block_add_attention=config.mid_block_add_attention,
    )


def torch_text_encoder(config: TextConfig) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
    )


def relative_error(ours: Any, theirs: Any) -> float:
    """Largest absolute difference over the reference's largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def gradient_error(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest of all parameters' errors, each relative to its gradient's scale."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    largest = max(np.abs(expected).max() for expected in theirs.values())
    # What has no gradient but rounding (a bias in front of a group norm of one channel) is measured on the whole scale.
    errors = [
        np.abs(ours[key] - expected).max() / max(np.abs(expected).max(), 1e-3 * largest)
        for key, expected in theirs.items()
    ]
    return float(np.max(errors))


def torch_gradients(module: Any) -> dict[str, np.ndarray]:
    """After a backward pass; 0 where nothing depends on a parameter."""
    return {
        key: np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        for key, parameter in module.named_parameters()
    }
