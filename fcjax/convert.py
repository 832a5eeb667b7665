"""Parameter paths and arrays to the keys and tensors of diffusers and transformers, and back.

A key is the path with its list indices set apart and its leaf renamed:
"down_blocks_0/resnets_1/conv1/kernel" is `down_blocks.0.resnets.1.conv1.weight`. Kernels are transposed here and
nowhere else: HWIO to OIHW, (in, out) to (out, in).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fcjax import trees

# Modules that are lists in torch; a digit behind any other name (`linear_1`) belongs to the name.
_LISTS = (
    "attentions|controlnet_down_blocks|down_blocks|downsamplers|layer|layers|net|resnets|to_out|transformer_blocks|"
    "up_blocks|upsamplers"
)
_LIST_ITEM = re.compile(rf"({_LISTS})_(\d+)")
_LEAVES = {
    **{"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"},
    **{name: name for name in ("cls_token", "lambda1", "position_embeddings")},
}

# Names under which older files keep the same tensors: (our module's name, pattern, replacement), tried in order.
_OLDER_NAMES = (
    ("text_encoder", r"text_model\.(.*)", r"\1"),
    ("vae", r"(.*attentions\.\d+)\.query\.(.*)", r"\1.to_q.\2"),
    ("vae", r"(.*attentions\.\d+)\.key\.(.*)", r"\1.to_k.\2"),
    ("vae", r"(.*attentions\.\d+)\.value\.(.*)", r"\1.to_v.\2"),
    ("vae", r"(.*attentions\.\d+)\.proj_attn\.(.*)", r"\1.to_out.0.\2"),
)
# Tensors that are no parameters.
_IGNORED = (
    ("text_encoder", r"(text_model\.)?embeddings\.position_ids"),
    # Of DINOv2's own training.
    ("image_encoder", r"embeddings\.mask_token"),
)


def torch_key(path: str) -> str:
    """The torch key of a parameter path inside one module ("conv_in/kernel" is `conv_in.weight`)."""
    *modules, leaf = path.split("/")
    if leaf not in _LEAVES:
        raise ValueError(f"{path!r} ends in none of {', '.join(_LEAVES)}: no torch key corresponds to it")
    names = [_LIST_ITEM.sub(r"\1.\2", name) if _LIST_ITEM.fullmatch(name) else name for name in modules]
    return ".".join([*names, _LEAVES[leaf]])


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in torch of a parameter of ours."""
    return tuple(shape[axis] for axis in _axes_to_torch(path, len(shape)))


def to_torch(path: str, array: Any) -> Any:
    """A parameter as torch lays it out (an array of the same kind)."""
    return array.transpose(_axes_to_torch(path, array.ndim))


def from_torch(path: str, array: Any) -> Any:
    """The reverse of `to_torch`."""
    return array.transpose(np.argsort(_axes_to_torch(path, array.ndim)).tolist())


def _axes_to_torch(path: str, ndim: int) -> tuple[int, ...]:
    if path.endswith("/kernel"):
        return {2: (1, 0), 4: (3, 2, 0, 1)}[ndim]
    return tuple(range(ndim))


def current_key(module: str, key: str) -> str | None:
    """A key of an older file under today's name, or None where the tensor is no parameter."""
    if any(module == owner and re.fullmatch(pattern, key) for owner, pattern in _IGNORED):
        return None
    for owner, pattern, replacement in _OLDER_NAMES:
        if module == owner and re.fullmatch(pattern, key):
            key = re.sub(pattern, replacement, key)
    return key


def match_keys(
    module: str, shapes: Mapping[str, tuple[int, ...]], abstract: Mapping[str, Any], source: str = "the file"
) -> dict[str, str]:
    """{parameter path: key in the file} for one module ("unet", "vae", ...).

    shapes: of every tensor of the file, as torch has them; abstract: the module's tree of things with a shape.
    ValueError lists ALL missing, unused and mis-shaped keys at once.
    """
    by_current: dict[str, str] = {}
    for key in shapes:
        current = current_key(module, key)
        if current is not None:
            if current in by_current:
                raise ValueError(f"{source}: keys {key!r} and {by_current[current]!r} are the same parameter")
            by_current[current] = key
    wanted = {path: (torch_key(path), tuple(leaf.shape)) for path, leaf in trees.flatten(abstract).items()}
    missing = sorted(key for key, _ in wanted.values() if key not in by_current)
    unused = sorted(by_current.keys() - {key for key, _ in wanted.values()})
    misshaped = sorted(
        f"{key}: {tuple(shapes[by_current[key]])} in the file, {torch_shape(path, shape)} by the config"
        for path, (key, shape) in wanted.items()
        if key in by_current and tuple(shapes[by_current[key]]) != torch_shape(path, shape)
    )
    if missing or unused or misshaped:
        raise ValueError(
            f"{source} does not hold the {module} that the config describes: {len(missing)} keys missing, "
            f"{len(unused)} unused, {len(misshaped)} of another shape"
            + _listing("missing", missing)
            + _listing("unused", unused)
            + _listing("of another shape", misshaped)
        )
    return {path: by_current[key] for path, (key, _) in wanted.items()}


def state_dict(params: Mapping[str, Any]) -> dict[str, Any]:
    """{torch key: tensor in torch's layout} of one module's parameters."""
    return {torch_key(path): to_torch(path, leaf) for path, leaf in trees.flatten(params).items()}


def from_state_dict(module: str, state: Mapping[str, Any], abstract: Mapping[str, Any]) -> dict[str, Any]:
    """One module's parameters of a whole state dict of arrays; errors as `match_keys`."""
    keys = match_keys(module, {key: tuple(tensor.shape) for key, tensor in state.items()}, abstract, "the state dict")
    return trees.unflatten({path: from_torch(path, state[key]) for path, key in keys.items()})


def _listing(title: str, lines: list[str]) -> str:
    return "".join(f"\n  {line}" for line in [f"{title}:", *(f"  {line}" for line in lines)]) if lines else ""
