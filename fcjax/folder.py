"""Model folders: diffusers' layout, config.json and safetensors under torch's names, so that diffusers opens its parts.

model_index.json                     what the parts are, and under "fcjax" what only the composer knows
unet/ reference_unet/ vae/           config.json, diffusion_pytorch_model.safetensors
text_encoder/                        config.json, model.safetensors
binder/                              config.json, model.safetensors (none for the variant "none")
scheduler/                           scheduler_config.json
tokenizer/                           written and read by fcjax.tokenizer
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fcjax import convert, trees
from fcjax.config import BinderConfig, ComposerConfig, DiffusionConfig, TextConfig, UNetConfig, VAEConfig
from fcjax.models.parameters import Parameters, abstract_binder, abstract_part

PartConfig = UNetConfig | VAEConfig | TextConfig | BinderConfig | DiffusionConfig

CLASSES: dict[str, type] = {
    "unet": UNetConfig,
    "reference_unet": UNetConfig,
    "vae": VAEConfig,
    "text_encoder": TextConfig,
    "binder": BinderConfig,
    "scheduler": DiffusionConfig,
}
_INDEX = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "reference_unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "binder": ["fcjax", "Binder"],
}
_COMPOSER_KEYS = (
    "height",
    "width",
    "max_assets",
    "condition",
    "attend_blank",
    "pose_patch",
    "pose_octaves",
    "reference_octaves",
)

# Per class: what a file must say where our modules know one way only (its absence means the same), ...
_ONLY: dict[type, dict[str, Any]] = {
    UNetConfig: {
        "act_fn": "silu",
        "addition_embed_type_num_heads": 64,
        "attention_type": "default",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dropout": 0.0,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "resnet_out_scale_factor": 1.0,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "transformer_layers_per_block": 1,
    },
    VAEConfig: {"act_fn": "silu"},
    TextConfig: {"model_type": "clip_text_model", "attention_dropout": 0.0, "dropout": 0.0},
    DiffusionConfig: {"clip_sample": False, "thresholding": False},
    BinderConfig: {},
}
# ... what it may say without a change to what we compute, ...
_IRRELEVANT: dict[type, tuple[str, ...]] = {
    UNetConfig: ("upcast_attention", "resnet_skip_time_act"),
    VAEConfig: ("down_block_types", "up_block_types", "force_upcast"),
    TextConfig: (
        "architectures",
        "dtype",
        "initializer_factor",
        "initializer_range",
        "projection_dim",
        "torch_dtype",
        "transformers_version",
    ),
    DiffusionConfig: (
        "clip_sample_range",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "skip_prk_steps",
    ),
    BinderConfig: (),
}
# ... and what a key that older files leave out means (diffusers' own defaults).
_ABSENT: dict[type, dict[str, Any]] = {
    UNetConfig: {
        "attention_head_dim": 8,
        "ff_mult": 4,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "sample_size": 64,
        "use_linear_projection": False,
    },
    VAEConfig: {
        "linear_encoder": False,
        "mid_block_add_attention": True,
        "patch_size": 1,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "shift_factor": None,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    },
    TextConfig: {"layer_norm_eps": 1e-5, "max_position_embeddings": 77},
    DiffusionConfig: {
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "leading",
    },
    BinderConfig: {},
}
# Keys of ours that diffusers does not know: written only where they say something.
_OURS: dict[type, dict[str, Any]] = {UNetConfig: {"ff_mult": 4}, VAEConfig: {"linear_encoder": False, "patch_size": 1}}


# ---------------------------------------------------------------------------------------------------------------------
# Whole folders


def save(path: str | Path, params: Parameters, config: ComposerConfig, *, dtype: Any = jnp.float32) -> None:
    """Write a model folder; tensors are stored as `dtype` (float32, bfloat16 or float16). `tokenizer/` is not ours."""
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    for name in ("unet", "reference_unet", "vae", "text_encoder", "binder"):
        # A tree may have lost the empty binder of the variant "none" on its way.
        part = params.get(name, {}) if config.binder.variant == "none" else params[name]
        save_part(root, name, part, getattr(config, name), dtype=dtype)
    _write_config(root, "scheduler", config.diffusion)
    own = {key: getattr(config, key) for key in _COMPOSER_KEYS}
    _write_json(root / "model_index.json", {"_class_name": "FashionComposer", **_INDEX, "fcjax": own})


def load(path: str | Path, *, dtype: Any = None) -> tuple[ComposerConfig, Parameters]:
    """The config and the parameters of a model folder, as `dtype`, or as they are stored when it is None.

    ValueError says what is not there, and lists all missing, unused and mis-shaped keys of a part at once.
    """
    config = load_config(path)
    params = {
        name: _load_tensors(Path(path), name, abstract_part(getattr(config, name)), dtype)
        for name in ("unet", "reference_unet", "vae", "text_encoder")
    }
    binder = abstract_binder(config.binder, config.unet)
    params["binder"] = _load_tensors(Path(path), "binder", binder, dtype) if binder else {}
    return config, params


def load_config(path: str | Path) -> ComposerConfig:
    """The config of a model folder."""
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"there is no model folder {root}")
    if not (root / "model_index.json").is_file():
        raise ValueError(f"{root} is no model folder: it has no model_index.json")
    index = _read_json(root / "model_index.json")
    own = index.get("fcjax")
    absent = [name for name in CLASSES if not (root / name).is_dir()]
    if own is None or absent:
        what = f"it has no {', '.join(absent)}" if absent else 'its model_index.json says nothing under "fcjax"'
        raise ValueError(
            f"{root} is a folder of {index.get('_class_name', 'an unnamed pipeline')}, not of a composer: {what}"
        )
    unknown = sorted(own.keys() ^ set(_COMPOSER_KEYS))
    if unknown:
        raise ValueError(
            f'"fcjax" in {root / "model_index.json"} must have {", ".join(_COMPOSER_KEYS)}; missing or unknown: '
            + ", ".join(unknown)
        )
    parts = {name: load_part_config(root, name) for name in CLASSES}
    return ComposerConfig(diffusion=parts.pop("scheduler"), **parts, **own)


# ---------------------------------------------------------------------------------------------------------------------
# Single parts


def save_part(path: str | Path, name: str, params: Parameters, config: PartConfig, *, dtype: Any = jnp.float32) -> None:
    """Write one part (`unet`, `reference_unet`, `vae`, `text_encoder`, `binder`) into the folder `path`."""
    dtype = _stored_dtype(dtype)
    _write_config(Path(path), name, config)
    tensors = {
        key: np.ascontiguousarray(np.asarray(tensor).astype(dtype))
        for key, tensor in convert.state_dict(params).items()
    }
    if name == "text_encoder":
        # transformers before version 5 expects the prefix, later ones accept it.
        tensors = {f"text_model.{key}": tensor for key, tensor in tensors.items()}
    if tensors:
        save_file(tensors, _weights_file(Path(path), name), metadata={"format": "pt"})


def load_part(
    path: str | Path, name: str, config: UNetConfig | VAEConfig | TextConfig, *, dtype: Any = None
) -> Parameters:
    """The parameters of one part of the folder `path`, which must fit `config`; as stored when `dtype` is None."""
    return _load_tensors(Path(path), name, abstract_part(config), dtype)


def load_part_config(path: str | Path, name: str) -> Any:
    """The config of one part of the folder `path`.

    ValueError where the file describes a network that ours is not (SDXL's UNet, another activation ...).
    """
    if name not in CLASSES:
        raise ValueError(f"a model folder has the parts {', '.join(CLASSES)}, got {name!r}")
    file, config_class = _config_file(Path(path), name), CLASSES[name]
    if not file.is_file():
        raise ValueError(f"{path} has no {name}: {file} is not there")
    return parse_config(config_class, _read_json(file), str(file))


def parse_config(config_class: type, given: Mapping[str, Any], source: str) -> Any:
    """A part's dataclass of the keys of its config.json; ValueError lists all that does not fit at once."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    only, irrelevant = _ONLY[config_class], _IRRELEVANT[config_class]
    problems = []
    for key, value in given.items():
        if key in fields or key.startswith("_") or key in irrelevant:
            continue
        if key in only:
            if value != only[key]:
                problems.append(f"{key} is {value!r}, only {only[key]!r} is supported")
        elif value not in (None, False):
            problems.append(f"{key} is {value!r}, which is not supported")
    values = {**_ABSENT[config_class], **{key: value for key, value in given.items() if key in fields}}
    problems += [f"{key} is missing" for key in sorted(fields - values.keys())]
    if problems:
        raise ValueError(
            f"{source} describes no {config_class.__name__} of ours:" + "".join(f"\n  {line}" for line in problems)
        )
    return config_class(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def config_dict(name: str, config: PartConfig) -> dict[str, Any]:
    """The content of a part's config.json."""
    given = dataclasses.asdict(config)
    for key, default in _OURS.get(type(config), {}).items():
        if given[key] == default:
            del given[key]
    library, class_name = _INDEX[name]
    if library == "transformers":
        return {"architectures": [class_name], "model_type": "clip_text_model", **given}
    if isinstance(config, VAEConfig):
        levels = len(config.block_out_channels)
        given["down_block_types"] = ["DownEncoderBlock2D"] * levels
        given["up_block_types"] = ["UpDecoderBlock2D"] * levels
    if isinstance(config, DiffusionConfig):
        given["clip_sample"] = False
    return {"_class_name": class_name, **given}


# ---------------------------------------------------------------------------------------------------------------------
# Files


class _Tensors:
    """The tensors of a part's file or files: shapes at once, contents one by one."""

    def __init__(self, root: Path, name: str) -> None:
        file = _weights_file(root, name)
        index = file.with_name(file.name + ".index.json")
        if file.is_file():
            files = [file]
        elif index.is_file():
            files = sorted({index.parent / shard for shard in _read_json(index)["weight_map"].values()})
        else:
            raise ValueError(f"{root} has no weights of its {name}: neither {file} nor {index.name} is there")
        self.source = str(file if file.is_file() else index)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._opened: dict[str, Any] = {}
        for shard in files:
            try:
                opened = safe_open(shard, "np")
                keys = list(opened.keys())
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{shard} is no readable safetensors file (cut short?): {error}") from error
            for key in keys:
                self._opened[key] = opened
                self.shapes[key] = tuple(opened.get_slice(key).get_shape())

    def read(self, key: str) -> np.ndarray:
        array = self._opened[key].get_tensor(key)
        if not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(f"{self.source}: {key} holds values that are not finite")
        return array


def _load_tensors(root: Path, name: str, abstract: Parameters, dtype: Any) -> Parameters:
    tensors = _Tensors(root, name)
    keys = convert.match_keys(name.removeprefix("reference_"), tensors.shapes, abstract, tensors.source)
    dtype = None if dtype is None else _stored_dtype(dtype)
    return trees.unflatten(
        {path: jnp.asarray(convert.from_torch(path, tensors.read(key)), dtype) for path, key in keys.items()}
    )


def _stored_dtype(dtype: Any) -> np.dtype:
    names = ("float32", "bfloat16", "float16")
    try:
        resolved = jnp.dtype(dtype)
    except TypeError:
        resolved = None
    if resolved is None or resolved.name not in names:
        raise ValueError(f"tensors are stored as {', '.join(names)}, got {dtype!r}")
    return resolved


def _weights_file(root: Path, name: str) -> Path:
    stem = "diffusion_pytorch_model" if _INDEX[name][0] == "diffusers" else "model"
    return root / name / f"{stem}.safetensors"


def _config_file(root: Path, name: str) -> Path:
    return root / name / ("scheduler_config.json" if name == "scheduler" else "config.json")


def _write_config(root: Path, name: str, config: PartConfig) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    _write_json(_config_file(root, name), config_dict(name, config))


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return content
