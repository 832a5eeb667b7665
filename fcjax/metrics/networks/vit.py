"""Vision transformers by whose features pictures are compared: CLIP's, DINO's and DINOv2's, read from their folders."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy import ndarray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fcjax import convert, trees
from fcjax.metrics.networks.torchfile import load_torch_file
from fcjax.models.dino import ImageEncoder
from fcjax.models.parameters import abstract_part
from fcjax.models.text import TextEncoder
from fcjax.network_config import ImageEncoderConfig, TextConfig
from fcjax.part_config import parse_config
from fcjax.pretrained import locate

FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "vocab.json", "merges.txt", "tokenizer*.json")
State = Mapping[str, ndarray]


class ViT(NamedTuple):
    """A plain vision transformer: its sizes, and what its layers are called in transformers' files.

    `layer` stands before a layer's names, with its number for {}; `names` are those of query, key, value, output, the
    first and second layer of the perceptron and the norms before attention and perceptron.
    """

    heads: int
    layers: int
    patch: int
    epsilon: float
    activation: str
    patches: str
    first: str
    places: str
    before: str | None
    layer: str
    names: tuple[str, ...]
    after: str


_CLIP_NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
_CLIP_NAMES += ("layer_norm1", "layer_norm2")
_VIT_NAMES = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_VIT_NAMES += ("attention.output.dense", "intermediate.dense", "output.dense", "layernorm_before", "layernorm_after")


def clip_vision(config: Mapping[str, Any]) -> ViT:
    """CLIP's, of transformers' vision_config."""
    root = "vision_model."
    return ViT(
        heads=config.get("num_attention_heads", 12),
        layers=config.get("num_hidden_layers", 12),
        patch=config.get("patch_size", 32),
        epsilon=config.get("layer_norm_eps", 1e-5),
        activation=config.get("hidden_act", "quick_gelu"),
        patches=f"{root}embeddings.patch_embedding",
        first=f"{root}embeddings.class_embedding",
        places=f"{root}embeddings.position_embedding.weight",
        before=f"{root}pre_layrnorm",
        layer=f"{root}encoder.layers.{{}}.",
        names=_CLIP_NAMES,
        after=f"{root}post_layernorm",
    )


def dino_vision(config: Mapping[str, Any]) -> ViT:
    """DINO's: transformers' ViTModel."""
    return ViT(
        heads=config.get("num_attention_heads", 12),
        layers=config.get("num_hidden_layers", 12),
        patch=config.get("patch_size", 16),
        epsilon=config.get("layer_norm_eps", 1e-12),
        activation=config.get("hidden_act", "gelu"),
        patches="embeddings.patch_embeddings.projection",
        first="embeddings.cls_token",
        places="embeddings.position_embeddings",
        before=None,
        layer="encoder.layer.{}.",
        names=_VIT_NAMES,
        after="layernorm",
    )


def tokens_of(vit: ViT, state: Mapping[str, Array], pixels: Float[Array, "b h w 3"]) -> Float[Array, "b k e"]:
    """The last layer's tokens of normalised pixels, the picture's own first, without the norm behind them.

    state: tensors in torch's names and layouts. ValueError for pictures of another size than the positions'.
    """
    kernel = state[f"{vit.patches}.weight"]
    batch, width = pixels.shape[0], kernel.shape[0]
    grid = jax.lax.conv_general_dilated(
        pixels, kernel, (vit.patch, vit.patch), "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    bias = state.get(f"{vit.patches}.bias")
    patches = (grid if bias is None else grid + bias).reshape(batch, -1, width)
    first = jnp.broadcast_to(state[vit.first].reshape(1, 1, width), (batch, 1, width))
    x, places = jnp.concatenate([first, patches], axis=1), state[vit.places].reshape(1, -1, width)
    if places.shape[1] != x.shape[1]:
        raise ValueError(
            f"this network reads {places.shape[1] - 1} patches, pictures of {pixels.shape[1:3]} make others"
        )
    x = x + places
    if vit.before is not None:
        x = _norm(state, vit.before, x, vit.epsilon)
    for number in range(vit.layers):
        x = _layer(vit, state, vit.layer.format(number), x)
    return x


def _layer(vit: ViT, state: Mapping[str, Array], root: str, x: Array) -> Array:
    query, key, value, out, up, down, norm1, norm2 = (root + name for name in vit.names)

    def heads(tokens: Array) -> Array:
        return tokens.reshape(*tokens.shape[:2], vit.heads, -1)

    normed = _norm(state, norm1, x, vit.epsilon)
    given = (heads(_dense(state, name, normed)) for name in (query, key, value))
    x = x + _dense(state, out, jax.nn.dot_product_attention(*given).reshape(x.shape))
    hidden = _dense(state, up, _norm(state, norm2, x, vit.epsilon))
    return x + _dense(state, down, _activated(hidden, vit.activation))


def _activated(x: Array, name: str) -> Array:
    return x * jax.nn.sigmoid(1.702 * x) if name == "quick_gelu" else jax.nn.gelu(x, approximate=False)


def _dense(state: Mapping[str, Array], name: str, x: Array) -> Array:
    y, bias = x @ state[f"{name}.weight"].T, state.get(f"{name}.bias")
    return y if bias is None else y + bias


def _norm(state: Mapping[str, Array], name: str, x: Array, epsilon: float) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + epsilon) * state[f"{name}.weight"] + state[f"{name}.bias"]


# ---------------------------------------------------------------------------------------------------------------------
# Folders


class Encoder(NamedTuple):
    """A network for pictures, and CLIP's for texts: normalised pixels (b, h, w, 3), or token ids, to (b, d)."""

    pictures: Callable[[Float[Array, "b h w 3"]], Float[Array, "b d"]]
    texts: Callable[[Int[Array, "b k"]], Float[Array, "b d"]] | None
    size: int
    folder: Path


def open_clip(source: str | Path) -> Encoder:
    """CLIP (transformers' CLIPModel) of a folder or a name on the Hub: projected embeddings of pictures and texts."""
    folder, config, state = _opened(source, ("clip",))
    vision, text = config.get("vision_config", {}), config.get("text_config", {})
    vit = clip_vision(vision)
    known = {name: value for name, value in text.items() if name in TextConfig.__dataclass_fields__}
    # CLIP's vocabulary ends with the beginning and the end of texts; older files have other numbers for them.
    end = known.get("vocab_size", TextConfig.vocab_size) - 1
    encoder = TextConfig(**{**known, "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end})
    prefix = "text_model."
    inner = {key.removeprefix(prefix): leaf for key, leaf in state.items() if key.startswith(prefix)}
    params = _matched("text_encoder", inner, abstract_part(encoder), folder)
    arrays = _arrays(state)

    @jax.jit
    def pictures(pixels: Array) -> Array:
        first = tokens_of(vit, arrays, pixels)[:, 0]
        return _norm(arrays, vit.after, first, vit.epsilon) @ arrays["visual_projection.weight"].T

    @jax.jit
    def texts(ids: Array) -> Array:
        hidden = TextEncoder(encoder).apply({"params": params}, ids)
        assert isinstance(hidden, jax.Array)
        # What pads a text comes after its end.
        ends = jnp.argmax(ids == end, axis=1)
        return hidden[jnp.arange(len(ids)), ends] @ arrays["text_projection.weight"].T

    return Encoder(_precise(pictures), _precise(texts), vision.get("image_size", 224), folder)


def open_dino(source: str | Path) -> Encoder:
    """DINO or DINOv2 (ViTModel, Dinov2Model) of a folder or a name on the Hub: the token of the whole picture."""
    folder, config, state = _opened(source, ("vit", "dinov2"))
    if config["model_type"] == "dinov2":
        encoder, params = _dinov2(folder, config, state)

        @jax.jit
        def later(pixels: Array) -> Array:
            tokens = ImageEncoder(encoder).apply({"params": params}, pixels)
            assert isinstance(tokens, jax.Array)
            return tokens[:, 0]

        return Encoder(_precise(later), None, 224, folder)
    vit = dino_vision(config)
    arrays = _arrays({key.removeprefix("vit."): leaf for key, leaf in state.items()})

    @jax.jit
    def first(pixels: Array) -> Array:
        return _norm(arrays, vit.after, tokens_of(vit, arrays, pixels)[:, 0], vit.epsilon)

    return Encoder(_precise(first), None, config.get("image_size", 224), folder)


def read_dinov2(source: str | Path) -> tuple[ImageEncoderConfig, dict[str, Any]]:
    """The config and the parameters, in float32, of DINOv2 in a folder of transformers or by a name on the Hub."""
    return _dinov2(*_opened(source, ("dinov2",)))


def _dinov2(folder: Path, config: Mapping[str, Any], state: State) -> tuple[ImageEncoderConfig, dict[str, Any]]:
    encoder = parse_config(ImageEncoderConfig, config, str(folder / "config.json"))
    inner = {key.removeprefix("dinov2."): leaf for key, leaf in state.items()}
    return encoder, _matched("image_encoder", inner, abstract_part(encoder), folder)


def _precise(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    @functools.wraps(function)
    def run(given: Array) -> Array:
        with jax.default_matmul_precision("highest"):
            return function(given)

    return run


def _arrays(state: State) -> dict[str, Array]:
    return {
        key: jnp.asarray(leaf, jnp.float32) for key, leaf in state.items() if np.issubdtype(leaf.dtype, np.floating)
    }


def _matched(module: str, state: State, abstract: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    keys = convert.match_keys(module, {key: leaf.shape for key, leaf in state.items()}, abstract, str(folder))
    return trees.unflatten(
        {path: jnp.asarray(convert.from_torch(path, state[key]), jnp.float32) for path, key in keys.items()}
    )


def _opened(source: str | Path, kinds: tuple[str, ...]) -> tuple[Path, dict[str, Any], State]:
    """The folder, its config and its tensors. ValueError where it is none of the kinds, or cannot be had."""
    folder = locate(source, FILES)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder of transformers: it has no config.json")
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") not in kinds:
        raise ValueError(f"{folder} holds a model of type {config.get('model_type')!r}; expected {' or '.join(kinds)}")
    stored, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if stored.is_file():
        try:
            return folder, config, load_file(stored)
        except SafetensorError as error:
            raise ValueError(f"{stored} is no readable safetensors file (cut short?): {error}") from error
    if not pickled.is_file():
        raise ValueError(f"{folder} has no weights: model.safetensors or pytorch_model.bin is expected")
    return folder, config, load_torch_file(pickled)
