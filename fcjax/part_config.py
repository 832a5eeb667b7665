"""What the parts of a model folder say of themselves: config.json as diffusers and transformers write it."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fcjax.config import DiffusionConfig
from fcjax.network_config import (
    BinderConfig,
    ControlNetConfig,
    ImageEncoderConfig,
    NetworkConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)

PartConfig = NetworkConfig | BinderConfig | DiffusionConfig

CLASSES: dict[str, type] = {
    "unet": UNetConfig,
    "reference_unet": UNetConfig,
    "controlnet": ControlNetConfig,
    "image_encoder": ImageEncoderConfig,
    "vae": VAEConfig,
    "text_encoder": TextConfig,
    "binder": BinderConfig,
    "scheduler": DiffusionConfig,
}
INDEX = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "reference_unet": ["diffusers", "UNet2DConditionModel"],
    "controlnet": ["diffusers", "ControlNetModel"],
    "image_encoder": ["transformers", "Dinov2Model"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "binder": ["fcjax", "Binder"],
}
"""The library and the class of each part, as model_index.json has them."""

_UNET_ONLY = {
    "act_fn": "silu",
    "addition_embed_type_num_heads": 64,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "resnet_time_scale_shift": "default",
    "transformer_layers_per_block": 1,
}
_UNET_ABSENT = {
    "attention_head_dim": 8,
    "ff_mult": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
    "use_linear_projection": False,
}
# Per class: what a file must say where our modules know one way only (its absence means the same), ...
_ONLY: dict[type, dict[str, Any]] = {
    UNetConfig: {
        **_UNET_ONLY,
        "attention_type": "default",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "dropout": 0.0,
        "resnet_out_scale_factor": 1.0,
        "time_embedding_type": "positional",
    },
    ControlNetConfig: {**_UNET_ONLY, "controlnet_conditioning_channel_order": "rgb"},
    ImageEncoderConfig: {
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "model_type": "dinov2",
        "qkv_bias": True,
    },
    VAEConfig: {"act_fn": "silu"},
    TextConfig: {"model_type": "clip_text_model", "attention_dropout": 0.0, "dropout": 0.0},
    DiffusionConfig: {"thresholding": False, "timestep_type": "discrete"},
    BinderConfig: {},
}
# ... what it may say without a change to what we compute, ...
_IRRELEVANT: dict[type, tuple[str, ...]] = {
    UNetConfig: ("upcast_attention", "resnet_skip_time_act"),
    ControlNetConfig: ("upcast_attention",),
    ImageEncoderConfig: (
        "apply_layernorm",
        "architectures",
        "drop_path_rate",
        "dtype",
        "initializer_range",
        "layerscale_value",
        "out_features",
        "out_indices",
        "reshape_hidden_states",
        "stage_names",
        "torch_dtype",
        "transformers_version",
        "use_mask_token",
    ),
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
    # Settings of one of diffusers' schedulers (ours is chosen when composing), and clip_sample, which diffusers' own
    # Stable Diffusion switches off whatever the file says.
    DiffusionConfig: (
        "algorithm_type",
        "clip_sample",
        "clip_sample_range",
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "euler_at_final",
        "final_sigmas_type",
        "flow_shift",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "original_inference_steps",
        "predict_x0",
        "sample_max_value",
        "skip_prk_steps",
        "solver_order",
        "solver_type",
        "time_shift_type",
        "timestep_scaling",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
        "variance_type",
    ),
    BinderConfig: (),
}
# ... and what a key that older files leave out means (diffusers' own defaults).
_ABSENT: dict[type, dict[str, Any]] = {
    UNetConfig: {**_UNET_ABSENT, "sample_size": 64},
    ControlNetConfig: {**_UNET_ABSENT, "in_channels": 4, "conditioning_channels": 3},
    ImageEncoderConfig: {"image_size": 224, "layer_norm_eps": 1e-6, "mlp_ratio": 4, "num_channels": 3},
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
        "timestep_shift": 1.0,
        "timestep_spacing": "leading",
    },
    BinderConfig: {},
}
# diffusers' other schedulers, whose files mean "linspace" where they do not say how timesteps are spaced.
_LINSPACE = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
# Keys of ours that diffusers does not know: written only where they say something.
_OURS: dict[type, dict[str, Any]] = {
    UNetConfig: {"ff_mult": 4},
    ControlNetConfig: {"ff_mult": 4},
    VAEConfig: {"linear_encoder": False, "patch_size": 1},
    DiffusionConfig: {"timestep_shift": 1.0},
}


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
    absent = _ABSENT[config_class]
    if "timestep_spacing" in absent and given.get("_class_name") in _LINSPACE:
        absent = {**absent, "timestep_spacing": "linspace"}
    values = {**absent, **{key: value for key, value in given.items() if key in fields}}
    problems += [f"{key} is missing" for key in sorted(fields - values.keys())]
    problems += kind_problems(config_class, values)
    if problems:
        raise ValueError(
            f"{source} describes no {config_class.__name__} of ours:" + "".join(f"\n  {line}" for line in problems)
        )
    with naming(source):
        return config_class(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        )


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """A ValueError inside says what was read."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def kind_problems(config_class: type, values: Mapping[str, Any]) -> list[str]:
    """Of JSON's values of a dataclass's fields, those that are of another kind than the field, in words."""
    kinds = get_type_hints(config_class)
    return [
        f"{key} is {value!r}, {_in_words(kinds[key])} is expected"
        for key, value in values.items()
        if not _is_of_kind(value, kinds[key])
    ]


def _is_of_kind(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_is_of_kind(value, one) for one in parts)
    if origin is tuple:
        counted = parts[-1] is ... or (isinstance(value, list | tuple) and len(value) == len(parts))
        return counted and isinstance(value, list | tuple) and all(_is_of_kind(one, parts[0]) for one in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    # Which of a literal's words it is, the dataclass checks.
    return isinstance(value, str if origin is Literal else kind)


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(_in_words(one) for one in parts)
    if origin is tuple:
        count = "" if parts[-1] is ... else f"{len(parts)} "
        return f"a list of {count}{'words' if parts[0] is str else 'whole numbers'}"
    return {int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}.get(kind, "a word")


def config_dict(name: str, config: PartConfig) -> dict[str, Any]:
    """The content of a part's config.json."""
    given = dataclasses.asdict(config)
    for key, default in _OURS.get(type(config), {}).items():
        if given[key] == default:
            del given[key]
    library, class_name = INDEX[name]
    if isinstance(config, ImageEncoderConfig):
        return {"architectures": [class_name], "model_type": "dinov2", "use_mask_token": False, **given}
    if library == "transformers":
        return {"architectures": [class_name], "model_type": "clip_text_model", **given}
    if isinstance(config, VAEConfig):
        levels = len(config.block_out_channels)
        given["down_block_types"] = ["DownEncoderBlock2D"] * levels
        given["up_block_types"] = ["UpDecoderBlock2D"] * levels
    if isinstance(config, DiffusionConfig):
        given["clip_sample"] = False
    return {"_class_name": class_name, **given}
