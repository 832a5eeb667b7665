"""Model folders: diffusers' layout, config.json and safetensors under torch's names, so that diffusers opens its parts.

model_index.json                     what the parts are, and under "fcjax" what only the composer knows
unet/ reference_unet/ vae/           config.json, diffusion_pytorch_model.safetensors
text_encoder/                        config.json, model.safetensors
binder/                              config.json, model.safetensors (none for the variant "none")
controlnet/ or image_encoder/        in place of reference_unet/, for models that encode assets so
scheduler/                           scheduler_config.json
tokenizer/                           written and read by fcjax.tokenizer

A part may lie in another model's folder: "shared" in model_index.json says where, as {"vae": "../mini"}.
"""

import filecmp
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fcjax import convert
from fcjax.config import APPEARANCES, OWN_SAMPLING, ComposerConfig
from fcjax.models.parameters import Parameters, abstract_binder, abstract_part
from fcjax.network_config import NetworkConfig
from fcjax.part_config import CLASSES, INDEX, PartConfig, config_dict, kind_problems, naming, parse_config
from fcjax.weights import (
    VARIANTS,
    Tensors,
    check_range,
    checked_dtype,
    load_parts,
    part_files,
    read_json,
    write_tensors,
)
from fcjax.whole_files import write_json

WEIGHED = tuple(name for name in CLASSES if name != "scheduler")
"""The parts that have weights."""
_COMPOSER_KEYS = (
    "height",
    "width",
    "max_assets",
    "condition",
    "attend_blank",
    "pose_patch",
    "pose_octaves",
    "reference_octaves",
    *OWN_SAMPLING,
)


# ---------------------------------------------------------------------------------------------------------------------
# Whole folders


def save(path: str | Path, params: Parameters, config: ComposerConfig, *, dtype: Any = jnp.float32) -> None:
    """Write a model folder; tensors are stored as `dtype` (float32, bfloat16 or float16), or each as it is when it is
    None. `tokenizer/` is not ours."""
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    for name in (*config.networks, "binder"):
        # A tree may have lost the empty binder of the variant "none" on its way.
        part = params.get(name, {}) if config.binder.variant == "none" else params[name]
        save_part(root, name, part, getattr(config, name), dtype=dtype)
    _write_config(root, "scheduler", config.diffusion)
    own = {key: getattr(config, key) for key in _COMPOSER_KEYS}
    index = {name: classes for name, classes in INDEX.items() if name not in APPEARANCES or name == config.appearance}
    write_json(root / "model_index.json", {"_class_name": "FashionComposer", **index, "fcjax": own}, indent=2)


def load(path: str | Path, *, dtype: Any = None, host: bool = False) -> tuple[ComposerConfig, Parameters]:
    """The config and the parameters of a model folder, as `dtype`, or as they are stored when it is None; on a device,
    or as NumPy arrays (`host`).

    ValueError says what is not there, and lists all missing, unused and mis-shaped keys of a part at once.
    """
    config = load_config(path)
    abstract = {name: abstract_part(getattr(config, name)) for name in config.networks}
    binder = abstract_binder(config.binder, config.unet)
    if binder:
        abstract["binder"] = binder
    params = load_parts({name: (tensors(path, name), tree) for name, tree in abstract.items()}, dtype, host)
    return config, {"binder": {}, **params}


def load_config(path: str | Path) -> ComposerConfig:
    """The config of a model folder."""
    root, index = Path(path), read_index(path)
    own = index.get("fcjax")
    # What encodes the assets is what the index says, the reference UNet where it says nothing of it.
    appearance = next((name for name in APPEARANCES if name in index), "reference_unet")
    names = [name for name in CLASSES if name not in APPEARANCES or name == appearance]
    absent = [name for name in names if not part_folder(root, name).is_dir()]
    if own is None or absent:
        what = f"it has no {', '.join(absent)}" if absent else 'its model_index.json says nothing under "fcjax"'
        raise ValueError(
            f"{root} is a folder of {index.get('_class_name', 'an unnamed pipeline')}, not of a composer: {what}"
        )
    said = f'"fcjax" in {root / "model_index.json"}'
    if not isinstance(own, dict):
        raise ValueError(f"{said} must be an object of {', '.join(_COMPOSER_KEYS)}, got {own!r}")
    # Folders of before these were settings say nothing of them.
    unknown = sorted((own.keys() ^ set(_COMPOSER_KEYS)) - {*OWN_SAMPLING})
    if unknown:
        raise ValueError(f"{said} must have {', '.join(_COMPOSER_KEYS)}; missing or unknown: {', '.join(unknown)}")
    if problems := kind_problems(ComposerConfig, own):
        raise ValueError(f"{said}: {'; '.join(problems)}")
    parts = {name: load_part_config(root, name) for name in names}
    diffusion = parts.pop("scheduler")
    with naming(str(root)):
        return ComposerConfig(**{"reference_unet": None, **parts, **own}, diffusion=diffusion)


def read_index(path: str | Path) -> dict[str, Any]:
    """What `model_index.json` of a model folder says."""
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"there is no model folder {root}")
    if not (root / "model_index.json").is_file():
        inside = f"; {root / 'model'} is one" if (root / "model/model_index.json").is_file() else ""
        raise ValueError(f"{root} is no model folder: it has no model_index.json{inside}")
    return read_json(root / "model_index.json")


def copy_tokenizer(source: Path, target: Path) -> None:
    """A model folder's tokenizer, which may lie in another one, into a folder that is made of it."""
    shutil.copytree(part_folder(source, "tokenizer"), target / "tokenizer", dirs_exist_ok=True)


def part_folder(path: str | Path, name: str) -> Path:
    """Where a part of a model folder lies: in the folder, or in the one that "shared" in model_index.json names."""
    root = Path(path)
    index = root / "model_index.json"
    shared = read_json(index).get("shared", {}) if index.is_file() else {}
    if not isinstance(shared, dict) or not all(isinstance(place, str) for place in shared.values()):
        raise ValueError(f'"shared" in {index} must map parts to the folders that hold them, got {shared!r}')
    if name not in shared:
        return root / name
    place = root / shared[name] / name
    if not place.is_dir():
        raise ValueError(f"{index} says that {name} lies in {shared[name]}, but there is no {place}")
    return place


def weight_files(path: str | Path) -> list[Path]:
    """The files of a model folder's weights that are read, by their parts' names, wherever the parts lie."""
    return [file for name in sorted(INDEX) for file in part_files(part_folder(path, name), _stem(name))]


def weights_digest(path: str | Path) -> str:
    """SHA-256 of the weights of a model folder or a single file, by which figures and pictures know their model."""
    digest = hashlib.sha256()
    for one in [Path(path)] if Path(path).is_file() else weight_files(path):
        with one.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def weight_patterns(name: str, variant: str) -> tuple[str, ...]:
    """What the files of a part's weights are called, one file or shards with their index, in one of
    `fcjax.weights.VARIANTS`."""
    stem = _stem(name)
    return (
        f"{stem}{variant}.safetensors",
        f"{stem}{variant}-*-of-*.safetensors",
        f"{stem}{variant}.safetensors.index.json",
        f"{stem}.safetensors.index{variant}.json",
    )


def share_parts(path: str | Path, other: str | Path, final: str | Path) -> list[str]:
    """Leave out of the model folder `path` every part whose files are those of the folder `other`, and say so in its
    model_index.json, as seen from the place `final` where the folder will lie. Returns the parts' names.
    """
    root, index, shared = Path(path), read_index(path), {}
    for name in INDEX:
        mine, theirs = root / name, part_folder(other, name)
        if mine.is_dir() and _same_files(mine, theirs):
            shutil.rmtree(mine)
            shared[name] = Path(os.path.relpath(theirs.parent.resolve(), Path(final).resolve())).as_posix()
    write_json(root / "model_index.json", {**index, "shared": shared}, indent=2)
    return list(shared)


# ---------------------------------------------------------------------------------------------------------------------
# Single parts


def save_part(path: str | Path, name: str, params: Parameters, config: PartConfig, *, dtype: Any = jnp.float32) -> None:
    """Write one part (`unet`, `vae`, `binder` ...) into the folder `path`, as `dtype`, or as it is when it is None.

    Whatever else readers would take for the part's weights (shards, other precisions) is removed.
    """
    dtype = None if dtype is None else checked_dtype(dtype)
    stored = {}
    for key, tensor in convert.state_dict(params).items():
        array = np.asarray(tensor)
        with np.errstate(over="ignore"):
            stored[key] = np.ascontiguousarray(array.astype(dtype or checked_dtype(array.dtype)))
        check_range(f"{name}: {key}", array, stored[key])
    _write_config(Path(path), name, config)
    if name == "text_encoder":
        # transformers before version 5 expects the prefix, later ones accept it.
        stored = {f"text_model.{key}": tensor for key, tensor in stored.items()}
    file = Path(path) / name / f"{_stem(name)}.safetensors"
    if stored:
        write_tensors(file, stored, {"format": "pt"})
    for pattern in (pattern for variant in VARIANTS for pattern in weight_patterns(name, variant)):
        for other in file.parent.glob(pattern):
            if other != file or not stored:
                other.unlink()


def load_part(
    path: str | Path, name: str, config: NetworkConfig, *, dtype: Any = None, host: bool = False
) -> Parameters:
    """The parameters of one part of the folder `path`, which must fit `config`; `dtype` and `host` as in `load`."""
    return load_parts({name: (tensors(path, name), abstract_part(config))}, dtype, host)[name]


def load_part_config(path: str | Path, name: str) -> Any:
    """The config of one part of the folder `path`.

    ValueError where the file describes a network that ours is not (SDXL's UNet, another activation ...).
    """
    if name not in CLASSES:
        raise ValueError(f"a model folder has the parts {', '.join(CLASSES)}, got {name!r}")
    file, config_class = _config_file(part_folder(path, name)), CLASSES[name]
    if not file.is_file():
        raise ValueError(f"{path} has no {name}: {file} is not there")
    return parse_config(config_class, read_json(file), str(file))


def tensors(path: str | Path, name: str) -> Tensors:
    """The tensors of one part of the folder `path`, unread."""
    return Tensors.of_part(part_folder(path, name), _stem(name))


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _stem(name: str) -> str:
    return "diffusion_pytorch_model" if INDEX[name][0] == "diffusers" else "model"


def _config_file(part: Path) -> Path:
    return part / ("scheduler_config.json" if part.name == "scheduler" else "config.json")


def _write_config(root: Path, name: str, config: PartConfig) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    write_json(_config_file(root / name), config_dict(name, config), indent=2)


def _same_files(mine: Path, theirs: Path) -> bool:
    names, others = ({file.name for file in place.glob("*")} for place in (mine, theirs))
    return names == others and not any(filecmp.cmpfiles(mine, theirs, names, shallow=False)[1:])
