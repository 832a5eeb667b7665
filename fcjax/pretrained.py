"""Models of others as composers: Stable Diffusion folders, single files, and names on the Hugging Face Hub.

What a composer has beyond Stable Diffusion starts so that without assets nothing changes at first: the reference UNet
as the UNet, the binder at zero, the condition's input channels at zero. (Assets' keys and values join the denoiser's
own, so that they change its predictions before any training.)
"""

import dataclasses
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fcjax import folder
from fcjax.config import ComposerConfig, Condition, DiffusionConfig, condition_channels
from fcjax.folder import WEIGHED, weight_patterns
from fcjax.models.parameters import Parameters, abstract_part, init_binder
from fcjax.network_config import BinderConfig, BindingVariant, TextConfig, UNetConfig, VAEConfig
from fcjax.part_config import naming
from fcjax.presets import STABLE_DIFFUSION_SAMPLING
from fcjax.single_file import PICKLES, open_single_file
from fcjax.weights import VARIANTS, Tensors, load_parts

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline")
PARTS: tuple[str, ...] = ("unet", "vae", "text_encoder")
MINI = Path(__file__).parent / "mini"
MINI_TRYON = Path(__file__).parent / "mini_tryon"
PACKAGED = {"mini": MINI, "mini-tryon": MINI_TRYON}
"""The model folders in the package: one that composes, one that tries on."""


class Pretrained(NamedTuple):
    """A composer read from somewhere. `tokenizer`: its folder, where there is one. `found`: what was read, in words.
    `left`: keys of a single file that were left aside, as they belong to none of the networks."""

    config: ComposerConfig
    params: Parameters
    tokenizer: Path | None
    found: str
    left: tuple[str, ...] = ()


def locate(name: str | Path, files: Sequence[str] | None = None) -> Path:
    """Where a model is: "mini" and "mini-tryon" are in the package, then any path, then a name on the Hugging Face Hub.

    A name is looked up in the Hub's cache on this machine and else downloaded: what the patterns `files` name, by
    default what a composer reads. ValueError where it is neither cached nor reachable, or cached in part only.
    """
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"a model is a name such as 'mini', a folder or a file, got {name!r}")
    path = Path(name)
    if str(name) in PACKAGED:
        return PACKAGED[str(name)]
    if path.suffix in (".safetensors", *PICKLES) and not path.exists():
        raise ValueError(f"there is no file {path}")
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):
        return path
    from huggingface_hub import snapshot_download

    def download(patterns: Sequence[str]) -> Path:
        return Path(snapshot_download(str(name), allow_patterns=list(patterns)))

    try:
        root = _download_model(download) if files is None else download(files)
    except Exception as error:  # the library's errors have no common base
        said = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        raise ValueError(
            f"{name} is no path, and not to be had as a name on the Hugging Face Hub ({said}); download it "
            f"where there is a network and put it in the folder {path.absolute()}, or anywhere and give that folder"
        ) from error
    if files is None and (lacking := _lacking(root)):
        raise ValueError(
            f"{name} on the Hugging Face Hub has no {', '.join(lacking)}, or its cache on this machine holds a part of "
            f"it only ({root}): load it once with a network and HF_HUB_OFFLINE unset, or give a whole folder"
        )
    return root


def _lacking(root: Path) -> list[str]:
    """What is not there of what a model says that it has."""
    if not (root / "model_index.json").is_file():
        return ["model_index.json"]
    parts = [part for part in PARTS if part in folder.read_index(root)]
    absent = [part for part in parts if not any(_has_weights(root, part, variant) for variant in VARIANTS)]
    return [f"weights of its {part} in safetensors" for part in absent]


def _has_weights(root: Path, part: str, variant: str) -> bool:
    return any(match for pattern in weight_patterns(part, variant) for match in (root / part).glob(pattern))


def _download_model(download: Callable[[Sequence[str]], Path]) -> Path:
    """What a composer reads of a repository, which may hold the same weights in several precisions: of every part the
    first of `VARIANTS` that is there.
    """
    root = download(["model_index.json", "scheduler/*", "tokenizer/*", *(f"{part}/config.json" for part in WEIGHED)])

    for part in WEIGHED:
        if not (root / part).is_dir():
            continue
        # What was begun, by whomever, is finished before another precision is looked for.
        begun = [variant for variant in VARIANTS if _has_weights(root, part, variant)]
        for variant in begun[:1] or VARIANTS:
            download([f"{part}/{pattern}" for pattern in weight_patterns(part, variant)])
            if _has_weights(root, part, variant):
                break
    return root


def load(
    path: str | Path,
    *,
    condition: Condition | None = None,
    binding: BindingVariant | None = None,
    clip_skip: int = 0,
    dtype: Any = None,
    host: bool = False,
) -> Pretrained:
    """Reads a composer's folder, a Stable Diffusion folder or a single file, tensor by tensor.

    condition, binding: what a model of others becomes, by default "pose" ("tryon" for an inpainting model) and "all"; a
      composer's own folder must agree with them, but one with a pose may become one that tries on (`for_tryon`).
    clip_skip: how many of the text encoder's last layers to leave out, before its final norm, for weights that were
      trained so (diffusers' count: 1 is what others call clip skip 2). The composer has an encoder without them.
    host: NumPy arrays, for whoever lays them on several devices.
    ValueError says what was expected and what is there, and lists all keys of a part that do not fit at once.
    """
    if not isinstance(clip_skip, numbers.Integral):
        raise ValueError(f"clip_skip must be a whole number of layers, got {clip_skip!r}")
    model = _read(Path(path), condition, binding, dtype, host)
    # What was made beside what was read, too: a first convolution, a binder.
    model = model._replace(params=(jax.device_get if host else jax.device_put)(model.params))
    return _without_last_layers(model, clip_skip) if clip_skip else model


def own_sampling(path: Path) -> dict[str, Any]:
    """`ComposerConfig.own_sampling` of the model that `load` makes of what lies there, without its weights."""
    composes = path.is_dir() and "fcjax" in folder.read_index(path)
    return folder.load_config(path).own_sampling if composes else dict(STABLE_DIFFUSION_SAMPLING)


def _read(
    path: Path, condition: Condition | None, binding: BindingVariant | None, dtype: Any, host: bool
) -> Pretrained:
    if path.is_file():
        opened = open_single_file(path)
        configs = (opened.unet_config, opened.vae_config, opened.text_config, opened.diffusion)
        sources = dict(zip(PARTS, (opened.unet, opened.vae, opened.text_encoder), strict=True))
        tokenizer = _there(path.parent / "tokenizer")
        model = _adapted(configs, sources, condition, binding, dtype, host, tokenizer, f"single file {path}")
        return model._replace(left=opened.left)
    index = folder.read_index(path)
    if "fcjax" in index:
        config, params = folder.load(path, dtype=dtype, host=host)
        if config.condition == "pose" and condition not in (None, "pose"):
            config, params = for_tryon(config, params, condition)
        for name, wanted, present in (
            ("condition", condition, config.condition),
            ("binding", binding, config.binder.variant),
        ):
            if wanted is not None and wanted != present:
                raise ValueError(f"{path} is a composer with {name} {present!r}; it cannot become one with {wanted!r}")
        return Pretrained(config, params, _there(folder.part_folder(path, "tokenizer")), f"composer {path}")
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise ValueError(
            f"{path} is a folder of {kind or 'an unnamed pipeline'}; a composer's or one of {', '.join(PIPELINES)} is "
            "expected"
        )
    absent = [name for name in (*PARTS, "scheduler") if not (path / name).is_dir()]
    if absent:
        raise ValueError(f"{path} is an incomplete folder of {kind}: it has no {', '.join(absent)}")
    configs = tuple(folder.load_part_config(path, name) for name in (*PARTS, "scheduler"))
    sources = {name: folder.tensors(path, name) for name in PARTS}
    return _adapted(configs, sources, condition, binding, dtype, host, _there(path / "tokenizer"), f"{kind} {path}")


def _there(place: Path) -> Path | None:
    return place if place.is_dir() else None


def _adapted(
    configs: tuple[UNetConfig, VAEConfig, TextConfig, DiffusionConfig],
    sources: Mapping[str, Tensors],
    condition: Condition | None,
    binding: BindingVariant | None,
    dtype: Any,
    host: bool,
    tokenizer: Path | None,
    found: str,
) -> Pretrained:
    unet, vae, text_encoder, diffusion = configs
    latent = vae.latent_channels
    inpainting = unet.in_channels == 2 * latent + 1
    if not inpainting and unet.in_channels != latent:
        raise ValueError(
            f"{found}: its UNet takes {unet.in_channels} channels; {latent} (latents) or {2 * latent + 1} (inpainting: "
            "latents, mask, masked latents) are expected"
        )
    condition = condition or ("tryon" if inpainting else "pose")
    if inpainting and condition == "pose":
        raise ValueError(f"{found} is an inpainting model, which can become a try-on model, but not one with a pose")
    by_name = dict(zip(PARTS, (unet, vae, text_encoder), strict=True))
    params = load_parts({name: (sources[name], abstract_part(config)) for name, config in by_name.items()}, dtype, host)
    joined = latent + condition_channels(condition, latent, 1, 0)
    kernel = params["unet"]["conv_in"]["kernel"]
    if inpainting:
        ours = inpainting_to_tryon(kernel, latent)
        # A pose's, of which it knows nothing, come before the person's.
        before = latent
    else:
        ours, before = kernel, kernel.shape[2]
    unread = jnp.zeros((*kernel.shape[:2], joined - ours.shape[2], kernel.shape[3]), kernel.dtype)
    ours = jnp.concatenate([ours[:, :, :before], unread, ours[:, :, before:]], axis=2)
    # All but its first convolution are the same arrays.
    reference = {**params["unet"], "conv_in": {**params["unet"]["conv_in"], "kernel": kernel[:, :, :latent]}}
    params["unet"] = {**params["unet"], "conv_in": {**params["unet"]["conv_in"], "kernel": ours}}
    binder = BinderConfig(variant=binding or "all", hidden_size=unet.cross_attention_dim)
    side = vae.factor * 2 ** (unet.levels - 1)
    # Folders that diffusers wrote from a UNet without a size say null.
    size = unet.sample_size or 64
    rows, columns = (size, None) if isinstance(size, int) else size
    height = max(rows * vae.factor // side, 1) * side
    # Of one side, the paper's shape of a picture, 4 to 3.
    width = max((3 * height // 4 if columns is None else columns * vae.factor) // side, 1) * side
    with naming(found):
        config = ComposerConfig(
            unet=dataclasses.replace(unet, in_channels=joined),
            reference_unet=dataclasses.replace(unet, in_channels=latent),
            vae=vae,
            text_encoder=text_encoder,
            binder=binder,
            diffusion=diffusion,
            height=height,
            width=width,
            condition=condition,
            **STABLE_DIFFUSION_SAMPLING,
        )
    params |= {"reference_unet": reference, "binder": init_binder(config, jax.random.key(0), kernel.dtype)}
    return Pretrained(config, params, tokenizer, found)


def _without_last_layers(model: Pretrained, clip_skip: int) -> Pretrained:
    text_encoder = model.config.text_encoder
    layers = text_encoder.num_hidden_layers
    if not 0 <= clip_skip < layers:
        raise ValueError(f"clip_skip must lie between 0 and {layers - 1} for this text encoder, got {clip_skip}")
    kept = layers - clip_skip
    params = model.params["text_encoder"]
    first = {f"layers_{index}": params["encoder"][f"layers_{index}"] for index in range(kept)}
    config = dataclasses.replace(model.config, text_encoder=dataclasses.replace(text_encoder, num_hidden_layers=kept))
    return model._replace(config=config, params={**model.params, "text_encoder": {**params, "encoder": first}})


def for_tryon(
    config: ComposerConfig, params: dict[str, Any], condition: Condition = "tryon"
) -> tuple[ComposerConfig, dict[str, Any]]:
    """A composing model as one to be trained for try-on, as the paper begins it.

    conv_in of the denoiser, and of its ControlNet, reads the person and the mask, with zero weights, in the pose's
    place, or with "posed_tryon" behind the pose.
    """
    changed, latent = config.conditioned(condition), config.vae.latent_channels
    kept = latent + (config.condition_channels if changed.takes_pose else 0)
    joined = ((0, 0), (0, 0), (0, latent + changed.condition_channels - kept), (0, 0))
    params = dict(params)
    for name in {"unet", "controlnet"} & params.keys():
        conv_in = params[name]["conv_in"]
        kernel = jnp.pad(conv_in["kernel"][:, :, :kept], joined)
        params[name] = {**params[name], "conv_in": {**conv_in, "kernel": kernel}}
    return changed, params


def inpainting_to_tryon(kernel: Any, latent: int) -> Any:
    """conv_in's (h, w, i, o) of an inpainting model, which reads noise, mask, masked latents, as ours reads them:
    noise, the cloth-agnostic person's latents, mask. Both masks are 1 where something is to be filled in.
    """
    noise, mask, masked = (kernel[:, :, a:b] for a, b in ((0, latent), (latent, latent + 1), (latent + 1, None)))
    return jnp.concatenate([noise, masked, mask], axis=2)
